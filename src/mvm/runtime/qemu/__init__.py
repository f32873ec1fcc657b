"""The QEMU runtime: each instance a virtual machine of its own."""

from mvm.runtime.qemu.runtime import QemuRuntime

__all__ = ["QemuRuntime"]
