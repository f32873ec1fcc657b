"""Where the parts of an instance of the process runtime are, and the tree that its guest takes for its root."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mvm.model.errors import InvalidInput, MvmError
from mvm.runtime.base import Machine

MAX_SOCKET_BYTES = 107
"""Longest path of a Unix socket: 108 bytes with the terminating NUL."""
SOCKETS = ("root/run/openclaw/control.sock", "root/run/mvm/supervisor.sock", "ch/guest_5200.sock")
"""The longest of the sockets under an instance's run directory."""


@dataclass(frozen=True)
class Directories:
    """Paths of one instance. `run_dir` has no symbolic link in it."""

    run_dir: Path
    data: Path
    secrets: Path
    config: Path

    @classmethod
    def of(cls, machine: Machine) -> Directories:
        """The paths of a machine, as the kernel knows them."""
        return cls(
            *(Path(os.path.realpath(p)) for p in (machine.run_dir, machine.data, machine.secrets, machine.config))
        )

    @property
    def root(self) -> Path:
        """What the guest takes for `/`."""
        return self.run_dir / "root"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def channel(self) -> Path:
        """Sockets of guest and host ports."""
        return self.run_dir / "ch"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "mvm/supervisor.sock"

    @property
    def supervisor_record(self) -> Path:
        """What the supervisor wrote about itself and its children."""
        return self.run / "mvm/supervisor.json"

    @property
    def record(self) -> Path:
        """What this runtime wrote about the process it started."""
        return self.run_dir / "process.json"

    @property
    def output(self) -> Path:
        """What the supervisor itself prints; its services have logs of their own."""
        return self.run_dir / "supervisor.log"

    def guest_socket(self, port: int) -> Path:
        return self.channel / f"guest_{port}.sock"

    def host_socket(self, port: int) -> Path:
        return self.channel / f"host_{port}.sock"

    def check_lengths(self) -> None:
        """Raise `InvalidInput` when a socket of this instance would have too long a path."""
        for name in SOCKETS:
            path = self.run_dir / name
            if (size := len(os.fsencode(path))) > MAX_SOCKET_BYTES:
                raise InvalidInput(
                    f"the socket path {path} has {size} bytes; the kernel takes {MAX_SOCKET_BYTES}",
                    hint="set MVM_RUN_DIR to a directory with a shorter path, such as /run/user/1000/mvm",
                )

    def make_channel(self) -> None:
        """Make the directory of the sockets. Idempotent."""
        self.check_lengths()
        self._own(self.channel)

    def make_root(self) -> None:
        """Make the guest's root anew: drives as symbolic links, an empty `/run` but for the supervisor's record.

        The record stays because the next supervisor ends by it what an earlier one may have left.
        """
        self.check_lengths()
        for directory in (self.root, self.run, self.run / "mvm", self.root / "etc"):
            self._own(directory)
        for entry in (self.run / "mvm").iterdir():
            if entry != self.supervisor_record:
                entry.unlink()
        shutil.rmtree(self.run / "openclaw", ignore_errors=True)
        self._own(self.run / "openclaw")
        self._link(self.root / "data", self.data)
        self._link(self.run / "secrets", self.secrets)
        self._link(self.root / "etc/mvm-config", self.config)
        self.make_channel()
        for socket in self.channel.glob("guest_*.sock"):
            socket.unlink()

    def remove(self) -> None:
        """Remove everything that this runtime made. Idempotent; the drives are the caller's."""
        for path in (self.root / "data", self.run / "secrets", self.root / "etc/mvm-config"):
            path.unlink(missing_ok=True)  # before the tree: what they lead to must never be walked into
        for directory in (self.root, self.channel):
            shutil.rmtree(directory, ignore_errors=True)
            if directory.exists():
                raise MvmError(f"'{directory}' could not be removed", hint="does another user own something in it?")
        for file in (self.record, self.output):
            file.unlink(missing_ok=True)

    @staticmethod
    def _own(directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)

    @staticmethod
    def _link(link: Path, target: Path) -> None:
        if link.is_symlink() and link.readlink() == target:
            return
        if link.is_dir() and not link.is_symlink():
            raise MvmError(f"'{link}' is a directory and should be a link to '{target}'", hint="remove it")
        link.unlink(missing_ok=True)
        link.symlink_to(target)
