"""An archive in the form that the kernel unpacks as its initial file system ("newc"), written without being root."""

from __future__ import annotations

import stat


class Archive:
    """Collects entries; `bytes()` gives the archive. The same entries in the same order give the same bytes."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._entries = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def __bytes__(self) -> bytes:
        return bytes(self._content + _encoded(0, "TRAILER!!!", 0, b"", (0, 0)))

    def _entry(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._entries += 1
        self._content += _encoded(self._entries, name, mode, content, device)


def _encoded(inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    """One entry: inode, mode, uid, gid, links, mtime, size, device, device of a device, length of the name, check."""
    spelled = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(spelled), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + spelled) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
