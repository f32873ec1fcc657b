"""`Logs` and `Stats`: what an operator may see of a guest, bounded so that it fits a frame whatever the guest holds."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvm.guest import logfiles, processes
from mvm.guest.integrations import size_of
from mvm.guest.paths import GuestPaths
from mvm.wire.frames import GUEST_FRAME_LIMIT
from mvm.wire.messages import MAX_LOG_TEXT, Logs, LogsResult, ServiceLog, ServiceStats, StatsResult
from mvm.wire.rpc import Refusal

DEFAULT_LINES = 200
ALL_LOGS_BYTES = GUEST_FRAME_LIMIT * 3 // 4
"""What all logs of one answer may take as JSON; the rest of the frame is for the envelope."""
_STARTED = time.monotonic()


def logs(paths: GuestPaths, request: Logs) -> LogsResult:
    """The newest lines of one log or of every one that adds something. Raises `Refusal` for a log that there is not."""
    found = sorted(path.stem for path in paths.logs.glob("*.log"))
    names = logfiles.unrepeated(found)
    if request.service is not None:
        if request.service not in found:
            raise Refusal(f"there is no log of {request.service!r}; there are logs of {', '.join(found) or 'nothing'}")
        names = [request.service]
    if not names:
        return LogsResult()
    share = ALL_LOGS_BYTES // len(names)
    return LogsResult(logs=tuple(_log(paths, name, request.lines or DEFAULT_LINES, share) for name in names))


def _log(paths: GuestPaths, name: str, lines: int, share: int) -> ServiceLog:
    limit = min(share, MAX_LOG_TEXT)
    while True:
        found = logfiles.tail(paths.log(name), lines=lines, limit=limit)
        # Control characters take six bytes each as JSON.
        if len(json.dumps(found.text, ensure_ascii=False).encode()) <= share or limit < 16:
            return ServiceLog(service=name, text=found.text, truncated=found.truncated)
        limit //= 2


async def stats(paths: GuestPaths, supervisor: Mapping[str, Any], mem_mib: int) -> StatsResult:
    """Use of the machine: the kernel's figures in a machine of its own, else the sum over this guest's processes.

    `supervisor` is the supervisor's status; `mem_mib` what the instance was given.
    """
    return await asyncio.to_thread(_stats, paths, supervisor, mem_mib)


def _stats(paths: GuestPaths, supervisor: Mapping[str, Any], mem_mib: int) -> StatsResult:
    tree = processes.descendants(os.getppid())
    own = {service["pid"]: name for name, service in supervisor.get("services", {}).items()}
    marks = {
        pid: own.get(pid) or processes.variable_of(pid, processes.SERVICE_MARKER)
        for pid in (process.identity.pid for process in tree)
    }
    services = tuple(
        ServiceStats(
            service=name,
            state=service["state"],
            pid=service["pid"],
            restarts=service["restarts"],
            memory_bytes=sum(p.memory_bytes for p in tree if marks[p.identity.pid] == name),
        )
        for name, service in supervisor.get("services", {}).items()
    )
    disk = os.statvfs(paths.data)
    total = disk.f_blocks * disk.f_frsize
    if paths.owns_machine:
        memory = _memory_info()
        return StatsResult(
            uptime_seconds=time.clock_gettime(time.CLOCK_BOOTTIME),
            cpu_seconds=_machine_cpu_seconds(),
            memory_used_bytes=memory["MemTotal"] - memory["MemAvailable"],
            memory_total_bytes=memory["MemTotal"],
            disk_used_bytes=total - disk.f_bfree * disk.f_frsize,
            disk_total_bytes=total,
            services=services,
        )
    return StatsResult(
        uptime_seconds=time.monotonic() - _STARTED,
        cpu_seconds=sum(p.cpu_seconds for p in tree),
        memory_used_bytes=sum(p.memory_bytes for p in tree),
        memory_total_bytes=mem_mib * 1024 * 1024,
        disk_used_bytes=size_of(paths.data),
        disk_total_bytes=total,
        services=services,
    )


def _memory_info() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines)}


def _machine_cpu_seconds() -> float:
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _wait, irq, soft = map(int, first[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
