"""The words before a QEMU that make it run as another user: without any privilege, and with what it opens by name.

A QEMU is given its files open. The device of its accelerator it opens itself, so the user that it runs as must be let
in: as everybody is, or by the group that the device belongs to (Debian's rule is `0660 root:kvm`).
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from mvm.model.errors import Unavailable

_BY_GROUP = stat.S_IRGRP | stat.S_IWGRP
_BY_ALL = stat.S_IROTH | stat.S_IWOTH


def words(uid: int | None, *, device: Path | None = None) -> list[str]:
    """What to put before a command; nothing for this very user. Raises `Unavailable` when the device is closed to it.

    `device` is what the command opens by its name for reading and writing.
    """
    if uid is None or uid == os.geteuid():
        return []
    path = shutil.which("setpriv", path=os.defpath)
    if path is None:
        raise Unavailable("setpriv is not installed", hint="install it (Debian: util-linux)")
    group = None if device is None else _group_for(device)
    groups = ["--clear-groups"] if group is None else ["--groups", str(group)]
    return [path, "--reuid", str(uid), "--regid", str(uid), *groups, "--no-new-privs", "--inh-caps=-all", "--"]


def _group_for(device: Path) -> int | None:
    """The group that a user must have to open a device; None when everybody may."""
    try:
        found = device.stat()
    except OSError as error:
        raise Unavailable(f"{device}: {error.strerror or error}") from error
    if found.st_mode & _BY_ALL == _BY_ALL:
        return None
    if found.st_gid == 0 or found.st_mode & _BY_GROUP != _BY_GROUP:  # root's group is nothing to give away
        raise Unavailable(
            f"{device} is closed to the users that machines run as "
            f"(mode {stat.S_IMODE(found.st_mode):04o}, group {found.st_gid})",
            hint=f"chgrp kvm {device} && chmod 0660 {device}",
        )
    return found.st_gid
