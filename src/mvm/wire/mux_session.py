"""A session of the multiplexer: all connections between one HELLO and the next, and nothing from before or after."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

from mvm.wire.mux_connection import MuxConnection
from mvm.wire.mux_frames import Desynchronised, Frame, Kind, encode

MAX_INCOMING = 64
"""Connections opened by the peer that may be open at the same time."""

OnOpen = Callable[[MuxConnection], None]
"""Takes a connection that the peer wants to open: has to `accept` or `refuse` it, then or later."""


class Session:
    """Gives frames to connections, and theirs to `transmit`. Once dropped it has none, and so says nothing any more."""

    def __init__(
        self, *, is_host: bool, on_open: OnOpen, transmit: Callable[[bytes], None], writable: bool = True
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.writable = writable
        """False while the line takes no data; short frames that hold no data are sent all the same."""
        self._on_open = on_open
        self._transmit = transmit
        self._dropped = False
        self._connections: dict[int, MuxConnection] = {}
        self._waiting: deque[MuxConnection] = deque()
        self._parity = int(is_host)
        # Not the ids of the session before: a frame of that one, if any came, would find nobody.
        self._last_id = int.from_bytes(os.urandom(4), "big") & ~1 | self._parity

    def open(self, port: int, protocol: asyncio.Protocol) -> MuxConnection:
        """Open a connection; what is written is on its way before the peer has accepted (`wait_accepted`).

        Raises `ConnectionResetError` once the session was dropped.
        """
        if self._dropped:
            raise ConnectionResetError("the session has ended")
        connection = MuxConnection(self, self._unused_id(), port)
        self._connections[self._last_id] = connection
        self.send(Kind.OPEN, self._last_id, port)
        connection.begin(protocol)
        return connection

    def _unused_id(self) -> int:
        while True:
            self._last_id = (self._last_id + 2) & 0xFFFFFFFF
            if self._last_id not in self._connections:
                return self._last_id

    def handle(self, frame: Frame) -> None:
        """Take in a frame. Raises `Desynchronised` for one that cannot be the next."""
        kind, connection_id, argument, payload = frame
        connection = self._connections.get(connection_id)
        if kind == Kind.OPEN:
            if connection is not None or connection_id & 1 == self._parity:
                raise Desynchronised("a connection is opened twice")
            self._opened(connection_id, argument)
        elif connection is None:
            return  # closed here while the frame was under way
        elif kind == Kind.DATA:
            connection.received(payload)
        elif kind == Kind.CREDIT:
            connection.credited(argument)
        elif kind == Kind.OK:
            connection.accepted()
        elif kind == Kind.FIN:
            connection.ended()
        elif kind == Kind.CLOSE:
            connection.closed_by_peer()
        elif kind == Kind.RST:
            connection.reset_by_peer()

    def _opened(self, connection_id: int, port: int) -> None:
        if sum(each & 1 != self._parity for each in self._connections) >= MAX_INCOMING:
            self.send(Kind.RST, connection_id)
            return
        connection = MuxConnection(self, connection_id, port)
        self._connections[connection_id] = connection
        self._on_open(connection)

    def drop(self, reason: str) -> None:
        """End the session and every connection of it."""
        self._dropped = True
        self._waiting.clear()
        for connection in list(self._connections.values()):
            connection.lose(ConnectionResetError(reason))

    def pause_writing(self) -> None:
        """The line takes no more data for now."""
        self.writable = False

    def resume_writing(self) -> None:
        """The line takes data again; those that waited take turns, a frame each."""
        self.writable = True
        while self.writable and self._waiting:
            connection = self._waiting.popleft()
            if connection.send_one():
                self._waiting.append(connection)

    # For the connections

    def send(self, kind: Kind, connection_id: int, argument: int = 0, payload: bytes = b"") -> None:
        self._transmit(encode(kind, connection_id, argument, payload))

    def call_when_writable(self, connection: MuxConnection) -> None:
        if connection not in self._waiting:
            self._waiting.append(connection)

    def forget(self, connection_id: int, connection: MuxConnection) -> None:
        if self._connections.get(connection_id) is connection:
            del self._connections[connection_id]
