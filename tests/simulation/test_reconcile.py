"""Reconcile, policy and people over one simulated host: nobody undoes what another one meant."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.simulation.engine import TwoImages, engine
from tests.simulation.world import ALICE, GATEWAYS, QUICK, WORKERS, World
from tests.standins.waiting import until

from mvm.host.channel_logins import ChannelRefused
from mvm.host.reconcile import INTERVAL_SECONDS, Ask, Reconciler
from mvm.host.reports import Activity
from mvm.model.desired import DesiredPool, DesiredTenant
from mvm.model.entities import DesiredCounts, Instance, PoolSpec, Quotas, UserSpec
from mvm.model.errors import Unavailable
from mvm.model.ids import InstanceRef, UserId
from mvm.model.roles import Role
from mvm.model.states import State
from mvm.wire import messages

GATEWAY_POOL = PoolSpec(pool_id=GATEWAYS, role=Role.GATEWAY, desired=DesiredCounts(running=1), runtime_policy=QUICK)
WORKER_POOL = PoolSpec(
    pool_id=WORKERS, role=Role.CAPABILITY_OPENCLAW, desired=DesiredCounts(running=1), runtime_policy=QUICK
)


@pytest.fixture(params=[True, False], ids=["memory-snapshots", "restart-on-wake"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path, memory_snapshot=request.param).open()
    yield world
    await world.close()


def ask(*pools: PoolSpec, users: tuple[str, ...] = ("alice",), quotas: Quotas | None = None) -> Ask:
    return Ask(
        tenant=DesiredTenant(
            tenant_id=ALICE,
            quotas=quotas or Quotas(),
            pools=tuple(DesiredPool.from_spec(pool) for pool in pools or (GATEWAY_POOL, WORKER_POOL)),
            users=tuple(UserSpec(user_id=UserId(name), pool_id=WORKERS) for name in users),
        )
    )


async def apply(reconciler: Reconciler, wanted: Ask | None = None) -> dict[str, object]:
    report = await reconciler.apply(wanted or ask(), actor="test")
    assert report.failures == []
    return report.to_json()


def worker_of(world: World, user: str = "alice") -> InstanceRef:
    (found,) = [i.ref for i in world.catalog.instances_of(ALICE, WORKERS) if i.user == user]
    return found


def gateway(world: World) -> InstanceRef:
    (found,) = world.catalog.instances_of(ALICE, GATEWAYS)
    return found.ref


async def rest(world: World, ref: InstanceRef) -> None:
    """Let an idle worker go all the way to sleep by policy."""
    world.says(ref, Activity.IDLE)
    for _ in range(3):
        world.time.pass_seconds(QUICK.sleep_after_idle_seconds + 1)
        world.says(gateway(world), Activity.IDLE)
        await world.policy.tick_and_wait()
    assert world.state(ref) is State.SLEEPING


async def test_who_policy_put_to_sleep_stays_asleep_for_an_hour_of_passes(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler)
    ref = worker_of(world)
    await rest(world, ref)
    slept_at = world.catalog.instance(ref).slept_at
    for _ in range(int(3600 / INTERVAL_SECONDS)):
        world.time.pass_seconds(INTERVAL_SECONDS)
        assert (await reconciler.keep_up()).actions == []
        assert (await apply(reconciler))["changed"] is False
        await world.policy.tick_and_wait()
    assert (world.state(ref), world.catalog.instance(ref).slept_at) == (State.SLEEPING, slept_at)
    assert world.guest(ref).wakes == 0
    assert (await world.wakes.wake(ref, actor="message")).state is State.RUNNING


async def test_a_manifest_that_is_edited_all_the_time_wakes_nobody(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler)
    ref = worker_of(world)
    await rest(world, ref)
    names = ("alice", "bob", "carol")
    edits = [
        ask(quotas=Quotas(max_running=7)),
        ask(GATEWAY_POOL, WORKER_POOL.model_copy(update={"egress": "none", "allow_exec": False})),
        ask(GATEWAY_POOL, WORKER_POOL.model_copy(update={"runtime_policy": QUICK, "pinned": True})),
        ask(users=names[:2]),
        ask(users=names),
        ask(GATEWAY_POOL, WORKER_POOL.model_copy(update={"mem_mib": 2048}), users=names),
        ask(GATEWAY_POOL, WORKER_POOL.model_copy(update={"desired": DesiredCounts()}), users=names),
    ]
    for wanted in edits:
        assert (await apply(reconciler, wanted))["changed"] is True
        # A new size reaches those who are up one after the other; after that, and after anything else, all is done.
        for _ in range(len(names)):
            again = await apply(reconciler, wanted)
        assert again["changed"] is False
        world.time.pass_seconds(INTERVAL_SECONDS)
        await world.policy.tick_and_wait()
        assert (world.state(ref), world.guest(ref).wakes) == (State.SLEEPING, 0)
    assert (await world.wakes.wake(ref, actor="message")).state is State.RUNNING
    assert world.runtime.processes[ref.instance_id].machine.mem_mib == WORKER_POOL.mem_mib


async def test_a_gateway_that_dies_comes_back_whoever_notices_first(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler)
    ref = gateway(world)
    world.runtime.end(ref.instance_id)
    await asyncio.gather(world.policy.process_ended(ref), reconciler.keep_up(), reconciler.keep_up())
    await world.policy.settled()
    await reconciler.keep_up()
    assert world.state(ref) is State.RUNNING
    assert world.runtime.starts == 3, "gateway, worker, gateway again: nobody started it twice"


async def test_after_a_reboot_the_gateway_is_back_with_the_first_pass_and_sleepers_sleep_on(world: World) -> None:
    await apply(engine(world))
    ref = worker_of(world)
    await rest(world, ref)
    world.runtime.processes.clear()
    await world.restart_agent()
    await engine(world).keep_up()
    assert world.state(gateway(world)) is State.RUNNING
    assert world.state(ref) is State.SLEEPING


async def test_what_a_person_did_by_hand_is_left_alone_for_its_time_and_then_put_right(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler, ask(GATEWAY_POOL))
    ref = gateway(world)
    await world.lifecycle.stop(ref, actor="operator", hold=False)
    await world.lifecycle.leave_alone(ref)
    world.time.pass_seconds(299)
    assert (await reconciler.keep_up()).actions == []
    world.time.pass_seconds(2)
    await reconciler.keep_up()
    assert world.state(ref) is State.RUNNING


async def test_a_message_in_the_middle_of_a_pass_is_served(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler, ask(users=("alice", "bob")))
    for name in ("alice", "bob"):
        await rest(world, worker_of(world, name))
    world.runtime.gate = asyncio.Event()
    growing = asyncio.create_task(apply(reconciler, ask(users=("alice", "bob", "carol"))))
    while world.catalog.instances_of(ALICE, WORKERS)[-1].transition is None:
        await asyncio.sleep(0)
    woken = asyncio.create_task(world.wakes.wake(worker_of(world, "bob"), actor="message"))
    world.runtime.gate.set()
    assert (await woken).state is State.RUNNING
    await growing
    assert world.state(worker_of(world, "carol")) is State.RUNNING


async def test_a_new_size_waits_for_the_end_of_a_turn_and_sleepers_take_it_at_their_wake(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler, ask(users=("alice", "bob")))
    busy, asleep = worker_of(world, "alice"), worker_of(world, "bob")
    world.guest(busy).status = messages.WorkStatus.BUSY
    world.says(busy, Activity.BUSY, in_flight=1)
    await rest(world, asleep)
    world.says(busy, Activity.BUSY, in_flight=1)
    larger = WORKER_POOL.model_copy(update={"mem_mib": 4096})
    told = await apply(reconciler, ask(GATEWAY_POOL, larger, users=("alice", "bob")))
    assert told["pools"]["updated"] == ["alice/workers"]
    assert world.guest(busy).sleeps == 0, "nobody was drained in the middle of a turn"
    assert "as soon as it is idle" in str(told["deferred"])
    world.says(busy, Activity.IDLE)
    await reconciler.keep_up()
    assert world.runtime.processes[busy.instance_id].machine.mem_mib == 4096
    await reconciler.keep_up()
    assert world.state(asleep) is State.SLEEPING
    assert asleep.instance_id not in world.runtime.snapshots
    await world.wakes.wake(asleep, actor="message")
    assert world.runtime.processes[asleep.instance_id].machine.mem_mib == 4096
    assert (await reconciler.keep_up()).actions == []


async def test_a_turn_that_begins_after_the_plan_refuses_the_restart_and_goes_on(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler)
    ref = worker_of(world)
    world.says(ref, Activity.IDLE)
    world.guest(ref).refuse_sleep = "busy: a turn is under way"
    larger = WORKER_POOL.model_copy(update={"mem_mib": 4096})
    told = await apply(reconciler, ask(GATEWAY_POOL, larger))
    assert "a turn is under way" in str(told["deferred"])
    assert world.state(ref) is State.RUNNING
    world.guest(ref).refuse_sleep = None
    await reconciler.keep_up()
    assert world.runtime.processes[ref.instance_id].machine.mem_mib == 4096


async def test_a_new_image_goes_to_one_instance_first_and_back_when_that_does_not_come_up(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    world.runtime.capabilities = dataclasses.replace(world.runtime.capabilities, images=True)
    images = TwoImages(world)
    reconciler = engine(world, images=images)
    batch = PoolSpec(pool_id=WORKERS, role=Role.WORKER, desired=DesiredCounts(running=2), runtime_policy=QUICK)
    await apply(reconciler, ask(batch, users=()))
    await images.build(world.catalog.pool(ALICE, WORKERS), actor="test", progress=lambda text, **_: None)
    refs = [i.ref for i in world.catalog.instances_of(ALICE, WORKERS)]
    for ref in refs:
        await world.lifecycle.stop(ref, actor="test", hold=False)
    await reconciler.keep_up()
    assert {i.image_revision for i in world.catalog.instances_of(ALICE)} == {"revision-1"}

    for ref in refs:
        world.says(ref, Activity.IDLE)
    world.runtime.fail["start"] = Unavailable("no such kernel")
    report = await reconciler.apply(ask(batch.model_copy(update={"flake": "x"}), users=()), actor="test")
    assert report.done["pools"]["built"] == ["alice/workers"]
    assert "no such kernel" in report.failures[0].error.message
    assert world.catalog.pool(ALICE, WORKERS).revision == "revision-1"
    instances = world.catalog.instances_of(ALICE, WORKERS)
    assert [(i.state, i.image_revision) for i in instances] == [(State.RUNNING, "revision-1")] * 2
    assert world.guest(refs[1]).sleeps == 1, "the second one was not touched after the canary failed"

    world.time.pass_seconds(60)
    for ref in refs:
        world.says(ref, Activity.IDLE)
    await images.build(world.catalog.pool(ALICE, WORKERS), actor="test", progress=lambda text, **_: None)
    await reconciler.keep_up()
    assert sorted(i.image_revision for i in world.catalog.instances_of(ALICE)) == ["revision-1", "revision-3"]
    await reconciler.keep_up()
    assert {i.image_revision for i in world.catalog.instances_of(ALICE)} == {"revision-3"}
    assert (await reconciler.keep_up()).actions == []
    await world.close()


BATCH = PoolSpec(pool_id=WORKERS, role=Role.WORKER, desired=DesiredCounts(running=2), runtime_policy=QUICK)


async def no_place(world: World, canary: InstanceRef) -> None:
    """Somebody takes the place of the canary between its end and its start."""
    start = world.lifecycle.start

    async def start_later(ref: InstanceRef, *, actor: str, unless_held: bool = False) -> Instance:
        tenant = world.catalog.tenant(ALICE)
        await world.catalog.save_tenant(tenant.model_copy(update={"quotas": Quotas(max_running=1)}))
        return await start(ref, actor=actor, unless_held=unless_held)

    world.lifecycle.start = start_later  # type: ignore[method-assign]


async def revoked_token(world: World, canary: InstanceRef) -> None:
    world.runtime.fail["start"] = ChannelRefused(f"Telegram does not let the gateway {canary} in: 401")


async def forced_stop(world: World, canary: InstanceRef) -> None:
    await _while_it_comes_up(world, canary)
    await world.lifecycle.stop(canary, actor="operator", force=True)


async def destroyed(world: World, canary: InstanceRef) -> None:
    await _while_it_comes_up(world, canary)
    await world.lifecycle.destroy(canary, actor="operator")


async def stop_in_the_middle(world: World, canary: InstanceRef) -> None:
    """A person's stop comes while the canary is being stopped for its restart."""
    asked = asyncio.Event()

    async def ask(request: messages.HostToGuest) -> None:
        if isinstance(request, messages.SleepPrep):
            asked.set()

    world.guest(canary).before = ask
    await asked.wait()
    await world.lifecycle.stop(canary, actor="operator")


