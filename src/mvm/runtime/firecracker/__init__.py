"""Instances as Firecracker virtual machines, jailed: what production runs on (docs/firecracker.md)."""

from mvm.runtime.firecracker.runtime import FirecrackerRuntime

__all__ = ["FirecrackerRuntime"]
