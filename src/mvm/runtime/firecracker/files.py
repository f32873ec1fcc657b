"""Where the files of an instance of the Firecracker runtime are.

A Firecracker sees one directory, its room: `<state_dir>/jail/<executable>/<instance>/root`, which is the root of its
jail, or where it is not jailed its working directory. Everything in it has a fixed name, and Firecracker is told
relative paths only, so that a snapshot finds its drives and sockets again wherever it is restored.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mvm.model.errors import MvmError
from mvm.runtime.machine_files import MachineFiles

API_SOCKET = "api.sock"
VSOCK = "v.sock"
KERNEL = "vmlinux"
INITRD = "initrd"
MEMORY = "memory"
DEVICES = "devices"
FRESH_MEMORY = "fresh.memory"
FRESH_DEVICES = "fresh.devices"
LOG = "log.fifo"
METRICS = "metrics.fifo"
"""Names in the room. Those of drives are in `configuration.drive_file`."""


def host_port_socket(port: int) -> str:
    """Name of the socket where Firecracker brings what the guest says to a host port."""
    return f"{VSOCK}_{port}"


class Files(MachineFiles):
    """Paths of one instance. Nothing is called `ram` any more once a guest has gone on from it (see `lineage`)."""

    @property
    def output(self) -> Path:
        """What the jailer prints, and Firecracker where it is not jailed."""
        return self.run_dir / "firecracker.out"

    @property
    def log(self) -> Path:
        """The newest of what Firecracker logs."""
        return self.state_dir / "machine.log"

    @property
    def metrics(self) -> Path:
        """The newest of what Firecracker counts."""
        return self.state_dir / "metrics.jsonl"

    @property
    def config_image(self) -> Path:
        """On the file system of the room, which has it under a second name."""
        return self.state_dir / "config.erofs"

    @property
    def jail(self) -> Path:
        """Base directory of its jail."""
        return self.state_dir / "jail"

    def room_for(self, executable: Path) -> Path:
        """Where the jailer makes the jail for that executable."""
        return self.jail / executable.name / self.instance / "root"

    @property
    def room(self) -> Path | None:
        """The room that there is: while a Firecracker runs, and until what is left of it is removed."""
        return next(self._rooms(), None)

    def _rooms(self) -> Iterator[Path]:
        with suppress(OSError):
            for entry in sorted(os.listdir(self.jail)):
                room = self.jail / entry / self.instance / "root"
                if room.is_dir():
                    yield room

    def remove(self) -> None:
        """Remove everything that this runtime made; nothing runs. Idempotent."""
        for file in (self.record, self.output, self.log, self.metrics, self.data, self.config_image):
            file.unlink(missing_ok=True)
        self.secrets_image.unlink(missing_ok=True)
        for directory in (self.memory, self.jail):
            shutil.rmtree(directory, ignore_errors=True)
            if directory.exists():
                raise MvmError(f"'{directory}' could not be removed", hint="is something mounted in it?")