async def _while_it_comes_up(world: World, canary: InstanceRef) -> None:
    guest = world.guest(canary)
    guest.status = messages.WorkStatus.UNKNOWN
    guest.requests.clear()
    await until(lambda: "WorkerStatus" in guest.requests, what="the canary's start", seconds=60)


@pytest.mark.parametrize("what", [no_place, revoked_token, forced_stop, destroyed, stop_in_the_middle])
async def test_what_is_not_the_images_fault_takes_no_image_back_and_starts_nobody(
    tmp_path: Path, what: Callable[[World, InstanceRef], Awaitable[None]]
) -> None:
    world = World(tmp_path)
    world.runtime.capabilities = dataclasses.replace(world.runtime.capabilities, images=True)
    await world.open()
    images = TwoImages(world)
    reconciler = engine(world, images=images)
    await apply(reconciler, ask(BATCH, users=()))
    refs = [i.ref for i in world.catalog.instances_of(ALICE, WORKERS)]
    for revision in ("revision-1", "revision-2"):
        await images.build(world.catalog.pool(ALICE, WORKERS), actor="test", progress=lambda text, **_: None)
        for ref in refs if revision == "revision-1" else []:
            await world.lifecycle.stop(ref, actor="test", hold=False)
            await world.lifecycle.start(ref, actor="test")
    for ref in refs:
        world.says(ref, Activity.IDLE)
    happens = asyncio.create_task(what(world, refs[0]))
    await asyncio.sleep(0)
    await reconciler.keep_up()
    await happens
    assert world.catalog.pool(ALICE, WORKERS).revision == "revision-2"
    assert not world.has_process(refs[0])
    assert world.state(refs[1]) is State.RUNNING
    if what in (forced_stop, stop_in_the_middle):
        assert world.catalog.instance(refs[0]).held
    await world.close()


