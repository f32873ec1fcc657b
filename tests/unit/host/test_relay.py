"""The relay carries what the network's grants would let pass, and says who calls."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.standins.instant_runtime import InstantRuntime
from tests.unit.network.town import ALICE, BOB, GATEWAYS, PEOPLE, Town

from mvm.host.catalog import Catalog
from mvm.host.gateways import Gateways
from mvm.host.relay import Relay
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance
from mvm.runtime.base import Connection
from mvm.store.sqlite import SqliteStore
from mvm.wire import relaying

DELIVERY, OUTBOUND = relaying.DELIVERY[1], relaying.OUTBOUND[1]


async def pair() -> tuple[Connection, Connection]:
    """Two ends of a connection."""
    one, other = socket.socketpair()
    return await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)


class Ports(InstantRuntime):
    """A runtime whose guests' ports are opened by the test."""

    def __init__(self, *, relayed: bool = True) -> None:
        super().__init__()
        self.capabilities = dataclasses.replace(self.capabilities, relayed=relayed)
        self.opened: list[tuple[Any, int]] = []
        self.guest: asyncio.Queue[Connection] = asyncio.Queue()

    async def connect(self, machine: Any, port: int) -> Connection:
        near, far = await pair()
        self.opened.append((machine, port))
        self.guest.put_nowait(far)
        return near


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    store = await SqliteStore.open(tmp_path / "state.db")
    town = Town(await Catalog.open(store))
    await town.tenant(ALICE, 1, accepts=(BOB,))
    await town.tenant(BOB, 2, gateway_tenant=ALICE)
    yield town
    await store.close()


def relay_of(town: Town, runtime: Ports) -> Relay:
    runtimes = Runtimes({"": runtime})
    return Relay(town.catalog, Gateways(town.catalog), runtimes, lambda instance: instance.instance_id)  # type: ignore[arg-type, return-value]


def may(relay: Relay, source: Instance, target: Instance, port: int) -> bool:
    return relay.target(source, target.network.guest_ip, port) == target


async def test_a_grant_is_one_port_each_way(town: Town) -> None:
    relay = relay_of(town, Ports())
    gateway, worker = await town.instance(ALICE, GATEWAYS), await town.instance(ALICE, PEOPLE)
    assert may(relay, gateway, worker, DELIVERY)
    assert may(relay, worker, gateway, OUTBOUND)
    for source, target, port in (
        (gateway, worker, OUTBOUND),
        (gateway, worker, 22),
        (worker, gateway, DELIVERY),
        (gateway, gateway, DELIVERY),
    ):
        assert not may(relay, source, target, port)


async def test_workers_do_not_reach_each_other(town: Town) -> None:
    relay = relay_of(town, Ports())
    one, two = await town.instance(ALICE, PEOPLE), await town.instance(ALICE, PEOPLE)
    assert not may(relay, one, two, DELIVERY)
    assert not may(relay, one, two, OUTBOUND)


async def test_a_gateway_reaches_workers_of_the_people_it_serves_and_no_others(town: Town) -> None:
    relay = relay_of(town, Ports())
    gateway = await town.instance(ALICE, GATEWAYS)
    bound, unbound = await town.instance(BOB, PEOPLE, user="bob"), await town.instance(BOB, PEOPLE)
    assert may(relay, gateway, bound, DELIVERY)
    assert may(relay, bound, gateway, OUTBOUND)
    assert not may(relay, gateway, unbound, DELIVERY)


async def test_an_instance_with_a_network_is_not_reached_by_the_relay(town: Town) -> None:
    relay = relay_of(town, Ports(relayed=False))
    gateway, worker = await town.instance(ALICE, GATEWAYS), await town.instance(ALICE, PEOPLE)
    assert not may(relay, gateway, worker, DELIVERY)


async def test_bytes_go_both_ways_and_the_target_is_told_who_calls(town: Town) -> None:
    runtime = Ports()
    gateway, worker = await town.instance(ALICE, GATEWAYS), await town.instance(ALICE, PEOPLE)
    (reader, writer), near = await pair()
    serving = asyncio.create_task(relay_of(town, runtime).handler_for(gateway.ref)(*near))  # type: ignore[arg-type]
    writer.write(relaying.target_line(worker.network.guest_ip, DELIVERY) + b"question")
    writer.write_eof()
    guest_reader, guest_writer = await runtime.guest.get()
    assert await relaying.read_caller(guest_reader) == (gateway.network.guest_ip, worker.network.guest_ip)
    assert await guest_reader.read() == b"question"
    guest_writer.write(b"answer")
    guest_writer.close()
    assert await reader.read() == b"answer"
    await serving
    writer.close()
    assert runtime.opened == [(worker.instance_id, DELIVERY)]


@pytest.mark.parametrize("line", [b"\n", b"10.240.1.4\n", b"10.240.1.4 x\n", b"nobody 18789\n", b"9.9.9.9 1\n", b""])
async def test_whoever_asks_for_something_else_hears_nothing(town: Town, line: bytes) -> None:
    runtime = Ports()
    gateway = await town.instance(ALICE, GATEWAYS)
    (reader, writer), near = await pair()
    serving = asyncio.create_task(relay_of(town, runtime).handler_for(gateway.ref)(*near))  # type: ignore[arg-type]
    writer.write(line)
    writer.write_eof()
    assert await reader.read() == b""
    await serving
    writer.close()
    assert runtime.opened == []
