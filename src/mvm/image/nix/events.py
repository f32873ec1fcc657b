"""What `nix --log-format internal-json` tells while it works, as steps for people, a log to read, and errors.

Each line is `@nix ` and a JSON object: `start`, `stop` and `result` of activities, which have a type, and `msg`. The
numbers are those of Nix's own progress bar (Nix, src/libutil/logging.hh); what is not known here is passed over, so
that newer versions may tell more.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mvm.openclaw.install import Progress
from mvm.telemetry.printable import printable

TAIL = 12
"""Lines of builders that are remembered for an error."""

MOST_RUNNING = 4096
"""Activities that are known at a time; of more, nothing is shown."""
MOST_ERRORS = 50
LONGEST_ERROR = 4096
LONGEST_NAME = 1024
"""Characters that are kept; who tells may be in a machine and somebody else's, and tells as much as it likes."""

_PREFIX = "@nix "
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STORE_NAME = re.compile(r".*/[a-z0-9]{32}-(.+?)(?:\.drv)?$")
_ADVICE = re.compile(r"\(use '--show-trace'[^)]{0,200}\)")
_ERROR = re.compile(r"^error:\s+")
_MIB = 2**20
_MOST_BYTES = 2**63


class Activity(IntEnum):
    """Types of activities that something is shown of."""

    COPY_PATH = 100
    FILE_TRANSFER = 101
    BUILDS = 104
    BUILD = 105
    FETCH_TREE = 112


class Result(IntEnum):
    """Types of results that something is shown of."""

    LOG_LINE = 101
    PROGRESS = 105
    SET_EXPECTED = 106


_COUNTED = {
    "copying into Nix's store (MiB)": Activity.COPY_PATH,
    "downloading for Nix (MiB)": Activity.FILE_TRANSFER,
}
"""What is counted in bytes, and how it is called."""
_LOGGED = (Activity.BUILD, Activity.COPY_PATH, Activity.FILE_TRANSFER, Activity.FETCH_TREE)


@dataclass
class _Running:
    """An activity that has begun."""

    kind: int
    name: str
    done: int = 0
    expected: int = 0


class Told:
    """What one run of nix has told so far."""

    def __init__(self, doing: str) -> None:
        """`doing` is shown while nix tells nothing better."""
        self._doing = doing
        self._running: dict[int, _Running] = {}
        self._ended: Counter[int] = Counter()
        self._expected: dict[int, int] = {}
        """Bytes, by type of activity: of those that have ended, and how many are to come in all."""
        self._built: tuple[int, int] = (0, 0)
        self.errors: list[str] = []
        """In plain words, the oldest first."""
        self.tail: deque[str] = deque(maxlen=TAIL)
        """The last lines that builders have printed."""

    def take(self, line: str) -> str | None:
        """Take a line of stderr; returns what it adds to a log that people read."""
        if not line.startswith(_PREFIX):
            return self._plain(line)
        try:
            event = json.loads(line.removeprefix(_PREFIX))
            return self._event(event)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
            return None  # of a form that is not known here: only less is shown

    def step(self) -> Progress:
        """What is being done, and how far it is."""
        building = next((one for one in reversed(self._running.values()) if one.kind == Activity.BUILD), None)
        if building is not None:
            done, total = self._built
            return Progress(text="building derivations with Nix", done=done, total=max(total, done + 1))
        for text, kind in _COUNTED.items():
            running = [one for one in self._running.values() if one.kind == kind]
            done = self._ended[kind] + sum(one.done for one in running)
            total = max(self._expected.get(kind, 0), self._ended[kind] + sum(one.expected for one in running))
            if running and total:
                return Progress(text=text, done=done // _MIB, total=-(-total // _MIB))
        fetching = next((one for one in self._running.values() if one.kind == Activity.FETCH_TREE), None)
        return Progress(text=fetching.name if fetching and fetching.name else self._doing)

    def _plain(self, line: str) -> str | None:
        """A line that is no event: nix before it knows how to log, or a program that it has started."""
        text = _readable(line)
        if text.startswith("error: "):
            self._failed(text)
        return text or None

    def _failed(self, text: str) -> None:
        """Remember an error: the first ones and, as nix says at its end what counts, the last one."""
        self.errors[MOST_ERRORS - 1 :] = [_ERROR.sub("", text)[-LONGEST_ERROR:]]

    def _event(self, event: dict[str, Any]) -> str | None:
        match event["action"]:
            case "start":
                return self._start(event)
            case "stop":
                ended = self._running.pop(int(event["id"]), None)
                if ended is not None and ended.kind in _COUNTED.values():
                    self._ended[ended.kind] += max(ended.done, ended.expected)
            case "result":
                return self._result(event)
            case "msg":
                return self._message(int(event["level"]), _readable(str(event["msg"])))
        return None

    def _start(self, event: dict[str, Any]) -> str | None:
        kind, text, fields = int(event["type"]), _readable(str(event["text"])), event.get("fields", [])
        name = _store_name(str(fields[0])[:LONGEST_NAME]) if kind == Activity.BUILD else text[:LONGEST_NAME]
        if len(self._running) < MOST_RUNNING:
            self._running[int(event["id"])] = _Running(kind, name)
        return text if kind in _LOGGED and text else None

    def _result(self, event: dict[str, Any]) -> str | None:
        running, fields = self._running.get(int(event["id"])), event.get("fields", [])
        if event["type"] == Result.LOG_LINE:
            line = _readable(str(fields[0]))
            self.tail.append(line)
            return f"{running.name if running else 'builder'}> {line}"
        if event["type"] == Result.PROGRESS and running is not None:
            running.done, running.expected = _bytes(fields[0]), _bytes(fields[1])
            if running.kind == Activity.BUILDS:
                self._built = running.done, running.expected
        if event["type"] == Result.SET_EXPECTED and fields[0] in _COUNTED.values():
            self._expected[int(fields[0])] = _bytes(fields[1])
        return None

    def _message(self, level: int, text: str) -> str | None:
        if level == 0 and text:
            self._failed(text)
        return text or None


class Lines:
    """Cuts what is written piece by piece into lines; one of any length is cut, so that nothing piles up."""

    LONGEST = 2**16

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> Iterator[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
        if len(self._rest) > self.LONGEST:
            yield from self.rest()

    def rest(self) -> Iterator[str]:
        """What came without the end of a line."""
        if self._rest:
            yield self._rest.decode(errors="replace")
        self._rest = b""


def _readable(text: str) -> str:
    """Without colours and what cannot be printed, and without advice on options that nobody here can give."""
    return printable(_ADVICE.sub("", _COLOURS.sub("", text))).strip()


def _bytes(number: Any) -> int:
    """A number of bytes, or of other things; none is of so many digits that it cannot be shown."""
    return min(max(int(number), 0), _MOST_BYTES)


def _store_name(path: str) -> str:
    """`hello-1.0` of `/nix/store/<digest>-hello-1.0.drv`."""
    found = _STORE_NAME.fullmatch(path)
    return found[1] if found else path
