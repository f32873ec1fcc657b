"""Many connections over one stream of bytes that may break off anywhere and go on with something else.

That is what a virtio serial port is to host and guest: the host comes and goes (agent restarts, sleep, wake), and the
guest is not told, or too late. So the host begins each session with HELLO and a fresh nonce, and trusts nothing before
the ACK that repeats it; the guest drops everything at a HELLO. Half a frame left in the guest makes the next one fail
its checksum, and the guest hunts for the HELLO; should it wait for the rest instead, the host's padding completes it.

The ends here do no input or output: whoever owns the stream gives them what was read and takes what is to be written.
`mvm.runtime.link` is the host's owner, `mvm.guest.channel_service` the guest's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from mvm.wire.mux_frames import NONCE_BYTES, PADDING, Desynchronised, Inbox, Kind, encode
from mvm.wire.mux_session import OnOpen, Session

log = logging.getLogger(__name__)

FIRST_REPEAT_SECONDS = 0.2
"""How long an ACK may take before HELLO is repeated, behind the padding this time."""
LONGEST_REPEAT_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
"""Pauses before a session is begun anew when the former one broke; doubled each time it does so at once."""
SETTLED_SECONDS = 10.0


def fresh_nonce() -> bytes:
    """A nonce that nobody can know."""
    return os.urandom(NONCE_BYTES)


class HostEnd:
    """The host's end of one stream: begins sessions, and begins anew when one breaks."""

    def __init__(
        self,
        *,
        transmit: Callable[[bytes], None],
        untaken: Callable[[], int],
        on_open: OnOpen,
        make_nonce: Callable[[], bytes] = fresh_nonce,
    ) -> None:
        """`transmit` takes bytes for the stream, `untaken` says how many of them still wait to be written."""
        self._transmit = transmit
        self._untaken = untaken
        self._on_open = on_open
        self._make_nonce = make_nonce
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox()
        self._hello: bytes | None = None
        self._ack = b""
        self._session: Session | None = None
        self._writable = True
        self._ended: str | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._established_at = 0.0

    async def session(self) -> Session:
        """The session, as soon as there is one. Raises `ConnectionResetError` once the stream has ended."""
        while self._session is None:
            if self._ended is not None:
                raise ConnectionResetError(self._ended)
            await self._changed.wait()
        return self._session

    @property
    def incomplete(self) -> int:
        """Bytes that were read and are no whole frame yet."""
        return len(self._inbox)

    def begin(self) -> None:
        """The stream is there: begin a session."""
        nonce = self._make_nonce()
        self._inbox.clear()
        self._hello = encode(Kind.HELLO, payload=nonce)
        self._ack = encode(Kind.ACK, payload=nonce)
        self._transmit(self._hello)
        self._call_later(FIRST_REPEAT_SECONDS, self._repeat, FIRST_REPEAT_SECONDS, PADDING)

    def _repeat(self, pause: float, padding: bytes) -> None:
        """Say it again: who should have answered may have begun anew meanwhile, or be inside half a frame."""
        assert self._hello is not None
        if not self._untaken():  # otherwise nobody reads yet, and what was said is still there to be read
            self._transmit(padding + self._hello)
            padding = b""
        pause = min(2 * pause, LONGEST_REPEAT_SECONDS)
        self._call_later(pause, self._repeat, pause, padding)

    def received(self, data: bytes) -> None:
        """Take in what was read."""
        if self._hello is None:
            return
        self._inbox.feed(data)
        if self._session is None:
            if not self._inbox.skip_past(self._ack):
                return
            self._establish()
        session = self._session
        try:
            while self._session is session and session is not None and (frame := self._inbox.frame()) is not None:
                if frame[0] == Kind.LOST:
                    raise Desynchronised("the guest's end began anew")
                session.handle(frame)
        except Desynchronised as error:
            self._break(str(error))

    def _establish(self) -> None:
        self._cancel_timer()
        self._session = Session(is_host=True, on_open=self._on_open, transmit=self._transmit, writable=self._writable)
        self._established_at = self._loop.time()
        self._changed.set()

    def _break(self, reason: str) -> None:
        """Nothing more can be understood: end all connections, and begin anew after a pause."""
        log.info("the channel is begun anew: %s", reason)
        if self._loop.time() - self._established_at >= SETTLED_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._drop(reason)
        self._hello = None
        self._inbox.clear()
        self._call_later(self._pause, self.begin)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def end(self, reason: str) -> None:
        """The stream has ended, and every connection with it. Idempotent."""
        if self._ended is None:
            self._ended = reason
            self._cancel_timer()
            self._hello = None
            self._drop(reason)
            self._changed.set()

    def pause_writing(self) -> None:
        """The stream takes no more for now."""
        self._writable = False
        if self._session is not None:
            self._session.pause_writing()

    def resume_writing(self) -> None:
        self._writable = True
        if self._session is not None:
            self._session.resume_writing()

    def _drop(self, reason: str) -> None:
        session, self._session = self._session, None
        self._changed.clear()
        if session is not None:
            session.drop(reason)

    def _call_later(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, action, *arguments)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GuestEnd:
    """The guest's end of one stream: answers every HELLO with a fresh session, and never begins one."""

    def __init__(self, *, transmit: Callable[[bytes], None], discard: Callable[[], None], on_open: OnOpen) -> None:
        """`discard` forgets all bytes given to `transmit` that were not written yet."""
        self._transmit = transmit
        self._discard = discard
        self._on_open = on_open
        self._inbox = Inbox()
        self._nonce: bytes | None = None
        self._writable = True
        self.session: Session | None = None
        """None while there is no host that has said HELLO."""

    @property
    def incomplete(self) -> int:
        """Bytes that were read and are no whole frame yet."""
        return len(self._inbox)

    def begin(self) -> None:
        """The stream is there: should the host believe to be in a session, it was with a predecessor."""
        self._transmit(PADDING + encode(Kind.LOST))

    def received(self, data: bytes) -> None:
        """Take in what was read."""
        self._inbox.feed(data)
        while self._next():
            pass

    def _next(self) -> bool:
        """Take in a frame; False when there is no whole one."""
        session = self.session
        if session is None:
            nonce = self._inbox.skip_past_hello()
            if nonce is not None:
                self._welcome(nonce)
            return nonce is not None
        try:
            frame = self._inbox.frame()
            if frame is None:
                return False
            if frame[0] == Kind.HELLO:
                self._welcome(frame[3])
            else:
                session.handle(frame)
        except Desynchronised as error:
            self.lose(str(error))
        return True

    def _welcome(self, nonce: bytes) -> None:
        if nonce != self._nonce:
            self._drop("the host began anew")
            # The host hunts for its ACK: whatever else would still be written is of no use to it.
            self._discard()
            self._nonce = nonce
            self.session = Session(
                is_host=False, on_open=self._on_open, transmit=self._transmit, writable=self._writable
            )
        self._transmit(encode(Kind.ACK, payload=nonce))

    def lose(self, reason: str) -> None:
        """Out of step: end all connections, and have the host say HELLO."""
        log.info("the channel is lost: %s", reason)
        self._drop(reason)
        self._discard()
        self._transmit(PADDING + encode(Kind.LOST))

    def host_left(self) -> None:
        """Nobody is at the other end, or was a moment ago.

        The kernel tells of the end of one host and of what the next one says by different ways. The next one may have
        been answered already, by what is written or still waits to be: it is told to begin anew.
        """
        if self.session is not None:
            self.lose("the host has left")
        self._inbox.clear()

    def _drop(self, reason: str) -> None:
        session, self.session = self.session, None
        self._nonce = None
        if session is not None:
            session.drop(reason)

    def pause_writing(self) -> None:
        """The stream takes no more for now."""
        self._writable = False
        if self.session is not None:
            self.session.pause_writing()

    def resume_writing(self) -> None:
        self._writable = True
        if self.session is not None:
            self.session.resume_writing()
