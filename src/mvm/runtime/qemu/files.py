"""Where the files of an instance of the QEMU runtime are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mvm.model.errors import InvalidInput, MvmError
from mvm.runtime.machine_files import MachineFiles
from mvm.runtime.short_paths import MAX_SOCKET_BYTES


class Files(MachineFiles):
    """Paths of one instance."""

    @property
    def monitor(self) -> Path:
        """Socket of QEMU's monitor."""
        return self.run_dir / "qmp.sock"

    @property
    def mux(self) -> Path:
        """Socket of the control channel."""
        return self.run_dir / "mux.sock"

    @property
    def console(self) -> Path:
        """Socket of the guest's serial console."""
        return self.run_dir / "console.sock"

    @property
    def sockets(self) -> tuple[Path, ...]:
        return (self.monitor, self.mux, self.console)

    @property
    def output(self) -> Path:
        """What QEMU itself prints."""
        return self.run_dir / "qemu.log"

    @property
    def console_log(self) -> Path:
        """The newest of what the guest wrote on its serial console."""
        return self.state_dir / "serial.log"

    def check_lengths(self) -> None:
        """Raise `InvalidInput` when a socket of this instance would have too long a path."""
        for path in self.sockets:
            if (size := len(os.fsencode(path))) > MAX_SOCKET_BYTES:
                raise InvalidInput(
                    f"the socket path {path} has {size} bytes; the kernel takes {MAX_SOCKET_BYTES}",
                    hint="set MVM_RUN_DIR to a directory with a shorter path, such as /run/user/1000/mvm",
                )

    def make_ram(self, *, mib: int, uid: int | None) -> int:
        """Make the guest's memory anew, empty; returns it opened."""
        self.make_memory()
        self.ram.unlink(missing_ok=True)
        descriptor = os.open(self.ram, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, mib << 20)
            if uid is not None:
                os.fchown(descriptor, uid, uid)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def forget_process(self) -> None:
        """Remove what belongs to a process that has ended. Idempotent."""
        for path in (*self.sockets, self.record):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything that this runtime made. Idempotent."""
        self.forget_process()
        for file in (self.output, self.config_image, self.secrets_image, self.data, self.console_log):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.memory, ignore_errors=True)
        if self.memory.exists():
            raise MvmError(f"'{self.memory}' could not be removed", hint="does another user own something in it?")
