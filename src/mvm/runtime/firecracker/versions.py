"""Versions of Firecracker, and what each can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mvm.model.errors import Unavailable

_FORM = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?")


@dataclass(frozen=True, order=True)
class Version:
    """One release; what stands behind the numbers (`-dev`) tells two builds apart and decides nothing else."""

    major: int
    minor: int
    patch: int
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> Version:
        """The first version in a text. Raises `Unavailable` when there is none."""
        found = _FORM.search(text)
        if found is None:
            raise Unavailable(f"there is no version in {text.strip()[:80]!r}")
        return cls(int(found[1]), int(found[2]), int(found[3]), found[4] or "")

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}{self.suffix}"


OLDEST = Version(1, 15, 0)
"""Before it, snapshots of guests with more than 3 GiB could be corrupt (facts/FIRECRACKER.md)."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What differs between the versions that this runtime takes."""

    bare_resume: bool
    """Connections to a guest that was paused and goes on without a snapshot work. In 1.16 they hang for ever
    (firecracker#6100, mended after 1.16.1); of 1.15 nothing is known, so it counts as broken."""


def features(version: Version) -> Features:
    """What a version can do. Raises `Unavailable` for one that is too old."""
    if version < OLDEST:
        raise Unavailable(
            f"Firecracker {version} is too old: {OLDEST} is the oldest that mvm takes", hint="`mvm setup firecracker`"
        )
    return Features(bare_resume=version >= Version(1, 17, 0))
