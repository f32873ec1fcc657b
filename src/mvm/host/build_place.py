"""A machine of role builder as a place where nix runs (`mvm.image.nix.place`).

Everything goes by what every guest has: commands by `Exec`, and files out of it at a guest port (`mvm.wire.transfer`).
The code in it is somebody else's and may be root there, so nothing that comes from it is believed: outputs are bounded,
every wait has a limit, and what was built is looked at by `mvm.image.nix.artifacts` as any flake's is.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from mvm.guest.exec import TIMEOUT_STATUS
from mvm.host.in_loop import InLoop
from mvm.image.base import OnProgress
from mvm.image.nix.place import MOST_PRINTED
from mvm.image.nix.program import too_much_printed
from mvm.model.errors import InvalidInput, TimedOut, Unavailable
from mvm.openclaw.install import Progress
from mvm.runtime.base import Connection
from mvm.wire import transfer
from mvm.wire.messages import MAX_OUTPUT, ExecResult

ROOM = "/data/build"
"""Directory of a build in the machine, on its data drive."""
SOURCES = f"{ROOM}/sources"
"""What came along from this host."""
NIX = "/usr/bin/nix"
GUEST = ("/usr/bin/python3", "-I", "-S", "/opt/mvm/guest.pyz")
STORE = "/nix"
STORE_ON_DATA = "/data/nix"
"""Nix's store must be where every store is, and has its room on the data drive."""
SETTLE_SECONDS = 60
QUERY_SECONDS = 60
"""What a command may take that only looks."""
POLL_SECONDS = 1.0
"""How often it is asked for what nix has told."""
MOST_TOLD = 256 * 2**20
"""Bytes that one run of nix may tell while it works; a flake that prints for ever is not to fill this host's disk."""
MOST_FETCHED = 16 * 2**30
"""Bytes of an image."""
LEAST_LEFT = 2**30
"""Bytes that are left on this host's disk, however large an image is."""
FETCH_SECONDS = 3600

_INTO_FILES = 'exec "$@" >"$0/stdout" 2>"$0/stderr"'
_MIB = 2**20


class BuildGuest(Protocol):
    """The guest of a machine. Both raise `MvmError`."""

    async def execute(self, argv: Sequence[str], *, seconds: int) -> ExecResult:
        """Run a command in it."""

    async def connect(self, port: int) -> Connection:
        """Connect to one of its ports; `Unavailable` when nobody listens there."""


