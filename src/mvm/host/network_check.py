"""`mvm net verify`: proves by real connections from inside running guests who reaches whom."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from mvm.host.catalog import Catalog
from mvm.host.inspection import Inspection
from mvm.host.networks import Networks
from mvm.model.entities import Instance
from mvm.model.errors import MvmError
from mvm.model.ids import TenantId
from mvm.model.states import State
from mvm.network import probes

EXEC_SECONDS = 30
AT_ONCE = 4
"""Guests that try at the same time: an emulated one takes a while to start a program."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    who: str
    what: str
    expected: str
    found: str
    passed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.who,
            "what": self.what,
            "expected": self.expected,
            "found": self.found,
            "passed": self.passed,
        }


class NetworkCheck:
    """Looks at the host's part, then has every running guest of a tenant (or of all) try."""

    def __init__(self, catalog: Catalog, networks: Networks, inspection: Inspection) -> None:
        self._catalog = catalog
        self._networks = networks
        self._inspection = inspection

    async def verify(self, tenant_id: TenantId | None, *, actor: str) -> dict[str, Any]:
        """The report: checks that passed or not, and instances that could not be asked and why."""
        if tenant_id is not None:
            self._catalog.tenant(tenant_id)
        await self._networks.changed()
        checks = [
            Check(who="host", what=what, expected="as put", found=found, passed=passed)
            for what, passed, found in await self._networks.inspect()
        ]
        placed = [
            instance
            for instance in self._catalog.instances.values()
            if self._networks.place_of(instance) is not None and tenant_id in (None, instance.tenant_id)
        ]
        running = [instance for instance in placed if instance.state is State.RUNNING]
        skipped = {str(i.ref): f"it is {i.state}" for i in placed if i.state is not State.RUNNING}
        around = await self._surroundings()
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(instance: Instance) -> list[Check]:
            async with slots:
                try:
                    return await self._try_from(instance, around, actor=actor)
                except MvmError as error:
                    skipped[str(instance.ref)] = error.message
                    return []

        for found in await asyncio.gather(*(ask(instance) for instance in running)):
            checks += found
        return {
            "passed": bool(checks) and all(check.passed for check in checks),
            "asked": len(running) - sum(str(i.ref) in skipped for i in running),
            "checks": [check.to_json() for check in checks],
            "skipped": skipped,
        }

    async def _try_from(self, instance: Instance, around: probes.Surroundings, *, actor: str) -> list[Check]:
        guest = self._networks.place_of(instance)
        assert guest is not None
        tries = probes.probes_of(guest, self._networks.picture, around)
        answer = await self._inspection.execute(
            instance.ref, probes.command(tries), timeout_seconds=EXEC_SECONDS, actor=actor
        )
        text = base64.b64decode(answer["stdout"]).decode(errors="replace")
        return [
            Check(
                who=str(instance.ref),
                what=f"{probe.what} ({probe.address}:{probe.port})",
                expected="open" if probe.reachable else "closed",
                found=found.value,
                passed=probe.passed(found),
            )
            for probe, found in zip(tries, probes.outcomes(text, tries), strict=True)
        ]

    async def _surroundings(self) -> probes.Surroundings:
        addresses, ports = await asyncio.to_thread(_host)
        names = {
            guest.ip: str(instance.ref)
            for instance in self._catalog.instances.values()
            if instance.state is State.RUNNING and (guest := self._networks.place_of(instance)) is not None
        }
        return probes.Surroundings(
            names=names,
            host_addresses=addresses,
            host_listens=ports,
            answers_host=await _answering(probes.outside_places(self._networks.picture)),
        )


def _host() -> tuple[list[IPv4Address], list[int]]:
    """The host's own addresses and the TCP ports that something of it listens at."""
    import socket

    import psutil

    from mvm.network.devices import BRIDGE_PREFIX

    addresses = [
        IPv4Address(entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not name.startswith(BRIDGE_PREFIX)
    ]
    ports = {c.laddr.port for c in psutil.net_connections("tcp4") if c.status == psutil.CONN_LISTEN and c.laddr}
    return [address for address in addresses if not address.is_loopback], sorted(ports)


async def _answering(places: Iterable[tuple[IPv4Address, int]]) -> list[tuple[IPv4Address, int]]:
    """Those of the places that the host itself can connect to."""

    async def connects(address: IPv4Address, port: int) -> bool:
        try:
            async with asyncio.timeout(probes.LIMIT_SECONDS):
                _, writer = await asyncio.open_connection(str(address), port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    listed = list(places)
    answers = await asyncio.gather(*(connects(*place) for place in listed))
    return [place for place, answered in zip(listed, answers, strict=True) if answered]
