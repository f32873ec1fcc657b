"""Deliveries between instances that have no network in common: the host carries them over its channels.

On a host without privileges a machine reaches the internet at most. Instances then have loopback addresses, as under
the process runtime, and are told ports at which this relay listens. Whoever connects there is carried by the host to
the instance whose address that was. At the other end the relay connects to the real port, as the address of the caller,
which the host vouches for: nobody else in either guest has to know that there is a relay.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

from mvm.guest import pipe
from mvm.guest.channel import Channel
from mvm.guest.sockets import Handler
from mvm.wire import relaying

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
LOOPBACK_DEVICE = b"lo"


class Relay:
    """The relay of one machine. From outside the machine it cannot be reached."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises `OSError`."""
        for here, port in (relaying.DELIVERY, relaying.OUTBOUND):
            self._servers.append(await asyncio.start_server(self._outward(port), sock=_on_loopback(here)))
            self._servers.append(await self._channel.listen(port, self._inward(port)))

    async def close(self) -> None:
        """Listen no more and end every connection."""
        for server in self._servers:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _outward(self, port: int) -> Handler:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            meant = str(writer.get_extra_info("sockname")[0])
            host = await self._channel.connect(relaying.RELAY_PORT)
            host[1].write(relaying.target_line(meant, port))
            await _joined((reader, writer), host)

        return self._counted(carry)

    def _inward(self, port: int) -> Handler:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            caller, own = await relaying.read_caller(reader)
            local = await asyncio.open_connection(own, port, local_addr=(caller, 0))
            await _joined((reader, writer), local)

        return self._counted(carry)

    def _counted(self, carry: Handler) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            if len(self._connections) >= MAX_CONNECTIONS:
                writer.transport.abort()
                return
            self._connections.add(task)
            try:
                await carry(reader, writer)
            except (OSError, relaying.LineError) as error:
                log.debug("a connection is not carried: %s", error)
            except asyncio.CancelledError:
                if self._servers[0].is_serving():
                    raise
            finally:
                self._connections.discard(task)
                await pipe.close(writer)

        return serve


def _on_loopback(port: int) -> socket.socket:
    """A socket for every address of the loopback device, and for no other device."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK_DEVICE)
        listening.bind(("", port))
    except OSError:
        listening.close()
        raise
    return listening


async def _joined(one: pipe.Connection, other: pipe.Connection) -> None:
    try:
        pipe.keep_alive(one[1])
        pipe.keep_alive(other[1])
        await pipe.join(one, other)
    finally:
        with suppress(OSError):
            await pipe.close(other[1])
