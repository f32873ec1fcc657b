"""What `mvm new` asks of the agent: plan, apply, take back, wait."""

import asyncio
from typing import Any

import pytest
from tests.unit.host.services import ALICE, GATEWAYS, WORKERS, Services

from mvm.host.reconcile_actions import Kind
from mvm.host.reports import Activity
from mvm.model.deployment import Deployment
from mvm.model.entities import OPENCLAW_QUOTAS, DesiredCounts, Instance, OpenClawSettings, PoolSpec, UserSpec
from mvm.model.errors import Conflict, InvalidInput, MvmError, QuotaExceeded, TimedOut, Unavailable
from mvm.model.ids import InstanceRef, PoolId, UserId
from mvm.model.roles import Role
from mvm.model.states import State

SECRETS = {
    "anthropic/ANTHROPIC_API_KEY": "sk-ant-0123456789abcdef",
    "telegram/TELEGRAM_BOT_TOKEN": "123456789:AAE-abcdefghijklmnopqrstuvwxyz012345",
}
GATEWAY_POOL = PoolSpec(pool_id=GATEWAYS, role=Role.GATEWAY, desired=DesiredCounts(running=1))
WORKER_POOL = PoolSpec(pool_id=WORKERS, role=Role.CAPABILITY_OPENCLAW, desired=DesiredCounts(running=1))
ALICE_HERSELF = UserSpec(user_id=UserId("alice"), pool_id=WORKERS)


def deployment(**changes: Any) -> Deployment:
    settings: dict[str, Any] = {
        "name": ALICE,
        "quotas": OPENCLAW_QUOTAS,
        "pools": (WORKER_POOL, GATEWAY_POOL),
        "users": (ALICE_HERSELF,),
    }
    return Deployment(**{**settings, **changes})


async def apply(services: Services, wanted: Deployment | None = None, **options: Any) -> list[Kind]:
    outcome = await services.deployments.apply(wanted or deployment(), SECRETS, actor="test", **options)
    return [action.kind for action in outcome.actions]


async def test_everything_is_there_and_runs_afterwards(services: Services) -> None:
    await apply(services)
    assert services.gateway().state is State.RUNNING
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    assert (worker.state, worker.user) == (State.RUNNING, "alice")
    assert services.users.get(ALICE, UserId("alice")).instance_id == worker.instance_id
    assert [name.path for name in await services.secrets.names(ALICE)] == sorted(SECRETS)
    assert services.catalog.tenant(ALICE).quotas == OPENCLAW_QUOTAS


async def test_a_second_time_there_is_nothing_to_do(services: Services) -> None:
    await apply(services)
    before = services.kinds()
    assert await apply(services) == []
    assert services.kinds() == before


async def test_a_dry_run_tells_everything_and_changes_nothing(services: Services) -> None:
    told = await apply(services, dry_run=True)
    assert await services.store.list("") == []
    assert told == await apply(services)


async def test_every_step_is_told_with_its_number_up_to_the_last(services: Services) -> None:
    counts: list[tuple[float | None, float | None]] = []
    planned = await apply(
        services, progress=lambda text, done=None, total=None: counts.append((done, total)) if total else None
    )
    assert len(planned) > 3
    assert counts == [(number, len(planned)) for number in range(1, len(planned) + 1)]


async def test_only_what_differs_is_changed(services: Services) -> None:
    await apply(services)
    larger = WORKER_POOL.model_copy(update={"mem_mib": 4096})
    assert await apply(services, deployment(pools=(larger, GATEWAY_POOL))) == [Kind.UPDATE_POOL, Kind.RENEW]
    assert services.catalog.pool(ALICE, WORKERS).mem_mib == 4096
    settings = OpenClawSettings(model="anthropic/claude-x")
    wanted = deployment(pools=(larger, GATEWAY_POOL), openclaw=settings)
    assert await apply(services, wanted) == [Kind.UPDATE_TENANT]
    assert services.catalog.tenant(ALICE).openclaw == settings


