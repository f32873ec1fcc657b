"""What the agent holds of a machine: the control channel, the copy of its console, and an eye on whether it runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from mvm.model.errors import TimedOut, Unavailable
from mvm.runtime import spawning
from mvm.runtime.base import Connection, Handler
from mvm.runtime.link import Link
from mvm.runtime.qemu import console, halted
from mvm.runtime.qemu.files import Files
from mvm.runtime.vsock_link import VsockLink

GREETING_SECONDS = 600.0
"""How long a guest that boots is waited for by itself; later, whoever connects waits for it."""

OUTPUT_LOOK_SECONDS = 5.0
"""How often what QEMU itself prints is looked at: there are complaints that a guest can cause without end."""


class Attachment:
    """One per instance, over all its processes: who listens on a host port goes on doing so after a restart."""

    def __init__(self, files: Files, *, who: str, link: VsockLink | None = None) -> None:
        """`link` is the channel where it is not the socket of the machine's QEMU."""
        self._files = files
        self._who = who
        self._link: Link | VsockLink = link or Link(files.mux, name=who)
        self.turn_at_monitor = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """A QEMU listens on the sockets: take part in what its guest says from the first byte on."""
        if self._tasks and not all(task.done() for task in self._tasks):
            return
        name = self._files.run_dir.name
        self._tasks = [
            asyncio.create_task(self._keep_words(), name=f"console {name}"),
            asyncio.create_task(self._greet(), name=f"channel {name}"),
        ]

    async def _keep_words(self) -> None:
        """Until the machine ends: what the guest says on its console and QEMU of it, within bounds, and its state."""
        name = self._files.run_dir.name
        looking = (
            asyncio.create_task(self._bound_output(), name=f"output {name}"),
            asyncio.create_task(halted.watch(self._files, self.turn_at_monitor, who=self._who), name=f"state {name}"),
        )
        try:
            await console.copy(self._files.console, self._files.console_log)
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)  # none is at the monitor afterwards

    async def _bound_output(self) -> None:
        while True:
            await asyncio.sleep(OUTPUT_LOOK_SECONDS)
            spawning.bound_output(self._files.output)

    async def _greet(self) -> None:
        with suppress(Unavailable):
            await self._link.ready(timeout=GREETING_SECONDS)

    async def connect(self, port: int, *, seconds: float) -> Connection:
        """Connect to a guest port. Raises `Unavailable`, saying which port and what the console said last."""
        if not self._files.monitor.exists():
            raise Unavailable(f"nobody listens on guest port {port} of {self._who}: it does not run")
        self.begin()
        try:
            return await self._link.connect(port, timeout=seconds)
        except TimedOut:
            raise
        except Unavailable as error:
            raise Unavailable(
                f"nobody listens on guest port {port} of {self._who}: {error.message}", hint=error.hint
            ) from error

    async def listen(self, port: int, handler: Handler) -> asyncio.AbstractServer:
        """Serve what the guest connects to, now and after each start."""
        server = await self._link.listen(port, handler)
        if self._files.monitor.exists():
            self.begin()  # of an earlier agent: its guest may have something to say
        return server

    async def process_ended(self) -> None:
        """There is no QEMU any more; the console's last words are on disk when this returns."""
        for task in self._tasks:
            await asyncio.wait([task], timeout=1.0)  # it ends by itself when the socket does
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def close(self) -> None:
        """Let go for good; a machine that runs goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()
