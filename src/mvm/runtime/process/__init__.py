"""The process runtime: instances as ordinary processes of this host, without isolation."""

from mvm.runtime.process.runtime import HostPrograms, ProcessRuntime

__all__ = ["HostPrograms", "ProcessRuntime"]
