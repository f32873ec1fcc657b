"""What nix says when it fails, as an error that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from mvm.image.nix.events import Told
from mvm.model.errors import InvalidInput, MvmError, Unavailable

SHOWN_LINES = 6
LONGEST = 600

_UNREACHABLE = (
    r"unable to download|resolve host|could not connect|failed to connect|connection (refused|timed out|reset)"
    r"|network is unreachable|SSL (connect|peer|certificate)|unable to access 'https?:"
)
_KNOWN: tuple[tuple[str, type[MvmError], str], ...] = (
    (r"hash mismatch", MvmError, "what a server gave is not what the flake pins: tell who keeps the flake"),
    (
        r"daemon-socket|cannot connect to socket|daemon disconnected",
        Unavailable,
        "Nix's daemon does not answer: `systemctl status nix-daemon`",
    ),
    (
        r"'build-users-group'",
        Unavailable,
        "install Nix's daemon, which makes its build users, or write `build-users-group =` into /etc/nix/nix.conf",
    ),
    (
        r"rate limit|HTTP error 403",
        Unavailable,
        "the server refuses: write `access-tokens = github.com=...` into nix.conf, or try again in an hour",
    ),
    (
        r"HTTP error 40[14]",
        InvalidInput,
        "there is no such repository or branch, or it takes `access-tokens` in nix.conf",
    ),
    (
        _UNREACHABLE,
        Unavailable,
        "can this machine reach where the flake, what it takes in, and Nix's binary cache are? Then try again",
    ),
    (r"no space left on device", Unavailable, "free some space: `nix-collect-garbage` and `mvm pool gc`"),
    (
        r"not owned by current user|dubious ownership",
        InvalidInput,
        "git refuses a repository of somebody else: `git config --global --add safe.directory DIRECTORY`",
    ),
    (
        r"permission denied|read-only file system|not permitted",
        Unavailable,
        "may this user build with Nix? The agent runs as root, or as a user whom Nix's daemon allows",
    ),
    (
        r"required to build|platform mismatch",
        Unavailable,
        "this host cannot build for that system: build on another one, or give Nix a remote builder",
    ),
    (r"No such file or directory|does not exist", InvalidInput, "is the flake where the pool says it is?"),
    (r"interrupted by the user", Unavailable, "something has ended nix: try again"),
)
"""What nix says, whose fault that is, and what to do; the first that is found counts."""
_BUILDER_FAILED = re.compile(r"builder for '.*' failed|Cannot build '|builder failed", re.IGNORECASE)
_WITH_LAST_LINES = re.compile(r"[;.]?\s*last \d+ log lines:.*", re.IGNORECASE | re.DOTALL)
"""What nix repeats of a builder's log in its error; here it comes once."""
_REASON = re.compile(r"(?:^|\s)error: ")
"""Newer versions tell first where they were, and then what is wrong."""


def explain(what: str, status: int, told: Told, log: Path | None) -> MvmError:
    """The error of a run of nix that has failed; `log` is where all that it told can be read."""
    said = f"{what} failed: {reason(told, status)}"
    whole = f"the whole log is {log}" if log else "try it by hand"
    if any(_BUILDER_FAILED.search(error) for error in told.errors):
        last = " / ".join(list(told.tail)[-SHOWN_LINES:])
        return MvmError(f"{said}; its last lines: {last[-LONGEST:]}" if last else said, hint=whole)
    text = "\n".join(told.errors)
    for pattern, kind, hint in _KNOWN:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(said, hint=f"{hint} ({whole})" if log else hint)
    return MvmError(said, hint=whole)


def reason(told: Told, status: int) -> str:
    """What went wrong, in a line: the builder that failed first, else what nix said at the end."""
    failed = (error for error in told.errors if _BUILDER_FAILED.search(error))
    error = next(failed, told.errors[-1] if told.errors else "")
    line = " ".join(_WITH_LAST_LINES.sub("", error).split())
    return _short(_REASON.split(line)[-1]) or f"nix ended with status {status} and said nothing"


def lacks_attribute(told: Told) -> bool:
    """Whether nix says that the flake has no such output."""
    return any("does not provide attribute" in error for error in told.errors)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
