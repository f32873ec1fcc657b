"""Running nix: where it is, with which options, and how what it tells becomes progress, a log and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mvm.image import commands
from mvm.image.base import OnProgress
from mvm.image.nix.events import Lines, Told
from mvm.image.nix.explain import explain
from mvm.image.nix.place import MOST_PRINTED, Place
from mvm.model.errors import InvalidInput, MvmError, TimedOut, Unavailable

OLDEST = (2, 8)
"""Everything that is used here is in this version (Debian 12's) and in those after it."""
QUERY_SECONDS = 1800.0
"""Reading a flake downloads it with all that it takes in; an evaluation may have to build something first."""

_PLACES = ("/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin", "~/.nix-profile/bin")
"""Where nix is when it is on no service's search path."""
_OPTIONS = ("--extra-experimental-features", "nix-command flakes", "--log-format", "internal-json")
_VERSION = re.compile(r"\(.*\) (\d+)\.(\d+)\S*")
_PROBE_SECONDS = 20.0
_CHUNK = 2**20
_LINK = "result"

OnFailure = Callable[[Told], MvmError | None]
"""A better error for a failure than the general one, or None."""


def search_path() -> str:
    """Where nix, and what it starts (git, ssh), are looked for."""
    return os.pathsep.join((commands.search_path(), *(os.path.expanduser(place) for place in _PLACES)))


def find() -> Path | None:
    """The program, if there is one."""
    found = shutil.which("nix", path=search_path())
    return Path(found) if found else None


def version(program: Path) -> tuple[int, int]:
    """Its version; `Unavailable` when it does not say one."""
    try:
        answer = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{program} cannot be run: {error}", hint="install Nix anew") from error
    found = _VERSION.search(answer.stdout)
    if answer.returncode or found is None:
        said = (answer.stderr or answer.stdout).strip()[:200]
        raise Unavailable(f"'{program} --version' says '{said}'", hint="install Nix anew")
    return int(found[1]), int(found[2])


def _nothing_better(_told: Told) -> MvmError | None:
    return None


class HostPlace:
    """This host as the place where nix runs (`mvm.image.nix.place`)."""

    def __init__(self, program: Path) -> None:
        self.program = str(program)

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
        environment = {"PATH": search_path()}
        return commands.execute(
            arguments, what=what, output=output, errors=errors, watch=watch, environment=environment, limit=limit
        )

    def address(self, flake: str) -> str:
        return flake

    def original(self, address: str) -> str:
        return address

    def read(self, directory: PurePosixPath, name: str, *, longest: int) -> bytes | None:
        path = Path(directory, name)
        if not path.resolve().is_relative_to(Path(directory).resolve()):
            raise InvalidInput(f"{name} is a link out of its flake", hint="tell who keeps the flake")
        try:
            with path.open("rb") as file:
                return file.read(longest + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInput(f"{name} cannot be read: {error}", hint="tell who keeps the flake") from error

    def link(self, directory: Path) -> PurePosixPath:
        return PurePosixPath(directory / _LINK)

    def fetch(self, link: PurePosixPath, names: Sequence[str], directory: Path, on_progress: OnProgress) -> Path:
        return Path(link)


class Nix:
    """nix in one place, with one log that its runs are written to, if they are to be."""

    def __init__(self, place: Place, log: Path | None) -> None:
        self.place = place
        self.log = log

    def ask(
        self,
        arguments: Sequence[str],
        *,
        what: str,
        on_progress: OnProgress,
        limit: float = QUERY_SECONDS,
        on_failure: OnFailure = _nothing_better,
    ) -> str:
        """Run nix to its end and return what it printed.

        `what` is shown to people while nix tells nothing better. What `on_progress` raises ends nix with all that it
        has started, and is raised on.
        """
        told, lines = Told(what), Lines()
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
            open(self.log or os.devnull, "a", opener=_for_us_only, encoding="utf-8") as log,
        ):
            command = [self.place.program, *_OPTIONS, *arguments]
            log.write(f"$ {' '.join(command)}\n")
            read = 0

            def follow() -> None:
                nonlocal read
                while data := os.pread(errors.fileno(), _CHUNK, read):
                    read += len(data)
                    _write(log, [told.take(line) for line in lines.take(data)])

            def watch() -> None:
                follow()
                on_progress(told.step())

            on_progress(told.step())
            try:
                status = self.place.execute(command, what=what, output=output, errors=errors, watch=watch, limit=limit)
            except TimedOut as error:
                raise TimedOut(error.message, hint=f"what it was doing: {self.log}") from error
            follow()
            _write(log, [told.take(line) for line in lines.rest()])
            if status:
                raise on_failure(told) or explain(what, status, told, self.log)
            output.seek(0)
            printed = output.read(MOST_PRINTED + 1)
            if len(printed) > MOST_PRINTED:
                raise too_much_printed(what)
            return printed.decode(errors="replace")


def too_much_printed(what: str) -> InvalidInput:
    """The error of a run whose answer is longer than any that nix gives."""
    return InvalidInput(f"{what}: nix printed more than {MOST_PRINTED} bytes", hint="tell who keeps the flake")


def as_json(text: str, what: str) -> Any:
    """What nix printed, as values."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unavailable(
            f"{what} gave no JSON: {text[:100]!r}", hint="is this a nix of another kind? `nix --version`"
        ) from None


def _write(log: IO[str], texts: Sequence[str | None]) -> None:
    log.writelines(f"{text}\n" for text in texts if text)
    log.flush()


def _for_us_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
