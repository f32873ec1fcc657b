"""`mvm deploy --watch`: the same pass again and again, until somebody ends it.

A pass comes when the manifest or one of its secret files changes, and at every interval. Whatever is wrong meanwhile
(a half-written file, an agent that is down) is told and survived: the deployment stays as the last good pass left it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvm.cli.output import json_text
from mvm.cli.progress import shown
from mvm.cli.reports import report_text
from mvm.model.errors import MvmError
from mvm.telemetry.printable import printable

if TYPE_CHECKING:
    from mvm.cli.deploy import Deployer

Json = dict[str, Any]
Signature = dict[Path, tuple[int, int, int] | None]

LOOK_SECONDS = 1.0
"""How often the files are looked at although nothing was told of them: some file systems tell nothing."""
SETTLE_MILLISECONDS = 200
"""How long changes that come together count as one."""


class Watch:
    """Passes over one deployment until SIGINT or SIGTERM."""

    def __init__(self, deployer: Deployer, *, interval: float, as_lines: bool) -> None:
        self._deployer = deployer
        self._interval = interval
        self._as_lines = as_lines
        self._stop = asyncio.Event()
        self._told = ""
        """What was told last; the same is not told to a person twice."""

    async def run(self) -> None:
        """Go on until a signal; what the agent has begun then, it finishes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        while not self._stop.is_set():
            seen = signature(self._deployer.files())
            await _first(asyncio.create_task(self._pass(), name="pass"), stopping)
            if not self._stop.is_set():
                await _first(asyncio.create_task(self._until_due(seen), name="wait"), stopping)
        if not self._as_lines:
            print("ended; the deployment stays as it is", file=sys.stderr)

    async def _pass(self) -> None:
        """Apply the files once; nothing that goes wrong is raised."""
        try:
            with shown() as on_progress:
                answer = await self._deployer.apply(on_progress)
        except MvmError as error:
            self._tell_error(error)
        except Exception as error:  # a defect in one pass must not end the watch over a deployment
            self._tell_error(MvmError(f"the pass failed: {type(error).__name__}: {error}", hint="it is tried again"))
        else:
            self._tell(answer)

    async def _until_due(self, seen: Signature) -> None:
        """Return when a file is not what it was before the last pass, at the end of the interval at the latest."""
        files = self._deployer.files()
        if any(path not in seen for path in files):
            seen = signature(files) | {path: was for path, was in seen.items() if path in files}
        try:
            async with asyncio.timeout(self._interval), aclosing(_looks(files)) as looks:
                async for _ in looks:
                    if signature(files) != {path: seen[path] for path in files}:
                        return
        except TimeoutError:
            return

    def _tell(self, answer: Json) -> None:
        if self._as_lines:
            return _line(answer)
        text = report_text(answer, name=answer["deployment"])
        if text != self._told or answer["changed"]:
            print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n{text}", flush=True)
        self._told = text

    def _tell_error(self, error: MvmError) -> None:
        if self._as_lines:
            return _line({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        text = f"error: {printable(error.message)}" + (f"\nhint: {printable(error.hint)}" if error.hint else "")
        if text != self._told:
            print(text, file=sys.stderr, flush=True)
        self._told = text


def _line(document: Json) -> None:
    print(json_text(document), flush=True)


async def _first(task: asyncio.Task[None], stopping: asyncio.Task[object]) -> None:
    """Wait for a task; it is ended when everything is to end."""
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and isinstance(error := task.exception(), OSError):
        raise error  # nobody reads what it tells, or the disk that it goes to is full


def signature(files: Iterable[Path]) -> Signature:
    """What tells whether files have changed, also where a link now leads elsewhere."""
    return {path: _stat(path) for path in files}


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


async def _looks(files: list[Path]) -> AsyncGenerator[None]:
    """A look at once, whenever something changes beside these files, and every `LOOK_SECONDS`."""
    yield
    directories = {path.absolute().parent for path in files}
    try:
        from watchfiles import awatch

        changes = awatch(
            *(path for path in directories if path.is_dir()),
            recursive=False,
            debounce=SETTLE_MILLISECONDS,
            rust_timeout=int(LOOK_SECONDS * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        async with aclosing(changes):
            async for _ in changes:
                yield
    except (OSError, RuntimeError):
        # No watch to be had here (too many of them, a directory that went away): looking has to do.
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            yield
