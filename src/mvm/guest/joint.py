"""Joining two connections of whatever kind, without a task: what comes from one is written to the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Half(asyncio.Protocol):
    """The protocol of one of two joined connections. Nothing is read from the first before the second is there."""

    def __init__(self, on_lost: Callable[[], None] | None = None) -> None:
        """`on_lost` is called when this half's connection has ended."""
        self.transport: asyncio.Transport | None = None
        self._other: Half | None = None
        self._on_lost = on_lost
        self._ended = False

    def join(self, other: Half) -> None:
        """Make the two one joint; before either has a connection."""
        self._other, other._other = other, self

    @property
    def _peer(self) -> asyncio.Transport | None:
        return None if self._other is None else self._other.transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._peer is None:
            transport.pause_reading()
        else:
            self._peer.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self._peer is not None
        self._peer.write(data)

    def eof_received(self) -> bool:
        assert self._other is not None
        assert self._peer is not None
        assert self.transport is not None
        self._ended = True
        if self._other._ended:
            self._peer.close()
            self.transport.close()
        elif not self._peer.is_closing():
            self._peer.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._peer is not None:
            self._peer.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None:
            self._peer.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._on_lost is not None:
            self._on_lost()
        if self._peer is None:
            return
        if error is None:
            self._peer.close()
        else:
            self._peer.abort()