class MachinePlace:
    """A machine that runs. Methods block: they are for a thread, not for the agent's loop."""

    program = NIX

    def __init__(
        self,
        guest: BuildGuest,
        loop: InLoop,
        *,
        sources: Mapping[Path, str],
        environment: Mapping[str, str],
        slowness: float = 1.0,
    ) -> None:
        """`sources` are the names under which things of this host are in it; `environment` is for its nix."""
        self._guest = guest
        self._loop = loop
        self._sources = {str(path): f"{SOURCES}/{name}" for path, name in sources.items()}
        self._environment = {
            "HOME": "/root",
            "TMPDIR": f"{ROOM}/scratch",
            "XDG_CACHE_HOME": f"{ROOM}/cache",
            # A repository that came along is of whoever runs the agent, and git takes none of somebody else's.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            **environment,
        }
        self._slowness = slowness

    async def settle(self) -> None:
        """Put the store where it belongs. Raises `MvmError`."""
        for command in (
            ("mkdir", "-p", STORE_ON_DATA, f"{ROOM}/scratch", f"{ROOM}/cache"),
            ("mount", "--bind", STORE_ON_DATA, STORE),
        ):
            result = await self._guest.execute(command, seconds=self._seconds(SETTLE_SECONDS))
            if result.status:
                raise Unavailable(
                    f"'{' '.join(command)}' failed in the machine to build in: {_last(result.stderr)}",
                    hint="is its image as it should be? Remove it (docs/images.md), and it is built anew",
                )

    def execute(
        self,
        arguments: Sequence[str],
        *,
        what: str,
        output: IO[bytes],
        errors: IO[bytes],
        watch: Callable[[], None],
        limit: float,
    ) -> int:
        return self._loop.run(self._execute(arguments, what, output, errors, limit), watch)

    def address(self, flake: str) -> str:
        for here, there in self._sources.items():
            flake = flake.replace(here, there, 1)
        return flake

    def original(self, address: str) -> str:
        for here, there in self._sources.items():
            address = address.replace(there, here, 1)
        return address

    def read(self, directory: PurePosixPath, name: str, *, longest: int) -> bytes | None:
        return self._loop.run(self._read(str(directory / name), longest))

    def link(self, directory: Path) -> PurePosixPath:
        return PurePosixPath(ROOM, "result")

    def fetch(self, link: PurePosixPath, names: Sequence[str], directory: Path, on_progress: OnProgress) -> Path:
        output = directory / "output"
        output.mkdir()
        step = Progress(text="copying the image out of the machine")

        def on_bytes(done: int, size: int) -> None:
            nonlocal step
            step = Progress(
                text="copying the image out of the machine (MiB)", done=done // _MIB, total=max(1, -(-size // _MIB))
            )

        most = min(MOST_FETCHED, (shutil.disk_usage(directory).free - LEAST_LEFT) // 2)  # it is copied once more
        fetching = self._fetch(str(link), names, output, most, on_bytes)
        self._loop.run(fetching, lambda: on_progress(step))
        return output

    # In the loop

    async def _execute(
        self, arguments: Sequence[str], what: str, output: IO[bytes], errors: IO[bytes], limit: float
    ) -> int:
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        command = ["/bin/sh", "-c", _INTO_FILES, ROOM, "/usr/bin/env", *variables, *arguments]
        began = time.monotonic()
        running = asyncio.create_task(self._guest.execute(command, seconds=max(1, round(limit))))
        told = _Told(f"{ROOM}/stderr", errors, most=MOST_TOLD)
        try:
            while not running.done():
                await asyncio.wait([running], timeout=POLL_SECONDS)
                if not running.done():
                    with suppress(Unavailable):  # a machine that is busy says it the next time
                        await self._follow_errors(told)
            result = running.result()
        except Unavailable as error:
            raise Unavailable(f"{what} failed: {error.message}", hint="did its machine run out of memory?") from error
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await self._follow_errors(told)
        if result.status == TIMEOUT_STATUS and time.monotonic() - began >= limit:
            raise TimedOut(f"{what} was given up after {limit:.0f} s", hint="is the network stuck?")
        if not await self._follow(_Told(f"{ROOM}/stdout", output, most=MOST_PRINTED)):
            raise too_much_printed(what)
        return result.status

    async def _follow_errors(self, told: _Told) -> None:
        if not await self._follow(told):
            raise InvalidInput(f"nix told more than {told.most // _MIB} MiB", hint="tell who keeps the flake")

    async def _follow(self, told: _Told) -> bool:
        """Copy what has been told since the last time; whether it is no more than it may be."""
        while True:
            piece = await self._piece(told.path, told.bytes)
            told.bytes += len(piece)
            if told.bytes > told.most:
                return False
            told.target.write(piece)
            told.target.flush()
            if len(piece) < MAX_OUTPUT:
                return True

    async def _piece(self, path: str, at: int) -> bytes:
        """As much of a file from a place on as an answer holds; nothing of one that is not there (yet)."""
        block = (f"bs={MAX_OUTPUT}", "count=1", f"skip={at}", "iflag=skip_bytes", "status=none")
        command = ("dd", f"if={path}", *block)
        return (await self._guest.execute(command, seconds=self._seconds(QUERY_SECONDS))).stdout

    async def _read(self, path: str, longest: int) -> bytes | None:
        exists = await self._guest.execute(("test", "-e", path), seconds=self._seconds(QUERY_SECONDS))
        if exists.status:
            return None
        content = b""
        while len(content) <= longest:
            piece = await self._piece(path, len(content))
            content += piece
            if len(piece) < MAX_OUTPUT:
                break
        return content[: longest + 1]

    async def _fetch(
        self, link: str, names: Sequence[str], output: Path, most: int, on_bytes: Callable[[int, int], None]
    ) -> None:
        command = (*GUEST, "offer", link, *names)
        offering = asyncio.create_task(self._guest.execute(command, seconds=FETCH_SECONDS))
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                while not await self._received(names, output, most, on_bytes):
                    await asyncio.wait([offering], timeout=POLL_SECONDS / 4)
                    if offering.done():
                        said = _last(offering.result().stderr)
                        raise Unavailable(f"what was built is not offered by the machine: {said}")
        except TimeoutError:
            raise TimedOut(f"copying the image out of the machine was given up after {FETCH_SECONDS} s") from None
        except transfer.TransferError as error:
            raise Unavailable(
                f"what was built could not be copied out of the machine: {error}", hint="try again"
            ) from error
        finally:
            offering.cancel()
            await asyncio.gather(offering, return_exceptions=True)

    async def _received(
        self, names: Sequence[str], output: Path, most: int, on_bytes: Callable[[int, int], None]
    ) -> bool:
        """Take what is offered. False while nothing is; how a port says so depends on what carries the channel."""
        try:
            reader, writer = await self._guest.connect(transfer.PORT)
        except Unavailable:
            return False
        try:
            await transfer.receive(reader, output, names, most=most, on_bytes=on_bytes)
        except transfer.NothingCame:
            return False
        finally:
            writer.close()
        return True

    def _seconds(self, seconds: int) -> int:
        return round(seconds * self._slowness)


@dataclass
class _Told:
    """A file there that grows, and how much of it has been copied to one here."""

    path: str
    target: IO[bytes]
    most: int
    bytes: int = 0


def _last(said: bytes) -> str:
    """The last line of what a program said."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
