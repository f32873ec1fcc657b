"""The network transport of the agent's API: TCP with TLS 1.3 and mutual certificates (CONTRACT 15).

Frames and requests are those of the Unix socket (`mvm.host.api`). Nothing of what a caller sends is looked at before
its certificate has been: one of this agent's own authority, for clients, not expired, and the one that is recorded
under its name. Certificates are looked at anew for each connection, so that a rotation needs no restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from mvm.host.api import MAX_CONNECTIONS, ApiServer, Peer, error_frame
from mvm.host.endpoints import Endpoint
from mvm.model.errors import MvmError, QuotaExceeded, Refused
from mvm.security.identities import AGENT_FILE, CERTS_DIR, CLIENTS_DIR, client_name, server_context
from mvm.wire.frames import API_FRAME_LIMIT, FrameError, write_frame

log = structlog.get_logger(__name__)

REQUESTS_PER_SECOND = 10.0
BURST = 20
HANDSHAKE_SECONDS = 10.0
MAX_HANDSHAKES = 100
"""Connections at once whose certificate is not known yet; those beyond are closed, there is nobody to answer."""
_BACKLOG = 128
_ACCEPT_PAUSE = 0.1
_REFUSAL_SECONDS = 2.0


class Identity:
    """By what the agent is known, and whom it lets in: the files of `mvm.security.certificates`."""

    def __init__(self, state_dir: Path) -> None:
        """Raises `NotFound` with what to type when there are no certificates."""
        directory = state_dir / CERTS_DIR
        self._file = directory / AGENT_FILE
        self._clients = directory / CLIENTS_DIR
        self._context = server_context(self._file)
        self._version = self._stamp()

    def context(self) -> ssl.SSLContext:
        """With the certificate that is there now; the one before while a new one cannot be read."""
        if (version := self._stamp()) != self._version:
            try:
                self._context = server_context(self._file)
                self._version = version
                log.info("the agent's new certificate is in use")
            except MvmError as error:
                log.warning("the agent's new certificate cannot be used", reason=error.message)
        return self._context

    def client(self, connection: Any) -> str:
        """The name of the client at the other end; raises `Refused` for a certificate that is not the recorded one."""
        subject = dict(field[0] for field in connection.getpeercert()["subject"])
        shown = connection.getpeercert(binary_form=True)
        try:
            name = client_name(str(subject.get("commonName", "")))
            recorded = ssl.PEM_cert_to_DER_cert((self._clients / f"{name}.pem").read_text())
        except (MvmError, OSError, ValueError):
            recorded = None
        if shown != recorded:
            raise Refused(
                "the certificate has been revoked or replaced",
                hint="`mvm agent certs issue NAME --out DIR` on the agent's host makes another one",
            )
        return name

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns


class Allowance:
    """How many requests one connection may make: so many a second, and a burst."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._left = float(BURST)
        self._counted = monotonic()

    def take(self) -> None:
        """Raises `QuotaExceeded` when there is none left."""
        now = self._monotonic()
        self._left = min(float(BURST), self._left + (now - self._counted) * REQUESTS_PER_SECOND)
        self._counted = now
        if self._left < 1:
            raise QuotaExceeded(
                f"more than {REQUESTS_PER_SECOND:g} requests a second on one connection", hint="try again in a moment"
            )
        self._left -= 1


class RemoteListener:
    """Lets operators elsewhere talk to `api`."""

    def __init__(
        self,
        api: ApiServer[Any],
        identity: Identity,
        *,
        max_connections: int = MAX_CONNECTIONS,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self._api = api
        self._identity = identity
        self._max_connections = max_connections
        self._monotonic = monotonic
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._handshakes = 0
        self._conversations = 0

    async def start(self, endpoint: Endpoint) -> Endpoint:
        """Listen; gives the endpoint with the port that it has. Raises `MvmError` for an address that cannot be had."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, *_, address = found[0]
            self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise MvmError(
                f"the agent cannot listen on {endpoint}: {error.strerror or error}",
                hint="choose an address of this host and a free port (listen, MVM_LISTEN)",
            ) from error
        self._listener.setblocking(False)
        bound = Endpoint(endpoint.host, self._listener.getsockname()[1])
        self._accepting = asyncio.create_task(self._accept(self._listener), name="network api")
        log.info("requests from the network are taken", listen=str(bound))
        return bound

    def refuse_more(self) -> None:
        """Take no more connections; those that there are go on."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._listener is not None:
            self._listener.close()

    async def close(self) -> None:
        """End all connections. What was asked for on them is `ApiServer.close`'s."""
        self.refuse_more()
        ending = [*self._connections, *([self._accepting] if self._accepting else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or a caller that was gone already
                log.warning("a connection could not be accepted", reason=error.strerror or str(error))
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            await asyncio.sleep(0)  # callers that are already there are accepted without a wait: others have their turn
            if self._handshakes >= MAX_HANDSHAKES:
                connection.close()
                continue
            self._handshakes += 1
            task = asyncio.create_task(self._serve(connection, str(address[0])), name="network api connection")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket, address: str) -> None:
        try:
            reader, writer = await self._shake_hands(connection)
        except OSError as error:
            log.info("a connection was refused", address=address, reason=str(error) or type(error).__name__)
            return
        self._conversations += 1
        try:
            await self._attend(reader, writer, address)
        except FrameError:
            return  # the caller is gone
        except Exception:
            log.exception("network api connection failed")
        finally:
            self._conversations -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _shake_hands(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection whose other end has a certificate; raises `OSError` (of which `ssl.SSLError` is one)."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=API_FRAME_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._identity.context(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_REFUSAL_SECONDS,
            )
        finally:
            self._handshakes -= 1
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        try:
            if self._conversations > self._max_connections:
                raise QuotaExceeded(
                    f"the agent serves {self._max_connections} connections from the network at once and all are taken",
                    hint="try again in a moment",
                )
            actor = self._identity.client(writer.get_extra_info("ssl_object"))
        except MvmError as refusal:
            log.info("a connection was refused", address=address, reason=refusal.message)
            await write_frame(writer, error_frame(refusal), limit=API_FRAME_LIMIT)
            return
        allowance = Allowance(self._monotonic or asyncio.get_running_loop().time)
        await self._api.converse(reader, writer, Peer(actor, remote=True, admit=allowance.take))
