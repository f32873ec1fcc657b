"""What the host sees of instances by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mvm.host import host_view
from mvm.host.clock import Clock
from mvm.host.host_view import HostView, read_memory
from mvm.host.observation import Observer
from mvm.host.reports import Activity, Reports
from mvm.model.entities import Instance, InstanceNetwork, ProcessIdentity
from mvm.model.ids import InstanceId, PoolId, TenantId
from mvm.model.policy import MemoryState, memory_pressure
from mvm.model.roles import Role
from mvm.model.states import State

GIB = 2**30
BUSY = """
import time
end = time.process_time() + 0.2
while time.process_time() < end: pass
print(1, flush=True)
input()
"""


def instance(pid: int) -> Instance:
    return Instance(
        tenant_id=TenantId("t"),
        pool_id=PoolId("p"),
        instance_id=InstanceId("i-00000001"),
        role=Role.WORKER,
        state=State.RUNNING,
        network=InstanceNetwork(guest_ip="10.240.1.3", gateway_ip="10.240.1.1"),
        process=ProcessIdentity(pid=pid, start_time=1),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


class Times:
    """CPU seconds of a family of processes, as tests say."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 0.0

    def view(self, monkeypatch: pytest.MonkeyPatch) -> HostView:
        monkeypatch.setattr(host_view, "_cpu_by_tree", lambda roots: dict.fromkeys(roots, self.cpu))
        return HostView(Clock(monotonic=lambda: self.now))


def test_who_computes_is_active_and_who_only_breathes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times()
    view, one = times.view(monkeypatch), instance(1)
    view.look([one])
    assert not view.active(one.instance_id), "one look is no opinion"
    times.now, times.cpu = 105.0, 0.2
    view.look([one])
    assert not view.active(one.instance_id)
    times.now, times.cpu = 110.0, 3.2
    view.look([one])
    assert view.active(one.instance_id)
    view.look([])
    assert not view.active(one.instance_id)


def test_a_guest_that_works_and_says_that_it_is_idle_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times()
    view, one = times.view(monkeypatch), instance(1)
    clock = Clock(monotonic=lambda: times.now)
    reports = Reports(clock)
    observer = Observer(reports, clock, view.active)
    reports.record(one.instance_id, Activity.IDLE)
    view.look([one])
    assert observer.observe(one).idle
    times.now, times.cpu = 105.0, 5.0
    view.look([one])
    assert not observer.observe(one).idle


def test_the_time_of_children_is_their_instances_time() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = host_view._cpu_by_tree({os.getpid(), child.pid, 2**22 + 1})
        assert found.keys() == {os.getpid(), child.pid}
        assert found[child.pid] >= 0.15
        # The nearest instance counts: a child that is one itself is not its parent's as well.
        alone = host_view._cpu_by_tree({os.getpid()})[os.getpid()]
        assert alone >= found[os.getpid()] + 0.15
        child.communicate(b"\n")


def test_memory_is_read_with_the_kernels_own_word_on_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressure = tmp_path / "memory"
    monkeypatch.setattr(host_view, "PRESSURE", pressure)
    assert read_memory().stalled_percent == 0
    pressure.write_text("some avg10=55.00 avg60=1.00 total=1\nfull avg10=12.50 avg60=0.00 total=1\n")
    now = read_memory()
    assert now.stalled_percent == 12.5
    assert 0 < now.available_bytes <= now.total_bytes


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (MemoryState(total_bytes=100 * GIB, available_bytes=6 * GIB), None),
        (MemoryState(total_bytes=100 * GIB, available_bytes=4 * GIB), "4096 of 102400 MiB"),
        (MemoryState(total_bytes=100 * GIB, available_bytes=60 * GIB, stalled_percent=9.9), None),
        (MemoryState(total_bytes=100 * GIB, available_bytes=60 * GIB, stalled_percent=12.0), "in 12 % of the last"),
    ],
)
def test_memory_is_short_when_little_is_left_or_everything_waits_for_it(state: MemoryState, said: str | None) -> None:
    why = memory_pressure(state)
    assert (why is None) if said is None else (said in (why or ""))
