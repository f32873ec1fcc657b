"""Who owns what in a machine of its own, as data: users of the image, and the access that each place gives them.

Under the process runtime there is one user, whoever runs mvm, and nothing of this applies.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mvm.guest.paths import WORKERS_SCOPE, GuestPaths, write_atomically


@dataclass(frozen=True, kw_only=True)
class User:
    """A user of the image; each has a group of its own with the same number."""

    name: str
    number: int


ROOT = User(name="root", number=0)
OPENCLAW = User(name="openclaw", number=1000)
"""Runs OpenClaw and what people have it do."""
ROUTER = User(name="router", number=990)
"""Runs the router. OpenClaw is in its group, for the tokens that both need."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Owner, group and mode of a file or directory."""

    mode: int
    owner: User = ROOT
    group: User = ROOT

    @property
    def numbers(self) -> tuple[int, int]:
        """Numbers of owner and group."""
        return self.owner.number, self.group.number

    def give(self, path: Path) -> None:
        """Set them, of the place itself where it is a link. Raises `OSError`."""
        os.chown(path, *self.numbers, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(self.mode)


def write(paths: GuestPaths, path: Path, content: bytes, access: Access) -> None:
    """Replace a file whole; under the process runtime it is for nobody but who runs the guest. Raises `OSError`."""
    if paths.owns_machine:
        write_atomically(path, content, mode=access.mode, owner=access.numbers)
    else:
        write_atomically(path, content)


_STICKY = 0o1000
OPENCLAW_OWNS = Access(mode=0o600, owner=OPENCLAW, group=OPENCLAW)
OPENCLAW_READS = Access(mode=0o640, group=OPENCLAW)
OPENCLAW_AND_ROUTER_READ = Access(mode=0o640, group=ROUTER)


def directories(paths: GuestPaths) -> dict[Path, Access]:
    """Every directory of the guest's own with the access to it, parents before children."""
    return {
        paths.mvm_run: Access(mode=0o711),
        # Through the channel somebody speaks as this instance: the router may, OpenClaw may not.
        paths.channel: Access(mode=0o700, owner=ROUTER),
        # OpenClaw makes its control socket here and may remove nothing else; the router finds its token here.
        paths.openclaw_run: Access(mode=0o771 | _STICKY, group=OPENCLAW),
        paths.secrets: Access(mode=0o711),
        paths.config_dir: Access(mode=0o755),
        paths.data: Access(mode=0o755),
        paths.openclaw_state: Access(mode=0o700, owner=OPENCLAW, group=OPENCLAW),
        paths.home: Access(mode=0o700, owner=OPENCLAW, group=OPENCLAW),
        paths.mvm_data: Access(mode=0o700, owner=ROUTER, group=ROUTER),
        # OpenClaw keeps a log of its own beside those that the supervisor writes.
        paths.logs: Access(mode=0o770 | _STICKY, group=OPENCLAW),
        # Each integration's `state` is OpenClaw's, what the agent writes beside it is not.
        paths.integrations: Access(mode=0o711),
    }


def secret_scope(name: str) -> Access:
    """Access to the directory of a scope of secrets; files in it have the same without the right to search."""
    return Access(mode=0o750, group=ROUTER if name == WORKERS_SCOPE else OPENCLAW)


def secret_file(scope: str) -> Access:
    """Access to a secret of that scope."""
    return Access(mode=0o640, group=ROUTER if scope == WORKERS_SCOPE else OPENCLAW)
