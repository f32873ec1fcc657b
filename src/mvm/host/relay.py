"""Carries connections between instances that have no network in common (host port 54, `mvm.wire.relaying`).

Who calls is known from the socket. The grants are those of the network: a gateway to the delivery port of a worker that
it serves, that worker to the outbound port of its gateway, nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import structlog

from mvm.host.catalog import Catalog
from mvm.host.gateways import Gateways
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceId, InstanceRef
from mvm.model.roles import Role
from mvm.runtime.base import Connection, Handler, Machine
from mvm.wire import relaying

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 10.0
MAX_CONNECTIONS_PER_INSTANCE = 128
CHUNK_BYTES = 64 * 1024


class Relay:
    """The relay of this host."""

    def __init__(
        self, catalog: Catalog, gateways: Gateways, runtimes: Runtimes, machine_of: Callable[[Instance], Machine]
    ) -> None:
        self._catalog = catalog
        self._gateways = gateways
        self._runtimes = runtimes
        self._machine_of = machine_of
        self._open: Counter[InstanceId] = Counter()

    def handler_for(self, ref: InstanceRef) -> Handler:
        """The connection handler of one instance's relay port: its identity is bound here."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                if self._open[ref.instance_id] < MAX_CONNECTIONS_PER_INSTANCE:
                    self._open[ref.instance_id] += 1
                    try:
                        await self._carry(ref, (reader, writer))
                    finally:
                        self._open[ref.instance_id] -= 1
                        if not self._open[ref.instance_id]:
                            del self._open[ref.instance_id]
            except (OSError, MvmError, relaying.LineError) as error:
                log.debug("a connection is not carried", instance=str(ref), reason=str(error))
            finally:
                await _close(writer)

        return handle

    async def _carry(self, ref: InstanceRef, caller: Connection) -> None:
        address, port = await relaying.read_target(caller[0])
        source = self._catalog.instance(ref)
        target = self.target(source, address, port)
        if target is None:
            log.info("a connection between instances is refused", instance=str(ref), address=address, port=port)
            return
        async with asyncio.timeout(CONNECT_SECONDS):
            far = await self._runtimes.of(target).connect(self._machine_of(target), port)
        try:
            far[1].write(relaying.caller_line(source.network.guest_ip, address))
            await join(caller, far)
        finally:
            await _close(far[1])

    def target(self, source: Instance, address: str, port: int) -> Instance | None:
        """The instance at an address, when `source` may connect to that port of it."""
        found = next((i for i in self._catalog.instances.values() if i.network.guest_ip == address), None)
        if found is None or not self._runtimes.of(found).capabilities.relayed:
            return None
        if port == relaying.DELIVERY[1]:
            gateway, worker = source, found
        elif port == relaying.OUTBOUND[1]:
            gateway, worker = found, source
        else:
            return None
        fits = gateway.role is Role.GATEWAY and worker.role is not Role.GATEWAY
        return found if fits and self._gateways.granted(gateway, worker) else None


async def join(one: Connection, other: Connection) -> None:
    """Carry bytes both ways until both directions have ended or one is lost."""
    directions = [asyncio.create_task(_pass_on(one[0], other[1])), asyncio.create_task(_pass_on(other[0], one[1]))]
    try:
        await asyncio.gather(*directions)
    finally:
        for task in directions:
            task.cancel()
        await asyncio.gather(*directions, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            await writer.wait_closed()