async def test_a_worker_that_sleeps_is_not_woken_by_it(services: Services) -> None:
    await apply(services)
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    await services.operations.sleep(worker.ref, actor="policy")
    assert await apply(services) == []


async def test_a_gateway_that_is_down_is_started_by_it(services: Services) -> None:
    await apply(services)
    await services.operations.stop(services.gateway().ref, actor="crash")
    assert await apply(services) == [Kind.START]
    assert services.gateway().state is State.RUNNING


async def test_a_new_user_gets_a_worker_and_the_others_keep_theirs(services: Services) -> None:
    await apply(services)
    (before,) = services.catalog.instances_of(ALICE, WORKERS)
    bob = UserSpec(user_id=UserId("bob"), pool_id=WORKERS, telegram=("222",))
    assert Kind.ADD_USER in await apply(services, deployment(users=(ALICE_HERSELF, bob)))
    workers = services.catalog.instances_of(ALICE, WORKERS)
    assert [worker.user for worker in workers] == ["alice", "bob"]
    assert workers[0].instance_id == before.instance_id


async def test_who_was_paired_by_code_stays_paired_when_the_file_names_nobody(services: Services) -> None:
    await apply(services)
    await services.users.add_peer(ALICE, UserId("alice"), "telegram:111", actor="operator")
    assert await apply(services) == []
    assert services.users.get(ALICE, UserId("alice")).peers == ("telegram:111",)


async def test_a_channel_that_the_file_names_is_as_the_file_says(services: Services) -> None:
    await apply(services)
    await services.users.add_peer(ALICE, UserId("alice"), "telegram:111", actor="operator")
    await services.users.add_peer(ALICE, UserId("alice"), "discord:5", actor="operator")
    named = ALICE_HERSELF.model_copy(update={"telegram": ("333",)})
    assert await apply(services, deployment(users=(named,))) == [Kind.UPDATE_USER]
    assert services.users.get(ALICE, UserId("alice")).peers == ("telegram:333", "discord:5")


async def test_a_user_added_by_hand_is_left_alone(services: Services) -> None:
    await apply(services)
    await services.users.add(ALICE, UserId("bob"), actor="operator")
    assert await apply(services) == []
    assert [user.user_id for user in services.users.list(ALICE)] == ["alice", "bob"]


async def test_a_changed_secret_is_named_in_the_plan_and_its_value_is_not(services: Services) -> None:
    await apply(services)
    changed = {**SECRETS, "anthropic/ANTHROPIC_API_KEY": "sk-ant-another-0123456789"}
    outcome = await services.deployments.apply(deployment(), changed, actor="test")
    told = str(outcome.to_json())
    assert "anthropic/ANTHROPIC_API_KEY" in told
    assert "telegram" not in told
    assert "sk-ant" not in told


@pytest.mark.parametrize("failing", ["start gateway", "start worker", "create worker"])
async def test_a_new_deployment_that_fails_half_way_leaves_nothing(services: Services, failing: str) -> None:
    operation, role = failing.split()

    def fails(what: str, about: Instance | PoolId) -> MvmError | None:
        pool = about.pool_id if isinstance(about, Instance) else about
        return MvmError("it broke") if (what, pool) == (operation, f"{role}s") else None

    services.operations.fails = fails
    with pytest.raises(MvmError, match="it broke"):
        await apply(services)
    assert [document.key for document in await services.store.list("")] == ["net/1"]
    services.operations.fails = lambda what, about: None
    await apply(services)
    assert services.gateway().state is State.RUNNING


