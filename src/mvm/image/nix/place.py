"""Where nix runs: on this host (`mvm.image.nix.program`), or in a machine of role builder (`mvm.host.build_machines`).

Nix is told the same in both places, by `Nix.ask`; what differs is how a program is started there, and that the files
which it names, its store among them, are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from mvm.image.base import OnProgress, Readiness

MOST_PRINTED = 4 * 2**20
"""Bytes that a run of nix may print as its answer, which is read whole."""


class Place(Protocol):
    """One place. Methods block, and raise `MvmError`."""

    @property
    def program(self) -> str:
        """nix, by its path there."""

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
        """Run a program there to its end, its output going into two files of this host, and return its status.

        `watch` is called while it runs; what it raises ends the program with all that it started, and is raised on.
        """

    def address(self, flake: str) -> str:
        """What a flake of this host's is called there."""

    def original(self, address: str) -> str:
        """The other way around."""

    def read(self, directory: PurePosixPath, name: str, *, longest: int) -> bytes | None:
        """A file in a directory there, as far as `longest` bytes and one more; None when there is none."""

    def link(self, directory: Path) -> PurePosixPath:
        """Where nix is to put the link to what it builds; `directory` is one of this host's for that build."""

    def fetch(self, link: PurePosixPath, names: Sequence[str], directory: Path, on_progress: OnProgress) -> Path:
        """Where on this host the files of these names, as far as they are there, are: what was built, or a copy."""


class Machines(Protocol):
    """Makes machines to build in. Methods block, and raise `MvmError`."""

    def probe(self) -> Readiness:
        """Whether a machine can be made here."""

    def stale(self) -> list[Path]:
        """What is kept for later machines and no recent one needed; removing it only costs time."""

    def machine(
        self, tenant: str, sources: Mapping[Path, str], on_progress: OnProgress
    ) -> AbstractContextManager[Place]:
        """A machine that runs, with copies of files and directories of this host, each under a name. At the end nothing
        is left of it."""
