"""Network devices of machines, as the host makes them."""

from __future__ import annotations

from typing import Protocol

from mvm.runtime.base import Machine


class Taps(Protocol):
    """Who makes the TAPs that machines open by name."""

    def make(self, machine: Machine, name: str) -> None:
        """Make the TAP for a machine that is about to start. Raises `MvmError`; then there is none."""

    def remove(self, name: str) -> None:
        """Remove it when the machine has ended. Idempotent."""


class NoTaps:
    """Whoever starts machines has made them already."""

    def make(self, machine: Machine, name: str) -> None:
        """Nothing to be done."""

    def remove(self, name: str) -> None:
        """Nothing to be done."""


def tap_name(machine: Machine) -> str:
    """Name of the machine's TAP; one that belongs to no tenant has a TAP with nobody at its other end."""
    return machine.tap or f"tb{machine.ref.instance_id.removeprefix('i-')}"
