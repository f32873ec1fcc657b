"""Where the files of an instance are that every virtual machine has, whatever runs it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mvm.runtime.base import Machine


@dataclass(frozen=True, kw_only=True)
class MachineFiles:
    """Paths of one instance; none of the directories has a symbolic link in it."""

    instance: str
    run_dir: Path
    state_dir: Path
    secrets: Path

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """The paths of a machine, as the kernel knows them."""
        return cls(
            instance=machine.ref.instance_id,
            run_dir=Path(os.path.realpath(machine.run_dir)),
            state_dir=Path(os.path.realpath(machine.state_dir)),
            secrets=Path(os.path.realpath(machine.secrets)),
        )

    @property
    def record(self) -> Path:
        """What the runtime wrote about the process it started."""
        return self.run_dir / "process.json"

    @property
    def data(self) -> Path:
        """Image of the data drive."""
        return self.state_dir / "data.img"

    @property
    def secrets_image(self) -> Path:
        """Beside the secrets themselves: on memory-backed storage where those are."""
        return self.secrets.with_name(f"{self.secrets.name}.erofs")

    @property
    def config_image(self) -> Path:
        """It holds nothing secret."""
        return self.run_dir / "config.erofs"

    @property
    def memory(self) -> Path:
        """Directory of the guest's memory and of its snapshot."""
        return self.state_dir / "memory"

    @property
    def ram(self) -> Path:
        """The guest's memory in it."""
        return self.memory / "ram"

    def make_memory(self) -> None:
        """Make the private directory of memory and snapshot. Idempotent."""
        self.memory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.memory.chmod(0o700)