async def test_an_agent_that_is_killed_in_a_pass_goes_on_with_the_next_one(world: World) -> None:
    reconciler = engine(world)
    await apply(reconciler, ask(GATEWAY_POOL))
    world.runtime.gate = asyncio.Event()
    half_way = asyncio.create_task(apply(reconciler))
    while not (
        world.catalog.instances_of(ALICE, WORKERS)
        and worker_of(world) in {i.ref for i in world.catalog.awake_of(ALICE)}
    ):
        await asyncio.sleep(0)
    half_way.cancel()
    await asyncio.gather(half_way, return_exceptions=True)
    world.runtime.gate = None
    await world.restart_agent()
    reconciler = engine(world)
    await apply(reconciler)
    assert world.state(worker_of(world)) is State.RUNNING
    assert len(world.catalog.instances_of(ALICE)) == 2
    assert (await apply(reconciler))["changed"] is False


async def test_busy_unknown_guests_are_never_stopped_as_surplus(world: World) -> None:
    reconciler = engine(world)
    batch = PoolSpec(pool_id=WORKERS, role=Role.WORKER, desired=DesiredCounts(running=2), runtime_policy=QUICK)
    await apply(reconciler, ask(batch, users=()))
    for instance in world.catalog.instances_of(ALICE):
        world.guest(instance.ref).status = messages.WorkStatus.BUSY
        world.guest(instance.ref).refuse_sleep = "busy: a turn is under way"
    fewer = batch.model_copy(update={"desired": DesiredCounts(running=0)})
    told = await apply(reconciler, ask(fewer, users=()))
    assert len(told["deferred"]) == 2
    assert {i.state for i in world.catalog.instances_of(ALICE)} == {State.RUNNING}
