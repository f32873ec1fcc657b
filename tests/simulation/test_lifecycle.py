"""Sleep and wake as an operator and a writer see them: what holds, whatever fails in between."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.simulation.world import ALICE, GATEWAYS, QUICK, WORKERS, World
from tests.standins.waiting import until

from mvm.host import slots
from mvm.host.line_files import LineFile
from mvm.host.observability import Observability
from mvm.host.progress import Progress
from mvm.host.reports import Activity
from mvm.model.entities import Integration, Pool, Quotas
from mvm.model.errors import Conflict, QuotaExceeded, Refused, Unavailable
from mvm.model.ids import InstanceRef
from mvm.model.states import State
from mvm.wire import messages


@pytest.fixture(params=[True, False], ids=["memory-snapshots", "restart-on-wake"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path, memory_snapshot=request.param).open()
    await world.tenant()
    yield world
    await world.close()


async def test_a_sleeping_instance_has_no_process_and_wakes_running(world: World) -> None:
    ref = await world.worker(state=State.SLEEPING)
    assert not world.has_process(ref)
    woken = await world.lifecycle.wake(ref, actor="test")
    assert woken.state is State.RUNNING
    assert world.has_process(ref)
    assert world.guest(ref).wakes == 1
    assert [stage.stage for stage in woken.last_wake.stages] == [
        "queue",
        "network",
        "drives",
        "restore",
        "agent",
        "guest",
        "service",
    ]


async def test_a_sleep_and_a_wake_are_seen_in_the_metrics(world: World) -> None:
    observability = Observability(world.catalog, world.chronicle, healthy=lambda: True)
    ref = await world.worker(state=State.SLEEPING)
    await world.lifecycle.wake(ref, actor="test")
    world.guest(ref).refuse_sleep = "busy: a turn is under way"
    with pytest.raises(Refused):
        await world.lifecycle.sleep(ref, actor="test")
    text = observability.metrics.render().decode()
    for stage in ("queue", "network", "drives", "restore", "agent", "guest", "service", "total"):
        assert f'mvm_wake_duration_seconds_count{{stage="{stage}"}} 1.0' in text
    assert 'mvm_sleep_duration_seconds_count{stage="drain"} 1.0' in text
    assert 'mvm_instance_transitions_total{to="running"} 2.0' in text
    assert 'mvm_instance_transitions_total{to="sleeping"} 1.0' in text
    assert "mvm_instances_deferred_total 1.0" in text
    assert 'mvm_instances{state="running"} 1.0' in text


async def test_waking_a_running_instance_succeeds_at_once(world: World) -> None:
    ref = await world.worker()
    assert (await world.lifecycle.wake(ref, actor="test")).state is State.RUNNING
    assert world.guest(ref).wakes == 0


async def test_guests_that_never_become_ready_keep_nobody_elses_asleep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "SLOT_SECONDS", 0.05)
    await world.tenant(quotas=Quotas(max_running=100, max_instances_per_pool=100, max_mem_mib=2**20, max_vcpus=1000))
    sleeper = await world.worker(state=State.SLEEPING)
    wedged = [await world.worker(state=State.SLEEPING) for _ in range(2)]
    for ref in wedged:
        world.guest(ref).status = messages.WorkStatus.UNKNOWN
    stuck = [asyncio.create_task(world.wakes.wake(ref, actor="hostile")) for ref in wedged]
    while not all(world.has_process(ref) for ref in wedged):
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        assert (await world.wakes.wake(sleeper, actor="writer")).state is State.RUNNING
    for ref in wedged:
        world.guest(ref).status = messages.WorkStatus.IDLE
    await asyncio.gather(*stuck)


async def test_many_wakes_at_once_are_one_restore_with_one_result(world: World) -> None:
    ref = await world.worker(state=State.SLEEPING)
    before = world.runtime.starts + world.runtime.restores
    results = await asyncio.gather(*(world.wakes.wake(ref, actor=f"writer {n}") for n in range(20)))
    assert {r.state for r in results} == {State.RUNNING}
    assert world.runtime.starts + world.runtime.restores == before + 1


async def test_a_caller_that_hangs_up_does_not_cancel_the_wake(world: World) -> None:
    ref = await world.worker(state=State.SLEEPING)
    world.runtime.gate = asyncio.Event()
    impatient = asyncio.create_task(world.wakes.wake(ref, actor="impatient"))
    patient = asyncio.create_task(world.wakes.wake(ref, actor="patient"))
    while not world.wakes.is_wanted(ref.instance_id):
        await asyncio.sleep(0)
    impatient.cancel()
    world.runtime.gate.set()
    assert (await patient).state is State.RUNNING


async def test_a_busy_guest_is_never_put_to_sleep_not_even_by_force(world: World) -> None:
    ref = await world.worker()
    world.guest(ref).refuse_sleep = "busy: a turn is under way"
    with pytest.raises(Refused, match="a turn is under way"):
        await world.lifecycle.sleep(ref, actor="test", force=True)
    assert world.state(ref) is State.RUNNING
    assert world.has_process(ref)
    assert "a turn is under way" in (world.catalog.instance(ref).last_error or "")


@pytest.mark.parametrize("step", ["pause", "snapshot"])
async def test_a_sleep_that_fails_leaves_it_running_and_told_so(world: World, step: str) -> None:
    ref = await world.worker()
    if not world.runtime.capabilities.memory_snapshot:
        pytest.skip("this kind of sleep has no such step")
    world.runtime.fail[step] = Unavailable("the disk is full")
    with pytest.raises(Unavailable, match="the disk is full"):
        await world.lifecycle.sleep(ref, actor="test")
    assert world.state(ref) is State.RUNNING
    assert world.guest(ref).wakes == 1, "the guest was drained and must hear that it goes on"
    await world.lifecycle.sleep(ref, actor="test")
    assert world.state(ref) is State.SLEEPING


async def test_a_critical_integration_that_fails_refuses_the_sleep(world: World) -> None:
    pool = world.catalog.pool(ALICE, WORKERS)
    integrations = (Integration(name="telegram", critical=True), Integration(name="notes"))
    await world.catalog.save_pool(pool.model_copy(update={"integrations": integrations}))
    ref = await world.worker()
    world.guest(ref).failed_integrations = ("telegram",)
    with pytest.raises(Refused, match="telegram"):
        await world.lifecycle.sleep(ref, actor="test")
    assert world.state(ref) is State.RUNNING
    world.guest(ref).failed_integrations = ("notes",)
    await world.lifecycle.sleep(ref, actor="test")
    assert world.state(ref) is State.SLEEPING


async def test_a_message_in_the_middle_of_going_to_sleep_finds_it_awake(world: World) -> None:
    ref = await world.worker()
    wake: asyncio.Task[object] | None = None

    async def somebody_writes(request: messages.HostToGuest) -> None:
        nonlocal wake
        if isinstance(request, messages.SleepPrep):
            wake = asyncio.create_task(world.wakes.wake(ref, actor="writer"))
            while not world.wakes.is_wanted(ref.instance_id):
                await asyncio.sleep(0)

    world.guest(ref).before = somebody_writes
    with pytest.raises(Conflict, match="somebody wrote"):
        await world.lifecycle.sleep(ref, actor="policy")
    assert wake is not None
    await wake
    assert world.state(ref) is State.RUNNING


async def test_minimum_running_time_holds_unless_forced(world: World) -> None:
    pool = world.catalog.pool(ALICE, WORKERS)
    policy = QUICK.model_copy(update={"min_running_seconds": 300})
    await world.catalog.save_pool(pool.model_copy(update={"runtime_policy": policy}))
    ref = await world.worker()
    world.time.pass_seconds(10)
    with pytest.raises(Refused, match="10 s of at least 300 s"):
        await world.lifecycle.sleep(ref, actor="test")
    await world.lifecycle.sleep(ref, actor="test", force=True)
    assert world.state(ref) is State.SLEEPING


async def test_a_start_that_fails_leaves_no_process_and_the_reason(world: World) -> None:
    ref = await world.worker(state=State.READY)
    world.runtime.fail["start"] = Unavailable("no such kernel")
    with pytest.raises(Unavailable, match="no such kernel"):
        await world.lifecycle.start(ref, actor="test")
    assert world.state(ref) is State.READY
    assert world.catalog.instance(ref).last_error == "no such kernel"
    assert not world.has_process(ref)
    await world.lifecycle.start(ref, actor="test")
    assert world.catalog.instance(ref).last_error is None


async def test_an_audit_that_the_disk_does_not_take_undoes_no_wake(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    by_message, by_hand = await world.worker(state=State.SLEEPING), await world.worker(state=State.SLEEPING)

    def full(file: LineFile, line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(LineFile, "append", full)
        await world.wakes.wake(by_message, actor="message")
        await world.lifecycle.start(by_hand, actor="operator")
        await world.lifecycle.sleep(by_hand, actor="operator")
    assert (world.state(by_message), world.state(by_hand)) == (State.RUNNING, State.SLEEPING)
    assert world.has_process(by_message)
    if world.runtime.capabilities.memory_snapshot:
        assert world.runtime.restores == 2
    assert "InstanceWoken cannot be written to the audit of alice" in caplog.text
    await world.lifecycle.stop(by_message, actor="operator")
    assert [entry["action"] for entry in world.audit.recent(ALICE, 2)] == ["AuditRepaired", "InstanceStopped"]
    assert world.audit.verify(ALICE).intact


async def test_a_snapshot_that_does_not_fit_boots_cold_and_is_audited(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    ref = await world.worker(state=State.SLEEPING)
    world.runtime.reject_snapshot = "another CPU"
    woken = await world.wakes.wake(ref, actor="writer")
    assert woken.state is State.RUNNING
    await world.chronicle.flush()
    assert any(e.kind == "SnapshotRejected" and "another CPU" in (e.detail or "") for e in world.events.recent())
    await world.close()


async def test_what_its_operator_stopped_is_not_woken_by_a_message(world: World) -> None:
    ref = await world.worker()
    await world.lifecycle.stop(ref, actor="operator")
    with pytest.raises(Refused, match="stopped by its operator"):
        await world.wakes.wake(ref, actor="writer")
    await world.lifecycle.start(ref, actor="operator")
    assert world.state(ref) is State.RUNNING


async def test_a_message_does_not_wake_what_its_operator_is_just_stopping(world: World) -> None:
    ref = await world.worker(state=State.SLEEPING)
    async with world.lifecycle.locked(ref):
        stopping = asyncio.create_task(world.lifecycle.stop(ref, actor="operator"))
        await asyncio.sleep(0)
        waking = asyncio.create_task(world.wakes.wake(ref, actor="message"))
        await until(lambda: world.audit.recent(ALICE, 1)[0]["action"] == "WakeRequested", what="the wake")
    with pytest.raises(Refused, match="stopped by its operator"):
        await waking
    assert (await stopping).held
    await world.lifecycle.stop(ref, actor="reconcile", hold=False)
    assert world.catalog.instance(ref).held, "only a person lets it go"
    await world.lifecycle.start(ref, actor="operator")
    assert (world.state(ref), world.catalog.instance(ref).held) == (State.RUNNING, False)


async def test_a_wake_beyond_the_quota_puts_the_coldest_to_sleep_first(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant(quotas=Quotas(max_running=2))
    old, young, wanted = [await world.worker(state=State.SLEEPING) for _ in range(3)]
    for ref in (old, young):
        await world.wakes.wake(ref, actor="writer")
        world.says(ref, Activity.IDLE)
        world.time.pass_seconds(10)
    await world.wakes.wake(wanted, actor="writer")
    assert [world.state(ref) for ref in (old, young, wanted)] == [State.SLEEPING, State.RUNNING, State.RUNNING]
    await world.close()


async def test_a_wake_waits_for_room_while_everybody_is_busy_and_is_not_dropped(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant(quotas=Quotas(max_running=1))
    first = await world.worker()
    world.says(first, Activity.BUSY, in_flight=1)
    second = await world.worker(state=State.READY)
    waiting = asyncio.create_task(world.wakes.wake(second, actor="writer"))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    world.says(first, Activity.IDLE)
    assert (await waiting).state is State.RUNNING
    assert world.state(first) is State.SLEEPING
    await world.close()


async def test_a_quota_that_no_sleep_can_help_is_an_error_that_names_it(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant(quotas=Quotas(max_mem_mib=100))
    ref = await world.worker(state=State.READY)
    with pytest.raises(QuotaExceeded, match="max_mem_mib"):
        await world.wakes.wake(ref, actor="writer")
    assert world.state(ref) is State.READY
    await world.close()


async def test_warm_keeps_the_process_and_comes_back_without_a_start(world: World) -> None:
    ref = await world.worker(state=State.WARM)
    assert world.has_process(ref)
    starts = world.runtime.starts + world.runtime.restores
    await world.wakes.wake(ref, actor="writer")
    assert world.state(ref) is State.RUNNING
    assert world.runtime.starts + world.runtime.restores == starts
    assert world.guest(ref).wakes == 1


async def test_a_warm_instance_goes_on_to_sleep(world: World) -> None:
    ref = await world.worker(state=State.WARM)
    await world.lifecycle.sleep(ref, actor="policy", by_policy=True)
    assert world.state(ref) is State.SLEEPING
    assert world.catalog.instance(ref).rested_by_policy
    assert not world.has_process(ref)


async def test_forbidden_transitions_are_refused_by_name(world: World) -> None:
    ref = await world.worker(state=State.READY)
    with pytest.raises(Conflict, match=f"Invalid state transition: ready -> warm .*{ref.instance_id}"):
        await world.lifecycle.warm(ref, actor="test")
    with pytest.raises(Conflict, match="Invalid state transition: ready"):
        await world.lifecycle.sleep(ref, actor="test")


async def test_destroy_leaves_nothing(world: World) -> None:
    ref = await world.worker()
    await world.lifecycle.destroy(ref, actor="test")
    await world.lifecycle.destroy(ref, actor="test")
    assert ref.instance_id not in world.catalog.instances
    assert not world.has_process(ref)
    assert await world.store.list(f"instances/{ALICE}/") == []
    assert not [p for p in world.directory.rglob(f"*{ref.instance_id}*")]


async def test_a_refresh_reaches_a_running_guest_only_when_something_changed(world: World) -> None:
    ref = await world.worker()
    await world.lifecycle.refresh(ref, actor="test")
    assert world.guest(ref).refreshes == 0
    world.drives.version = 2
    await world.lifecycle.refresh(ref, actor="test")
    assert world.guest(ref).refreshes == 1
    assert world.catalog.instance(ref).secrets_epoch == 2


async def test_an_address_that_was_given_is_not_given_twice(world: World) -> None:
    refs = [await world.worker(state=State.READY) for _ in range(4)]
    assert len({world.catalog.instance(ref).network.guest_ip for ref in refs}) == 4


async def test_idle_workers_rest_by_themselves_and_gateways_do_not(world: World) -> None:
    worker = await world.worker()
    gateway = await world.worker(pool=GATEWAYS)
    for ref in (worker, gateway):
        world.says(ref, Activity.IDLE)
    for _ in range(40):
        world.time.pass_seconds(10)
        for ref in (worker, gateway):
            if world.has_process(ref) and world.state(ref) is State.RUNNING:
                world.says(ref, Activity.IDLE)
        await world.policy.tick_and_wait()
    assert world.state(worker) is State.SLEEPING
    assert world.state(gateway) is State.RUNNING
    assert world.guest(worker).wakes == 0, "nobody needed it: it stays asleep"


async def test_a_busy_worker_is_left_alone_for_as_long_as_it_is_busy(world: World) -> None:
    ref = await world.worker()
    world.guest(ref).status = messages.WorkStatus.BUSY
    for _ in range(40):
        world.time.pass_seconds(60)
        world.says(ref, Activity.BUSY, in_flight=1)
        await world.policy.tick_and_wait()
    assert world.state(ref) is State.RUNNING
    assert world.guest(ref).sleeps == 0


async def test_an_alarm_wakes_a_sleeper_in_time_and_only_then(world: World) -> None:
    ref = await world.worker()
    world.guest(ref).next_alarm_at = world.time.wall + timedelta(seconds=600)
    await world.lifecycle.sleep(ref, actor="test")
    await world.policy.tick_and_wait()
    assert world.state(ref) is State.SLEEPING
    world.time.pass_seconds(598)
    await world.policy.tick_and_wait()
    assert world.state(ref) is State.RUNNING


async def test_a_gateway_comes_back_although_another_that_died_is_still_held_up(world: World) -> None:
    worker, gateway = await world.worker(), await world.worker(pool=GATEWAYS)
    for ref in (worker, gateway):
        world.says(ref, Activity.BUSY, in_flight=1)
    loop = asyncio.create_task(world.policy.run())
    died = world.catalog.instance(gateway).process
    async with world.lifecycle.locked(worker), asyncio.timeout(20):
        world.runtime.end(worker.instance_id)
        world.runtime.end(gateway.instance_id)
        while world.state(gateway) is not State.RUNNING or world.catalog.instance(gateway).process == died:
            await asyncio.sleep(0.01)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    await world.policy.settled()


async def test_an_alarm_that_no_calendar_has_harms_nobody_else(world: World) -> None:
    hostile, other = await world.worker(), await world.worker()
    world.guest(hostile).next_alarm_at = datetime.min.replace(tzinfo=UTC)
    world.guest(other).next_alarm_at = world.time.wall + timedelta(seconds=600)
    for ref in (hostile, other):
        await world.lifecycle.sleep(ref, actor="test")
    world.time.pass_seconds(598)
    await world.policy.tick_and_wait()
    assert world.state(other) is State.RUNNING


async def test_a_wake_for_an_alarm_that_fails_is_tried_again_but_not_at_every_look(world: World) -> None:
    ref = await world.worker()
    world.guest(ref).next_alarm_at = world.time.wall + timedelta(seconds=600)
    await world.lifecycle.sleep(ref, actor="test")
    world.time.pass_seconds(598)
    tries = 0
    for _ in range(60):
        world.runtime.fail["start"] = world.runtime.fail["restore"] = Unavailable("no memory")
        await world.policy.tick_and_wait()
        tries += len(world.runtime.fail) < 2
        world.time.pass_seconds(5)
    assert 3 < tries < 12, "five minutes"
    world.runtime.fail.clear()
    world.time.pass_seconds(60)
    await world.policy.tick_and_wait()
    assert world.state(ref) is State.RUNNING


async def test_a_gateway_that_dies_comes_back_by_itself_and_an_idle_worker_does_not(world: World) -> None:
    gateway, worker = await world.worker(pool=GATEWAYS), await world.worker()
    for ref in (gateway, worker):
        world.says(ref, Activity.IDLE)
        world.runtime.end(ref.instance_id)
        await world.policy.process_ended(ref)
    await world.policy.settled()
    assert world.state(gateway) is State.RUNNING
    assert world.state(worker) is State.STOPPED
    await world.wakes.wake(worker, actor="writer")
    assert world.state(worker) is State.RUNNING, "its next message boots it"


async def test_a_worker_that_dies_in_a_turn_is_started_again_to_finish_it(world: World) -> None:
    ref = await world.worker()
    world.says(ref, Activity.BUSY, in_flight=1)
    world.runtime.end(ref.instance_id)
    await world.policy.process_ended(ref)
    await world.policy.settled()
    assert world.state(ref) is State.RUNNING


async def end(world: World, ref: InstanceRef, ending: str) -> None:
    """End a start under way, which takes seconds at most."""
    async with asyncio.timeout(10):
        if ending == "destroy":
            await world.lifecycle.destroy(ref, actor="test")
            assert ref.instance_id not in world.catalog.instances
        else:
            with pytest.raises(Conflict, match="ready -> stopped"):
                await world.lifecycle.stop(ref, actor="test", force=True)
            assert (world.state(ref), world.catalog.instance(ref).transition) == (State.READY, None)


@pytest.mark.parametrize("ending", ["destroy", "forced stop"])
async def test_a_start_that_hangs_is_not_waited_for_by_who_ends_it(world: World, ending: str) -> None:
    ref = await world.worker(state=State.READY)
    world.guest(ref).status = messages.WorkStatus.UNKNOWN
    starting = asyncio.create_task(world.lifecycle.start(ref, actor="test"))
    while "WorkerStatus" not in world.guest(ref).requests:
        await asyncio.sleep(0.01)
    await end(world, ref, ending)
    assert not world.has_process(ref)
    with pytest.raises(Conflict, match="given up"):
        await starting


class SlowImages:
    """Stands for images that are built for as long as a test likes."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def ensure(self, pool: Pool, progress: Progress) -> Pool:
        self.began.set()
        await asyncio.Event().wait()
        return pool


@pytest.mark.parametrize("ending", ["destroy", "forced stop"])
async def test_a_start_that_waits_for_its_image_is_not_waited_for_by_who_ends_it(tmp_path: Path, ending: str) -> None:
    world = World(tmp_path)
    world.images = images = SlowImages()
    world.runtime.capabilities = dataclasses.replace(world.runtime.capabilities, images=True)
    await world.open()
    await world.tenant()
    ref = await world.worker(state=State.READY)
    starting = asyncio.create_task(world.lifecycle.start(ref, actor="test"))
    await images.began.wait()
    await end(world, ref, ending)
    with pytest.raises(Conflict, match="given up"):
        await starting
    await world.close()


async def test_policy_leaves_alone_what_a_person_has_just_dealt_with(world: World) -> None:
    ref = await world.worker()
    await world.lifecycle.leave_alone(ref)
    for _ in range(29):
        world.time.pass_seconds(10)
        world.says(ref, Activity.IDLE)
        await world.policy.tick_and_wait()
    assert world.state(ref) is State.RUNNING
    for _ in range(14):
        world.time.pass_seconds(10)
        await world.policy.tick_and_wait()
    assert world.state(ref) is State.SLEEPING
