"""A machine to build in without a machine: its commands run on this host, in a directory that stands for its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.standins.nix.world import NixWorld

from mvm.guest.channel import UnixChannel
from mvm.guest.exec import TIMEOUT_STATUS
from mvm.guest.offer import offer
from mvm.host.build_place import GUEST, NIX, ROOM, MachinePlace
from mvm.host.in_loop import InLoop
from mvm.image.base import OnProgress, Readiness
from mvm.image.nix.place import Place
from mvm.model.errors import Unavailable
from mvm.runtime.base import Connection
from mvm.wire.messages import MAX_OUTPUT, ExecResult

HARMLESS = ("/bin/sh", "dd", "test")
"""What is run here: nix (by way of a shell), and what reads files."""


@dataclass
class HostAsGuest:
    """The guest: what it is told to run runs here, with the machine's paths replaced by those of this directory."""

    directory: Path
    nix: Path
    asked: list[tuple[str, ...]] = field(default_factory=list)
    running: int = 0
    fails: dict[str, Exception] = field(default_factory=dict)
    """A word of a command -> what running it raises."""
    spoiled: bytes | None = None
    """What is sent in place of files."""

    @property
    def room(self) -> Path:
        return self.directory / "room"

    @property
    def channel(self) -> UnixChannel:
        return UnixChannel(self.directory / "ch")

    async def execute(self, argv: Sequence[str], *, seconds: int) -> ExecResult:
        self.asked.append(tuple(argv))
        for word, error in self.fails.items():
            if any(word in one for one in argv):
                raise error
        if argv[: len(GUEST)] == GUEST:
            return await self._offer(argv[len(GUEST) :], seconds)
        # Nothing else: what puts a machine in order would do so with whatever machine tests run on.
        assert argv[0] in HARMLESS, f"{argv[0]} is not for this host"
        here = [word.replace(ROOM, str(self.room)) if word != NIX else str(self.nix) for word in argv]
        process = await asyncio.create_subprocess_exec(
            *here, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        self.running += 1
        try:
            async with asyncio.timeout(seconds):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            return ExecResult(status=TIMEOUT_STATUS)
        finally:
            self.running -= 1
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return ExecResult(status=process.returncode or 0, stdout=stdout[:MAX_OUTPUT], stderr=stderr[:MAX_OUTPUT])

    async def _offer(self, arguments: Sequence[str], seconds: int) -> ExecResult:
        verb, link, *names = arguments
        assert verb == "offer"
        try:
            if self.spoiled is not None:
                await self._spoil(self.spoiled)
            else:
                await offer(self.channel, Path(link.replace(ROOM, str(self.room))), names, seconds=seconds)
        except OSError as error:
            return ExecResult(status=1, stderr=f"offer: {error}\n".encode())
        return ExecResult(status=0)

    async def _spoil(self, content: bytes) -> None:
        ended = asyncio.Event()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(content)
            writer.close()
            ended.set()

        server = await self.channel.listen(5201, serve)
        await ended.wait()
        server.close()

    async def connect(self, port: int) -> Connection:
        try:
            return await self.channel.connect_own(port)
        except OSError as error:
            raise Unavailable(f"nobody listens on guest port {port}") from error


@dataclass
class OneMachine:
    """Makes such a machine (`mvm.image.nix.place.Machines`)."""

    loop: InLoop
    directory: Path
    world: NixWorld
    made: int = 0
    there: int = 0
    for_whom: list[str] = field(default_factory=list)
    guest: HostAsGuest = field(init=False)
    place: MachinePlace = field(init=False)

    def __post_init__(self) -> None:
        self.guest = HostAsGuest(self.directory, self.world.program)

    def probe(self) -> Readiness:
        return Readiness(usable=True, reason="it is built in a machine (scripted)")

    def stale(self) -> list[Path]:
        return []

    @contextmanager
    def machine(self, tenant: str, sources: Mapping[Path, str], on_progress: OnProgress) -> Iterator[Place]:
        self.made += 1
        self.there += 1
        self.for_whom.append(tenant)
        self.guest.room.mkdir(parents=True, exist_ok=True)
        self.place = MachinePlace(self.guest, self.loop, sources=sources, environment={"NIX_CONFIG": "substituters ="})
        try:
            yield self.place
        finally:
            self.there -= 1
