"""One connection of the multiplexer: an `asyncio.Transport`, so that streams and protocols work over it unchanged.

Each side may send `WINDOW` bytes that the other has not yet handed on. So a connection that nobody reads from stops by
itself, the others go on, and what a peer can make this side keep is bounded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mvm.wire.mux_frames import MAX_PAYLOAD, Kind

if TYPE_CHECKING:
    from mvm.wire.mux_session import Session

WINDOW = 64 * 1024
"""Bytes in one direction of a connection that may be under way or unread."""
LINGER_SECONDS = 30.0
"""How long a closed connection waits for the peer to take what was written before."""

_CREDIT_STEP = WINDOW // 4
_HIGH_WATER = 64 * 1024


class MuxConnection(asyncio.Transport):
    """One end of a connection. Made by a `Session`."""

    def __init__(self, session: Session, connection_id: int, port: int) -> None:
        super().__init__()
        self._session = session
        self._id = connection_id
        self.port = port
        """The port that was opened."""
        self._loop = session.loop
        self._protocol: asyncio.Protocol | None = None
        self._answer: asyncio.Future[None] | None = None
        self._accepted = False
        self._lost = False
        self._closing = False
        self._lingering: asyncio.TimerHandle | None = None
        # Sending
        self._credit = WINDOW
        self._unsent = bytearray()
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self._protocol_paused = False
        self._end_written = False
        self._end_sent = False
        self._peer_closed = False
        # Receiving
        self._unread = bytearray()
        self._room = WINDOW
        self._owed = 0
        self._reading = True
        self._end_received = False
        self._end_delivered = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id:#x} to port {self.port}>"

    # Beginning

    async def wait_accepted(self) -> None:
        """Return once the peer has accepted a connection opened here; raises `ConnectionError` when it does not."""
        if self._lost:
            raise ConnectionResetError("the connection was lost before it was accepted")
        if not self._accepted:
            if self._answer is None:
                self._answer = self._loop.create_future()
            await self._answer

    def accept(self, protocol: asyncio.Protocol) -> None:
        """Accept a connection that the peer opened; raises `ConnectionResetError` when it is lost by now."""
        if self._lost:
            raise ConnectionResetError("the peer has given up the connection")
        self._accepted = True
        self._session.send(Kind.OK, self._id)
        self.begin(protocol)

    def refuse(self) -> None:
        """Refuse a connection that the peer opened."""
        self.abort()

    def begin(self, protocol: asyncio.Protocol) -> None:
        """Have a protocol told of everything from here on, beginning with what has come already."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._deliver()

    # What the peer says (called by the session)

    def accepted(self) -> None:
        """The peer has accepted."""
        self._accepted = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def received(self, data: bytes) -> None:
        """The peer sent data."""
        if len(data) > self._room or not data or self._end_received:
            self._fail("the peer sent more than it may")
            return
        self._room -= len(data)
        if self._closing:
            self._handed_on(len(data))
        elif self._reading and not self._unread and self._protocol is not None:
            self._protocol.data_received(data)
            self._handed_on(len(data))
        else:
            self._unread += data

    def credited(self, count: int) -> None:
        """The peer has taken `count` bytes."""
        if not 0 < count <= WINDOW - self._credit:
            self._fail("the peer credits what was never sent")
            return
        self._credit += count
        if self._unsent:
            self.send_waiting()

    def ended(self) -> None:
        """The peer has nothing more to say."""
        if not self._end_received:
            self._end_received = True
            self._deliver()

    def closed_by_peer(self) -> None:
        """The peer has closed: what it said is still delivered, what it would be told is not."""
        self._peer_closed = True
        self._unsent.clear()
        self._resume_protocol()
        if not self._accepted:
            self.lose(ConnectionRefusedError(f"port {self.port}: the peer closed the connection"))
        elif self._closing:
            self.lose(None)
        else:
            self.ended()

    def reset_by_peer(self) -> None:
        """The peer has refused or reset it."""
        if self._accepted:
            self.lose(ConnectionResetError(f"the peer reset the connection to port {self.port}"))
        else:
            self.lose(ConnectionRefusedError(f"nobody listens on port {self.port}"))

    def lose(self, error: Exception | None) -> None:
        """It has ended, with nothing more to be said to the peer. Idempotent."""
        if self._lost:
            return
        self._lost = self._closing = True
        self._session.forget(self._id, self)
        self._unsent.clear()
        self._unread.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the connection was closed"))
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, error)

    # Sending

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._end_written:
            raise RuntimeError("write after write_eof")
        if self._closing or not data:
            return
        if self._peer_closed:
            self.lose(ConnectionResetError(f"the peer has closed the connection to port {self.port}"))
            return
        if not self._unsent and len(data) <= MAX_PAYLOAD and len(data) <= self._credit and self._session.writable:
            self._credit -= len(data)
            self._session.send(Kind.DATA, self._id, 0, bytes(data))
            return
        self._unsent += data
        self.send_waiting()
        if len(self._unsent) > self._high and not self._protocol_paused and self._protocol is not None:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def send_waiting(self) -> None:
        """Send what waits, as far as credit and line allow."""
        while self._unsent and self._credit and not self._lost:
            if not self._session.writable:
                self._session.call_when_writable(self)
                return
            self.send_one()

    def send_one(self) -> bool:
        """Send one frame; False when there is nothing that may be sent now."""
        if not self._unsent or not self._credit or self._lost:
            return False
        size = min(MAX_PAYLOAD, self._credit)
        piece = bytes(self._unsent[:size])
        del self._unsent[:size]
        self._credit -= len(piece)
        self._session.send(Kind.DATA, self._id, 0, piece)
        self._sent_some()
        return True

    def _sent_some(self) -> None:
        """Go on with what had to wait until this much was sent."""
        if self._lost:
            return
        if len(self._unsent) <= self._low:
            self._resume_protocol()
        if self._unsent or self._lost:
            return
        if self._closing:
            self._say_goodbye(Kind.CLOSE)
            self.lose(None)
        elif self._end_written and not self._end_sent and not self._peer_closed:
            self._end_sent = True
            self._session.send(Kind.FIN, self._id)

    def _resume_protocol(self) -> None:
        if self._protocol_paused:
            self._protocol_paused = False
            assert self._protocol is not None
            self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._closing or self._end_written:
            return
        self._end_written = True
        self._sent_some()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        # Whoever closes reads no more; the peer may still have to take what was written.
        self._handed_on(len(self._unread))
        self._unread.clear()
        if self._unsent:
            self._lingering = self._loop.call_later(LINGER_SECONDS, self.abort)
        self._sent_some()

    def abort(self) -> None:
        if not self._lost:
            self._say_goodbye(Kind.RST)
            self.lose(None)

    def _fail(self, reason: str) -> None:
        self._say_goodbye(Kind.RST)
        self.lose(ConnectionResetError(f"port {self.port}: {reason}"))

    def _say_goodbye(self, kind: Kind) -> None:
        if not self._peer_closed:
            self._session.send(kind, self._id)

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high, self._low = high, low

    # Receiving

    def _deliver(self) -> None:
        """Hand on what has come, as far as the protocol takes it."""
        protocol = self._protocol
        if protocol is None:
            return
        if self._unread and self._reading and not self._closing:
            data = bytes(self._unread)
            self._unread.clear()
            protocol.data_received(data)
            self._handed_on(len(data))
        if self._end_received and not self._end_delivered and self._reading and not self._unread and not self._closing:
            self._end_delivered = True
            if not protocol.eof_received():
                self.close()

    def _handed_on(self, count: int) -> None:
        self._owed += count
        if self._owed >= _CREDIT_STEP and not (self._lost or self._peer_closed or self._end_received):
            self._room += self._owed
            self._session.send(Kind.CREDIT, self._id, self._owed)
            self._owed = 0

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._deliver()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    # The rest of asyncio's interface

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
