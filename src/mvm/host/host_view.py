"""What the host sees of its instances by itself: the CPU time of their processes, the bytes through their interfaces.

A second opinion on what guests say: one that says that it is idle while it computes or talks is not idle. Where nothing
can be seen there is no opinion. Also the host's own memory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from mvm.host.clock import Clock
from mvm.model.entities import Instance
from mvm.model.ids import InstanceId
from mvm.model.policy import MemoryState

BUSY_CORES = 0.5
"""An idle OpenClaw was seen to use 0.01 to 0.05 of a core; collecting its garbage it has more for a moment only."""
BUSY_BYTES_PER_SECOND = 50_000.0
PRESSURE = Path("/proc/pressure/memory")


@dataclass(frozen=True)
class _Sample:
    at: float
    cpu_seconds: float
    network_bytes: float


class HostView:
    """Looks at all running instances every few seconds; says which of them worked between the last two looks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: dict[InstanceId, _Sample] = {}
        self._active: set[InstanceId] = set()

    def active(self, instance: InstanceId) -> bool:
        """True when the host saw it work."""
        return instance in self._active

    def look(self, instances: Collection[Instance]) -> None:
        """Take a sample of each; blocks for some milliseconds."""
        now = self._clock.monotonic()
        cpu = _cpu_by_tree({i.process.pid for i in instances if i.process is not None})
        network = psutil.net_io_counters(pernic=True) if any(i.network.tap for i in instances) else {}
        samples, active = {}, set()
        for instance in instances:
            if instance.process is None or instance.process.pid not in cpu:
                continue
            interface = network.get(instance.network.tap)
            transferred = float(interface.bytes_sent + interface.bytes_recv) if interface is not None else 0.0
            sample = _Sample(now, cpu[instance.process.pid], transferred)
            before = self._samples.get(instance.instance_id)
            samples[instance.instance_id] = sample
            if before is not None and _worked(before, sample):
                active.add(instance.instance_id)
        self._samples, self._active = samples, active


def _worked(before: _Sample, after: _Sample) -> bool:
    seconds = after.at - before.at
    return seconds > 0 and (
        after.cpu_seconds - before.cpu_seconds > BUSY_CORES * seconds
        or after.network_bytes - before.network_bytes > BUSY_BYTES_PER_SECOND * seconds
    )


def _cpu_by_tree(roots: Collection[int]) -> dict[int, float]:
    """CPU seconds of each of these processes with all that descend from it."""
    if not roots:
        return {}
    parents: dict[int, int] = {}
    own: dict[int, float] = {}
    for process in psutil.process_iter(["ppid", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None and process.info["ppid"] is not None:
            parents[process.pid] = process.info["ppid"]
            own[process.pid] = times.user + times.system
    total = {root: 0.0 for root in roots if root in own}
    for pid, seconds in own.items():
        ancestor, seen = pid, set[int]()
        while ancestor in parents and ancestor not in seen:
            if ancestor in total:
                total[ancestor] += seconds
                break
            seen.add(ancestor)
            ancestor = parents[ancestor]
    return total


def read_memory() -> MemoryState:
    """The host's memory as it is now."""
    memory = psutil.virtual_memory()
    return MemoryState(total_bytes=memory.total, available_bytes=memory.available, stalled_percent=_stalled())


def _stalled() -> float:
    """`full avg10` of the kernel's pressure stall information; 0 where it has none."""
    try:
        lines = PRESSURE.read_text().splitlines()
    except OSError:
        return 0.0
    for line in lines:
        kind, *fields = line.split()
        if kind == "full":
            values = dict(field.split("=", 1) for field in fields)
            return float(values.get("avg10", 0.0))
    return 0.0
