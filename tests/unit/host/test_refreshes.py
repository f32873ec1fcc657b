"""Changes reach what runs, now or as soon as it listens."""

import asyncio
from collections.abc import Callable

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services

from mvm.host import refreshes
from mvm.model.entities import Instance
from mvm.model.errors import Conflict, MvmError
from mvm.model.ids import UserId
from mvm.model.states import State


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshes, "RETRY_SECONDS", (0.001,))


@pytest.mark.usefixtures("_soon")
async def test_one_that_did_not_listen_is_told_again_until_it_does(services: Services) -> None:
    await services.tenant()
    attempts = 0

    def fails(operation: str, about: object) -> MvmError | None:
        nonlocal attempts
        attempts += 1
        return MvmError("deaf") if attempts < 4 else None

    services.operations.fails = fails
    await services.refreshes.tell([services.gateway()], actor="test")
    assert services.operations.refreshed == []
    await until(lambda: services.operations.refreshed == [services.gateway().ref])
    assert attempts == 4
    assert services.kinds(ALICE).count("RefreshFailed") == 3


async def test_the_event_says_what_to_do(services: Services) -> None:
    await services.tenant()
    services.operations.fails = lambda *_: Conflict("it has outgrown its drive", hint="restart it")
    await services.refreshes.tell([services.gateway()], actor="test")
    failed = [
        event.detail for event in services.chronicle.events.recent(tenant_id=ALICE) if event.kind == "RefreshFailed"
    ]
    assert failed == ["it has outgrown its drive; restart it"]


@pytest.mark.usefixtures("_soon")
async def test_one_that_runs_no_more_is_not_told_again(services: Services) -> None:
    await services.tenant()
    gateway = services.gateway()
    attempts: list[str] = []

    def fails(operation: str, about: object) -> MvmError | None:
        attempts.append(operation)
        return MvmError("deaf")

    services.operations.fails = fails
    await services.refreshes.tell([gateway], actor="test")
    await services.catalog.save_instance(gateway.model_copy(update={"state": State.STOPPED}))
    await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == f"refresh {gateway.ref}"])
    assert services.operations.refreshed == []


async def test_one_that_fails_does_not_keep_the_others_from_hearing(services: Services) -> None:
    await services.tenant(workers=2)
    deaf, fine = services.catalog.instances_of(ALICE, WORKERS)

    def fails(operation: str, about: object) -> MvmError | None:
        return MvmError("deaf") if isinstance(about, Instance) and about.ref == deaf.ref else None

    services.operations.fails = fails
    await services.refreshes.tell_tenant(ALICE, actor="test")
    assert services.operations.refreshed == sorted([fine.ref, services.gateway().ref])


async def test_after_a_restart_everyone_who_runs_is_told(services: Services) -> None:
    await services.tenant(workers=2)
    asleep, _ = services.catalog.instances_of(ALICE, WORKERS)
    await services.operations.sleep(asleep.ref, actor="test")
    services.operations.refreshed.clear()
    await services.refreshes.tell_all(actor="recovery")
    assert set(services.operations.refreshed) == {
        i.ref for i in services.catalog.instances.values() if i.ref != asleep.ref
    }


async def test_workers_of_every_tenant_hear_of_a_gateways_new_address_after_it_is_up(services: Services) -> None:
    await services.tenant()
    user = await services.users.add(ALICE, UserId("bob"), actor="test")
    assert user.instance_id is not None
    worker = await services.operations.start(services.catalog.instances[user.instance_id].ref, actor="test")
    services.operations.refreshed.clear()
    services.refreshes.gateway_moved(services.gateway())
    await until(lambda: services.operations.refreshed == [services.gateway().ref, worker.ref])
