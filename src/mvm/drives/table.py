"""The one table of drives (CONTRACT 8): every runtime, the guest and the Nix modules take order and names from here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mvm.model.roles import Role

SPARSE_DATA_DISK_MIB = 1024
"""Size of the data drive of a pool that names none: durable queues live on it, and sparse costs nothing."""


class Mode(StrEnum):
    """How the guest may use a drive."""

    READ_ONLY = "ro"
    READ_WRITE = "rw"


class Life(StrEnum):
    """How long the content of a drive lives."""

    IMMUTABLE = "immutable"
    """Never changes; shared by all instances of an image revision."""
    KEPT = "kept"
    """Kept across stop, sleep and upgrade; removed when the instance is destroyed."""
    REBUILT = "rebuilt"
    """Written anew on every start and wake."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """One drive as the guest finds it: by `serial` (also its label) first, by `device` as the fall-back."""

    device: str
    serial: str
    mode: Mode
    mount_point: str
    life: Life
    memory_only: bool = False
    """True when its content may be on memory-backed storage only, never on a disk."""


ROOTFS = Drive(device="vda", serial="rootfs", mode=Mode.READ_ONLY, mount_point="/", life=Life.IMMUTABLE)
DATA = Drive(device="vdb", serial="data", mode=Mode.READ_WRITE, mount_point="/data", life=Life.KEPT)
SECRETS = Drive(
    device="vdc",
    serial="secrets",
    mode=Mode.READ_ONLY,
    mount_point="/run/secrets",
    life=Life.REBUILT,
    memory_only=True,
)
CONFIG = Drive(device="vdd", serial="config", mode=Mode.READ_ONLY, mount_point="/etc/mvm-config", life=Life.REBUILT)

DRIVES: tuple[Drive, ...] = (ROOTFS, DATA, SECRETS, CONFIG)
"""In the order in which a runtime attaches them."""


def drives_of(role: Role) -> tuple[Drive, ...]:
    """The drives that instances of a role have, in order."""
    left_out = {SECRETS: not role.has_secrets_drive, CONFIG: not role.has_config_drive}
    return tuple(drive for drive in DRIVES if not left_out.get(drive, False))


def data_disk_mib(requested_mib: int) -> int:
    """Size of the data drive of a pool that asks for `requested_mib` (0: none was asked for)."""
    return requested_mib or SPARSE_DATA_DISK_MIB
