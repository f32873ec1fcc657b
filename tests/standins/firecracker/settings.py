"""Where a stand-in's directory is, what it writes down there, and the faults that a test puts there.

Everything of one set of stand-ins is below one directory that the test chose when it installed them: `journal.jsonl`
(what was asked and what happened), `faults/` (what shall go wrong), `guests/` (roots of guests that run) and `data/`
(what guests have on their data drives).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"
FAULTS = "faults"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a stand-in was installed with."""

    control: Path
    version: str = "1.16.1"

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The version to compare with."""
        major, minor, patch = (int(part) for part in self.version.partition("-")[0].split("."))
        return major, minor, patch


class Journal:
    """One JSON object a line, each written whole; a process that is killed leaves what it had said."""

    def __init__(self, settings: Settings, instance: str) -> None:
        self._path = settings.control / JOURNAL
        self._about = {"pid": os.getpid(), "id": instance, "version": settings.version}

    def note(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "time": time.time(), **self._about, **fields})
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


def read_journal(control: Path, *events: str) -> list[dict[str, Any]]:
    """What the stand-ins of a directory wrote down, in order; only these events when any are named."""
    try:
        lines = (control / JOURNAL).read_text().splitlines()
    except FileNotFoundError:
        return []
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if not events or entry["event"] in events]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong once: at the `nth` call of a process that begins like this."""

    what: str
    """`delay`, `error`, `die` (instead of doing it), `die_after` (before answering), `truncate` (the memory file that
    was just written), `truncate_state`, `hang_guest` (host-initiated connections)."""
    method: str
    path: str
    nth: int = 1
    seconds: float = 0.0
    instance: str = ""
    """Only that instance's; empty: whoever comes first."""


def inject(control: Path, fault: Fault) -> Path:
    """Have a fault happen; the file is gone once it has."""
    place = control / FAULTS
    place.mkdir(exist_ok=True)
    path = place / f"{secrets.token_hex(4)}.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(fault.__dict__))
    unfinished.replace(path)
    return path


class Faults:
    """The faults of one process."""

    def __init__(self, settings: Settings, instance: str) -> None:
        self._place = settings.control / FAULTS
        self._instance = instance
        self._calls: dict[tuple[str, str], int] = {}

    def due(self, method: str, path: str) -> list[Fault]:
        """Those that happen at this call; each is taken by one process only."""
        call = (method, path)
        self._calls[call] = self._calls.get(call, 0) + 1
        return [fault for file, fault in self._waiting() if self._is_due(fault, call) and _taken(file)]

    def _is_due(self, fault: Fault, call: tuple[str, str]) -> bool:
        method, path = call
        if fault.instance not in ("", self._instance) or fault.method != method or not path.startswith(fault.path):
            return False
        return sum(count for (m, p), count in self._calls.items() if m == method and p.startswith(fault.path)) == (
            fault.nth
        )

    def _waiting(self) -> Iterator[tuple[Path, Fault]]:
        for file in sorted(self._place.glob("*.json")):
            with suppress(FileNotFoundError):  # another process was quicker
                yield file, Fault(**json.loads(file.read_text()))


def _taken(file: Path) -> bool:
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
