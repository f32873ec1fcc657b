"""File systems of the kind ext4 for tests: as little of them as is looked at."""

from __future__ import annotations

MAGIC_AT, INCOMPATIBLE_AT = 1024 + 0x38, 1024 + 0x60


def superblock(*, unsettled: bool = False) -> bytes:
    """A file that is taken for an ext4 file system; `unsettled`: with a journal that was not played back."""
    content = bytearray(4096)
    content[MAGIC_AT : MAGIC_AT + 2] = b"\x53\xef"
    content[INCOMPATIBLE_AT] = 0x40 | (0x4 if unsettled else 0)
    return bytes(content)
