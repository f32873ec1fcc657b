"""Messages from workers on their way through the gateway: checked, written down, sent once, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.standins.waiting import until
from tests.unit.guest.router_world import World

from mvm.guest.router_outbound import MAX_QUEUED_PER_WORKER


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "router")
    await world.start()
    yield world
    await world.close()


async def test_a_reminder_reaches_the_person_on_telegram_first(world: World) -> None:
    answer = await world.outbound()
    assert (answer.status, answer.json_value()) == (202, {"id": "1", "duplicate": False})
    await until(lambda: bool(world.plugin.sent), what="the sending")
    assert world.plugin.sent == [
        {"id": "alice.alice:1", "channel": "telegram", "to": "111", "text": "water the plants"}
    ]
    assert world.plugin.bearers == [world.token]
    assert world.host.wakes == []


async def test_a_repetition_is_sent_once(world: World) -> None:
    await world.outbound()
    again = await world.outbound()
    assert (again.status, again.json_value()["duplicate"]) == (202, True)
    await world.outbound(id="2", text="second")
    await until(lambda: len(world.plugin.sent) == 2, what="both sendings")
    assert [sent["text"] for sent in world.plugin.sent] == ["water the plants", "second"]


@pytest.mark.parametrize(
    ("worker", "token", "source"),
    [
        ("alice.alice", "wrong", "127.0.0.8"),
        ("alice.alice", "bob's token", "127.0.0.8"),
        ("alice.alice", "alice's token", "127.0.0.9"),
        ("bob.bob", "alice's token", "127.0.0.8"),
        ("carol.carol", "alice's token", "127.0.0.8"),
        ("..%2F..%2Frun%2Frouter-token", "x", "127.0.0.8"),
    ],
)
async def test_only_the_worker_itself_may_speak_for_it(world: World, worker: str, token: str, source: str) -> None:
    answer = await world.outbound(worker=worker, token=token, source=source)
    assert answer.status == 401
    assert answer.json_value() == {"error": "this token is not valid for this worker"}
    assert world.plugin.sent == []


async def test_a_message_waits_for_openclaw_and_keeps_its_order(world: World) -> None:
    world.plugin.statuses = [503, 404, 401]
    for number in range(3):
        assert (await world.outbound(id=str(number), text=f"m{number}")).status == 202
    await until(lambda: len(world.plugin.sent) == 3, what="the sendings")
    assert [sent["text"] for sent in world.plugin.sent] == ["m0", "m1", "m2"]


async def test_a_reminder_for_somebody_on_discord_only_is_addressed_to_the_person(world: World) -> None:
    world.write_tables(alice=["discord:333"], bob=[])
    assert (await world.begin("k", "discord:333"))["state"] == "new"
    await world.outbound()
    await until(lambda: bool(world.plugin.sent), what="the sending")
    assert (world.plugin.sent[0]["channel"], world.plugin.sent[0]["to"]) == ("discord", "user:333")


async def test_what_was_taken_over_outlives_the_router(world: World) -> None:
    world.plugin.statuses = [503] * 1000
    assert (await world.outbound()).status == 202
    await world.stop_router()
    world.plugin.statuses = []
    await world.start_router()
    await until(lambda: bool(world.plugin.sent), what="the sending")


async def test_what_openclaw_will_never_send_is_given_up_and_told(world: World) -> None:
    world.plugin.statuses = [422]
    await world.outbound(id="1", text="never")
    await world.outbound(id="2", text="fine")
    await until(lambda: bool(world.plugin.sent), what="the second sending")
    assert [sent["text"] for sent in world.plugin.sent] == ["fine"]
    await until(lambda: world.event_kinds() == ["OutboundFailed"], what="the event")
    assert world.host.events[0].user == "alice"


async def test_a_message_for_someone_not_yet_paired_waits_for_the_pairing(world: World) -> None:
    world.write_tables(alice=[], bob=[])
    assert (await world.outbound()).status == 202
    world.write_tables(alice=["discord:55"], bob=[])
    assert (await world.begin("k", "discord:55"))["state"] == "new"
    await until(lambda: bool(world.plugin.sent), what="the sending")
    assert (world.plugin.sent[0]["channel"], world.plugin.sent[0]["to"]) == ("discord", "user:55")


async def test_what_waits_for_one_person_is_not_read_by_the_next_of_that_name(world: World) -> None:
    world.plugin.statuses = [503] * 1000
    await world.outbound(text="for the former alice")
    world.write_tables(alice=["telegram:333"], bob=[], alice_has="i-00000009")
    assert (await world.begin("k", "telegram:333"))["state"] == "new"
    world.plugin.statuses = []
    await until(lambda: world.event_kinds() == ["OutboundFailed"], what="the event")
    assert world.plugin.sent == []


async def test_what_waits_reaches_its_person_over_a_new_worker_and_over_a_new_address(world: World) -> None:
    world.plugin.statuses = [503] * 1000
    await world.outbound(id="1", text="first")
    world.write_tables(alice=["telegram:111"], bob=[], alice_has="i-00000009")
    await world.begin("k", "telegram:111")
    world.plugin.statuses = []
    await until(lambda: len(world.plugin.sent) == 1, what="the sending over the new worker")
    world.write_tables(alice=["telegram:111"], bob=[])
    world.plugin.statuses = [503] * 1000
    await world.outbound(id="2", text="second")
    world.write_tables(alice=["telegram:444"], bob=[])
    await world.begin("l", "telegram:444")
    world.plugin.statuses = []
    await until(lambda: len(world.plugin.sent) == 2, what="the sending to the new address")
    assert [sent["to"] for sent in world.plugin.sent] == ["111", "444"]


async def test_one_worker_cannot_fill_the_gateway(world: World) -> None:
    world.plugin.statuses = [503] * 10_000
    answers = [(await world.outbound(id=str(number))).status for number in range(MAX_QUEUED_PER_WORKER + 5)]
    assert answers == [202] * MAX_QUEUED_PER_WORKER + [429] * 5
    assert (await world.outbound(worker="bob.bob", token="bob's token", source="127.0.0.9")).status == 202


@pytest.mark.parametrize("id", ["a b", "\x1b[2J", "\x9b", "x" * 201])
async def test_an_id_that_could_not_travel_on_is_refused_for_good(world: World, id: str) -> None:
    assert (await world.outbound(id=id)).status == 422


async def test_without_the_host_an_unknown_address_is_asked_to_come_again(world: World) -> None:
    world.host.up = False
    assert (await world.outbound()).status == 503


@pytest.mark.parametrize("text", ["", "   ", "x" * (128 * 1024 + 1)])
async def test_a_message_without_a_usable_text_is_refused_for_good(world: World, text: str) -> None:
    assert (await world.outbound(text)).status == 422
