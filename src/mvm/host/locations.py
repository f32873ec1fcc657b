"""Where the agent of this person, or of this machine, keeps its things (CONTRACT 19)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mvm.model.errors import InvalidInput

SYSTEM_STATE_DIR = Path("/var/lib/mvm")
SYSTEM_RUN_DIR = Path("/run/mvm")
SOCKET_NAME = "agent.sock"
SOCKET_PATH_LIMIT = 107
"""Bytes that fit into `sockaddr_un.sun_path`, without its terminating NUL (unix(7))."""
LONGEST_SOCKET_BELOW_RUN_DIR = "i/i-00000000/ch/guest_5200.sock"


@dataclass(frozen=True, kw_only=True)
class Locations:
    """The directories of one agent."""

    state_dir: Path
    """Kept over reboots: the state database, data drives, snapshots, keys."""
    run_dir: Path
    """Sockets and what need not survive a reboot."""
    secrets_dir: Path
    """Memory-backed where this machine has such a place (see `secrets_in_memory`)."""
    chosen: bool = False
    """True when a person named the directories: then this agent is meant and no other is looked for."""

    @property
    def socket(self) -> Path:
        """The local socket of the agent's API."""
        return self.run_dir / SOCKET_NAME

    @property
    def secrets_in_memory(self) -> bool:
        """False when secrets of running instances lie on a disk for want of a memory-backed place."""
        return _is_memory_backed(self.secrets_dir)


def resolve(
    environment: Mapping[str, str],
    *,
    uid: int,
    state_dir: Path | None = None,
    run_dir: Path | None = None,
    memory_roots: tuple[Path, ...] = (Path("/dev/shm"),),  # noqa: S108 (a private 0700 directory is made in it)
) -> Locations:
    """Directories for `uid`: what is given, else `MVM_STATE_DIR` and `MVM_RUN_DIR`, else the defaults of CONTRACT 19.

    Raises `InvalidInput` when a relative path is given or the run directory is too long for the sockets in it.
    """
    chosen = bool(state_dir or run_dir or environment.get("MVM_STATE_DIR") or environment.get("MVM_RUN_DIR"))
    state = state_dir or _path(environment, "MVM_STATE_DIR") or _default_state_dir(environment, uid)
    run = run_dir or _path(environment, "MVM_RUN_DIR") or _default_run_dir(environment, uid)
    for name, path in (("state", state), ("run", run)):
        if not path.is_absolute():
            raise InvalidInput(f"the {name} directory '{path}' is not an absolute path", hint="write it from '/' on")
    too_long = len(os.fsencode(run / LONGEST_SOCKET_BELOW_RUN_DIR)) - SOCKET_PATH_LIMIT
    if too_long > 0:
        raise InvalidInput(
            f"the run directory '{run}' is {too_long} characters too long for the sockets in it",
            hint="set MVM_RUN_DIR to a shorter path, such as /run/mvm or a directory below /tmp",
        )
    return Locations(state_dir=state, run_dir=run, secrets_dir=_secrets_dir(run, uid, memory_roots), chosen=chosen)


def system() -> Locations:
    """Where the system's agent is, the one that the systemd unit runs."""
    return Locations(state_dir=SYSTEM_STATE_DIR, run_dir=SYSTEM_RUN_DIR, secrets_dir=SYSTEM_RUN_DIR / "secrets")


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    value = environment.get(name)
    return Path(value) if value else None


def _default_state_dir(environment: Mapping[str, str], uid: int) -> Path:
    if uid == 0:
        return SYSTEM_STATE_DIR
    return (_path(environment, "XDG_DATA_HOME") or Path.home() / ".local/share") / "mvm"


def _default_run_dir(environment: Mapping[str, str], uid: int) -> Path:
    if uid == 0:
        return SYSTEM_RUN_DIR
    base = _path(environment, "XDG_RUNTIME_DIR")
    return base / "mvm" if base else Path(tempfile.gettempdir()) / f"mvm-{uid}"


def _secrets_dir(run: Path, uid: int, memory_roots: tuple[Path, ...]) -> Path:
    """A directory in memory: the run directory when that is on a tmpfs, else one in the first memory-backed root."""
    if _is_memory_backed(run):
        return run / "secrets"
    for root in memory_roots:
        if root.is_dir() and os.access(root, os.W_OK) and _is_memory_backed(root):
            # One directory per run directory, so that two agents of one person never meet in it.
            return root / f"mvm-{uid}{str(run).replace('/', '-')}"
    return run / "secrets"


def _is_memory_backed(path: Path) -> bool:
    """True when the path, or its nearest existing parent, is on a tmpfs or ramfs."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    device = os.stat(existing).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False  # not Linux: nothing is known of its file systems, so nothing is promised
    for line in lines:
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False
