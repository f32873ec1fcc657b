"""A virtio serial port as the guest has it: a character device whose other end, the host, comes and goes.

While nobody is there, poll says so without end and reading returns nothing, so the usual event loop would spin. Its
poll set is therefore one of our own, told of changes only (edge-triggered), and the loop watches that.
"""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path
from typing import Protocol

PORT_NAME = "org.mvm.mux"
READ_BYTES = 64 * 1024
HIGH_WATER = 64 * 1024
MOST_UNWRITTEN = 1024 * 1024
"""Bytes that may wait for the host: frames without data are not held back by `pause_writing`, so there is an end."""


class PortUser(Protocol):
    """Who is told what happens at a port."""

    def received(self, data: bytes) -> None: ...

    def host_left(self) -> None:
        """Nobody is at the other end. May be said more than once."""

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def lose(self, reason: str) -> None:
        """More waits to be written than may."""


def find_port(name: str = PORT_NAME, classes: Path = Path("/sys/class"), devices: Path = Path("/dev")) -> Path | None:
    """The device of the port with that name, None when the machine has none; there is no udev that would link it."""
    for entry in sorted(classes.glob("virtio-ports/*/name")):
        if entry.read_text().strip() == name:
            return devices / entry.parent.name
    return None


class VirtioPort:
    """An open port. `user` is told of everything on the event loop."""

    def __init__(self, descriptor: int, user: PortUser) -> None:
        """Takes over the descriptor."""
        self._descriptor = descriptor
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._unwritten = bytearray()
        self._paused = False
        self._again: asyncio.Handle | None = None
        self._closed = False
        os.set_blocking(descriptor, False)
        self._changes = select.epoll()
        self._changes.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._loop.add_reader(self._changes.fileno(), self._changed)

    @property
    def unwritten(self) -> int:
        """Bytes that still wait for the host."""
        return len(self._unwritten)

    def write(self, data: bytes) -> None:
        """Have bytes written, now or when the host takes them; never blocks."""
        if self._closed:
            return
        self._unwritten += data
        if len(self._unwritten) == len(data):
            self._write()
        if len(self._unwritten) > MOST_UNWRITTEN:
            self._user.lose(f"the host left {len(self._unwritten)} bytes untaken")
        elif len(self._unwritten) > HIGH_WATER and not self._paused:
            self._paused = True
            self._user.pause_writing()

    def discard(self) -> None:
        """Forget what was not written yet."""
        self._unwritten.clear()
        self._resume()

    def close(self) -> None:
        """Let go of the port. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._changes.fileno())
        self._changes.close()
        os.close(self._descriptor)

    def _changed(self) -> None:
        nobody = any(events & select.EPOLLHUP for _, events in self._changes.poll(0))
        # A write that nobody takes is a change itself where the device is a terminal: it would be tried without end.
        if self._unwritten and not nobody:
            self._write()
            self._resume()
        self._read()

    def _write(self) -> None:
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._descriptor, self._unwritten)]
        except OSError:
            return  # nobody takes it now (EAGAIN, and EIO of other devices): the next change tells

    def _resume(self) -> None:
        if self._paused and len(self._unwritten) <= HIGH_WATER // 4:
            self._paused = False
            self._user.resume_writing()

    def _read(self) -> None:
        """Read until there is nothing more, in portions between which others get their turn."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        pieces, size = [], 0
        left = False
        while size < READ_BYTES:
            try:
                piece = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                left = True
                break
            pieces.append(piece)
            size += len(piece)
        else:
            self._again = self._loop.call_soon(self._read)
        if pieces:
            self._user.received(b"".join(pieces))
        if left and not self._closed:
            self._user.host_left()
