"""What a runtime writes down about a process that it started, so that a later agent finds it again."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvm.guest.processes import Identity

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A started process and its control groups. Worthless after a reboot, and then not read."""

    identity: Identity
    groups: tuple[Path, ...] = ()

    def write(self, path: Path) -> None:
        """Replace the record; a reader sees the old or the new one whole."""
        text = json.dumps(
            {
                "pid": self.identity.pid,
                "start_time": self.identity.start_time,
                "boot_id": boot_id(),
                "groups": [str(group) for group in self.groups],
            }
        )
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, path)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """The record, None when there is none of this boot."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text())
            if found["boot_id"] == boot_id():
                identity = Identity(int(found["pid"]), int(found["start_time"]))
                return cls(identity=identity, groups=tuple(Path(group) for group in found["groups"]))
        return None

    @classmethod
    def process(cls, path: Path) -> Identity | None:
        """The process of the record."""
        record = cls.load(path)
        return None if record is None else record.identity

    @staticmethod
    def supervisor(path: Path) -> Identity | None:
        """The process that a supervisor wrote down as itself: known even if the agent died right after starting it."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text())
            own = found["supervisor"]
            return Identity(int(own["pid"]), int(own["start_time"]))
        return None


def boot_id() -> str:
    """Differs after each boot of this machine; empty where the kernel does not say."""
    with suppress(OSError):
        return BOOT_ID.read_text().strip()
    return ""