async def test_what_was_there_before_survives_a_change_that_fails(services: Services) -> None:
    await apply(services)
    before = {i.instance_id for i in services.catalog.instances_of(ALICE)}
    bob = UserSpec(user_id=UserId("bob"), pool_id=WORKERS)
    two = WORKER_POOL.model_copy(update={"desired": DesiredCounts(running=2)})
    services.operations.fails = lambda what, about: MvmError("it broke") if what == "start" else None
    with pytest.raises(MvmError, match="it broke"):
        await apply(services, deployment(pools=(two, GATEWAY_POOL), users=(ALICE_HERSELF, bob)))
    assert {i.instance_id for i in services.catalog.instances_of(ALICE)} == before
    assert [user.user_id for user in services.users.list(ALICE)] == ["alice"]


async def test_a_rollback_is_told_to_whoever_watches(services: Services) -> None:
    services.operations.fails = lambda what, about: MvmError("it broke") if what == "start" else None
    heard: list[str] = []
    with pytest.raises(MvmError):
        await apply(services, progress=lambda text, done=None, total=None: heard.append(text))
    assert "it failed; removing tenant alice again" in heard
    assert "DeploymentFailed" in services.kinds()


async def test_a_change_that_would_lose_something_is_refused_before_anything_is_done(services: Services) -> None:
    await apply(services)
    large = WORKER_POOL.model_copy(update={"pool_id": PoolId("large")})
    moved = ALICE_HERSELF.model_copy(update={"pool_id": PoolId("large")})
    with pytest.raises(InvalidInput, match="has their worker in the pool 'workers'"):
        await apply(services, deployment(pools=(large, WORKER_POOL, GATEWAY_POOL), users=(moved,)))
    assert (ALICE, PoolId("large")) not in services.catalog.pools
    with pytest.raises(Conflict, match="never changes"):
        await apply(services, deployment(net_id=9))


async def test_two_at_once_make_one_deployment(services: Services) -> None:
    outcomes = await asyncio.gather(apply(services), apply(services))
    assert sorted(map(len, outcomes))[0] == 0
    assert len(services.catalog.instances_of(ALICE)) == 2


# Waiting


async def test_a_deployment_that_runs_is_ready(services: Services) -> None:
    await apply(services)
    ready = await services.deployments.wait_until_ready(ALICE)
    assert {i.pool_id for i in ready} == {GATEWAYS, WORKERS}


async def test_a_worker_that_sleeps_is_ready_for_its_message(services: Services) -> None:
    await apply(services)
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    await services.operations.sleep(worker.ref, actor="policy")
    assert [i.pool_id for i in await services.deployments.wait_until_ready(ALICE)] == [GATEWAYS]


async def test_it_waits_for_an_instance_that_has_not_answered_yet(services: Services) -> None:
    await apply(services)
    gateway = services.gateway()
    services.reports.forget(gateway.instance_id)
    heard: list[str] = []

    def progress(text: str, *, done: float | None = None, total: float | None = None) -> None:
        heard.append(text)
        services.reports.record(gateway.instance_id, Activity.READY)

    await services.deployments.wait_until_ready(ALICE, progress=progress)
    assert heard == [f"waiting for the gateway ({gateway.ref}) to answer"]


async def test_what_failed_for_good_is_told_at_once(services: Services) -> None:
    await apply(services)
    gateway = await services.operations.stop(services.gateway().ref, actor="crash")
    await services.catalog.save_instance(gateway.model_copy(update={"last_error": "the bot's token was revoked"}))
    with pytest.raises(Unavailable, match="token was revoked"):
        await services.deployments.wait_until_ready(ALICE)


async def test_a_wait_that_is_given_up_names_what_it_waited_for(services: Services) -> None:
    await apply(services)
    services.reports.forget(services.gateway().instance_id)
    with pytest.raises(TimedOut, match="the gateway"):
        await services.deployments.wait_until_ready(ALICE, limit=0)


async def test_without_a_gateway_that_serves_it_a_deployment_is_not_ready(services: Services) -> None:
    await services.tenant("hub")
    await apply(services, deployment(pools=(WORKER_POOL,), gateway_tenant="hub"))
    with pytest.raises(TimedOut, match="a gateway that serves alice"):
        await services.deployments.wait_until_ready(ALICE, limit=0)


