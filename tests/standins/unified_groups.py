"""Control groups of version 2 as a tree of files that keeps the kernel's rules, for hosts that have none.

A group has the files of those controllers that its parent hands out; only such can be handed out that it has (ENOENT),
and none by a group with processes, nor does a group that hands out take any (EBUSY); the root is free of both.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

FILES = {"memory": ("memory.max",), "pids": ("pids.max",), "cpu": ("cpu.weight", "cpu.max")}
_write, _make, _remove = Path.write_text, Path.mkdir, Path.rmdir


class UnifiedGroups:
    """The tree, and a directory that stands for the /proc/self of a process in one of its groups."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, real_root: bool = True) -> None:
        """Without `real_root` the mount shows a container's part of the tree, whose top obeys the rules, too."""
        self.mount, self.proc = directory / "cgroup", directory / "proc"
        self._real_root = real_root
        _make(self.mount)
        self._fill(self.mount, tuple(FILES))
        _make(self.proc)
        _write(self.proc / "mountinfo", f"30 1 0:26 / {self.mount} rw - cgroup2 cgroup2 rw\n")
        monkeypatch.setattr(Path, "write_text", lambda path, text, *rest: self._written(path, text, *rest))
        monkeypatch.setattr(Path, "mkdir", lambda path, *rest, **named: self._made(path, *rest, **named))
        monkeypatch.setattr(Path, "rmdir", lambda path: self._removed(path))

    def enter(self, path: str) -> Path:
        """The process is in that group, which is made; returns the group."""
        group = self.mount
        for name in path.strip("/").split("/") if path != "/" else ():
            group /= name
            group.mkdir(exist_ok=True)
        _write(self.proc / "cgroup", f"0::{path}\n")
        _write(group / "cgroup.procs", f"{os.getpid()}\n")
        return group

    def _fill(self, group: Path, controllers: tuple[str, ...]) -> None:
        _write(group / "cgroup.procs", "")
        _write(group / "cgroup.subtree_control", "")
        _write(group / "cgroup.controllers", " ".join(controllers))
        for controller in controllers if group != self.mount else ():
            self._give(group, controller)

    @staticmethod
    def _give(group: Path, controller: str) -> None:
        for name in FILES[controller]:
            _write(group / name, "max")

    def _free(self, group: Path) -> bool:
        return self._real_root and group == self.mount

    def _made(self, path: Path, *rest: object, **named: object) -> None:
        there = path.exists()
        _make(path, *rest, **named)  # type: ignore[arg-type]
        if self.mount in path.parents and not there:
            self._fill(path, tuple((path.parent / "cgroup.subtree_control").read_text().split()))

    def _removed(self, path: Path) -> None:
        if self.mount in path.parents:
            if (path / "cgroup.procs").read_text().split() or any(entry.is_dir() for entry in path.iterdir()):
                raise OSError(errno.EBUSY, "the group is in use")
            for entry in path.iterdir():
                entry.unlink()
        _remove(path)

    def _written(self, path: Path, text: str, *rest: object) -> int:
        group = path.parent
        if self.mount in path.parents and path.name == "cgroup.subtree_control":
            self._hand_out(group, text.split())
            return len(text)
        if self.mount in path.parents and path.name == "cgroup.procs":
            if (group / "cgroup.subtree_control").read_text() and not self._free(group):
                raise OSError(errno.EBUSY, "the group hands out controllers")
            for other in self.mount.rglob("cgroup.procs"):
                _write(other, "".join(f"{pid}\n" for pid in other.read_text().split() if pid != text.strip()))
            return _write(path, path.read_text() + f"{text.strip()}\n")
        return _write(path, text, *rest)  # type: ignore[arg-type]

    def _hand_out(self, group: Path, asked: list[str]) -> None:
        controllers = [word.removeprefix("+") for word in asked]
        if not set(controllers) <= set((group / "cgroup.controllers").read_text().split()):
            raise OSError(errno.ENOENT, "the group does not have that controller")
        if (group / "cgroup.procs").read_text().split() and not self._free(group):
            raise OSError(errno.EBUSY, "the group has processes")
        handed = (group / "cgroup.subtree_control").read_text().split()
        _write(group / "cgroup.subtree_control", " ".join(dict.fromkeys([*handed, *controllers])))
        for child in (entry for entry in group.iterdir() if entry.is_dir()):
            _write(child / "cgroup.controllers", " ".join(dict.fromkeys([*handed, *controllers])))
            for controller in controllers:
                self._give(child, controller)