async def test_a_deployment_of_workers_alone_needs_no_gateway(services: Services) -> None:
    batch = PoolSpec(pool_id=PoolId("batch"), role=Role.WORKER, desired=DesiredCounts())
    await apply(services, deployment(pools=(batch,), users=()))
    await services.deployments.wait_until_ready(ALICE, limit=0)


async def test_every_new_worker_is_started_once_whatever_the_pools_counts_are(services: Services) -> None:
    none = WORKER_POOL.model_copy(update={"desired": DesiredCounts()})
    await apply(services, deployment(pools=(none, GATEWAY_POOL)))
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    assert worker.state is State.RUNNING
    await services.operations.stop(worker.ref, actor="operator")
    assert await apply(services, deployment(pools=(none, GATEWAY_POOL))) == []


async def test_a_worker_for_which_there_is_no_room_is_left_for_its_first_message(services: Services) -> None:
    none = WORKER_POOL.model_copy(update={"desired": DesiredCounts()})

    def fails(what: str, about: Instance | PoolId) -> MvmError | None:
        is_worker = isinstance(about, Instance) and about.pool_id == WORKERS
        return QuotaExceeded("max_running") if what == "start" and is_worker else None

    services.operations.fails = fails
    await apply(services, deployment(pools=(none, GATEWAY_POOL)))
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    assert worker.state is State.READY
    assert [i.pool_id for i in await services.deployments.wait_until_ready(ALICE)] == [GATEWAYS]


async def test_what_the_log_said_of_a_failed_start_outlives_the_log(services: Services) -> None:
    async def note(instance: Instance) -> None:
        await services.catalog.save_instance(instance.model_copy(update={"last_error": "it broke"}))

    real_start = services.operations.start

    async def start(ref: InstanceRef, *, actor: str, unless_held: bool = False) -> Instance:
        if ref.pool_id == WORKERS:
            await note(services.catalog.instance(ref))
            raise Unavailable("it broke", hint="look at the log")
        return await real_start(ref, actor=actor)

    services.operations.start = start  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="it broke: Error: workers found no model") as caught:
        await apply(services)
    assert "mvm events" in (caught.value.hint or "")


async def test_what_the_log_said_of_a_gateway_that_never_ran_outlives_it_too(services: Services) -> None:
    def fails(what: str, about: Instance | PoolId) -> MvmError | None:
        is_gateway = isinstance(about, Instance) and about.pool_id == GATEWAYS
        return Unavailable("it broke", hint="look at the log") if what == "start" and is_gateway else None

    services.operations.fails = fails
    with pytest.raises(Unavailable, match=r"^it broke: Error: gateways found no model$") as caught:
        await apply(services)
    assert "mvm events" in (caught.value.hint or "")
    assert services.catalog.instances == {}


async def test_a_gateway_takes_its_place_before_any_worker_does(services: Services) -> None:
    users = tuple(UserSpec(user_id=UserId(name), pool_id=WORKERS) for name in ("alice", "bob", "carol"))
    none = WORKER_POOL.model_copy(update={"desired": DesiredCounts(running=0)})
    started: list[PoolId] = []

    def note(what: str, about: Instance | PoolId) -> MvmError | None:
        if what == "start" and isinstance(about, Instance):
            started.append(about.pool_id)
        return None

    services.operations.fails = note
    await apply(services, deployment(users=users, pools=(none, GATEWAY_POOL)))
    assert started == [GATEWAYS, WORKERS, WORKERS, WORKERS]


async def test_without_a_model_key_nothing_is_created(services: Services) -> None:
    only_telegram = {name: value for name, value in SECRETS.items() if name.startswith("telegram/")}
    with pytest.raises(InvalidInput, match="no model provider's key"):
        await services.deployments.apply(deployment(), only_telegram, actor="test")
    assert services.catalog.tenants == {}
    assert "TenantCreated" not in services.kinds()
