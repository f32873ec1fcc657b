"""The router as the plugin sees it: deliveries, wakes, the turn's connection, strangers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.standins.waiting import until
from tests.unit.guest.router_world import GATEWAY_IP, World

from mvm.guest.http_client import call
from mvm.wire import messages


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "router")
    await world.start()
    yield world
    await world.close()


# Deliveries


async def test_a_message_is_new_then_open_then_answered(world: World) -> None:
    assert await world.begin() == {"state": "new", "user": "alice", "worker": "alice.alice", "attempt": 1}
    assert await world.begin() == {"state": "open", "user": "alice", "worker": "alice.alice", "attempt": 2}
    recorded = await world.post("/v1/deliveries/telegram%3Adefault%3A111%3A5/answered", {"payload": {"text": "hi"}})
    assert recorded.status == 204
    again = await world.begin()
    assert (again["state"], again["payload"], again["sent"]) == ("answered", {"text": "hi"}, False)
    assert (await world.post("/v1/deliveries/telegram%3Adefault%3A111%3A5/sent")).status == 204
    assert (await world.begin())["sent"] is True
    await until(lambda: world.event_kinds() == ["AnswerSent"], what="the event")
    (event,) = world.host.events
    assert (event.worker, event.trace) == ("alice.alice", "mvm-telegram:default:111:5")


async def test_half_a_character_does_not_cost_the_answer(world: World) -> None:
    await world.begin()
    key = "/v1/deliveries/telegram:default:111:5"
    headers = {"Authorization": f"Bearer {world.token}"}
    for entry, body in (
        ("answered", rb'{"payload": {"text": "water \ud83d", "more": ["\udf31"]}}'),
        ("failed", rb'{"reason": "\ud83d", "notice": "\ud83d"}'),
    ):
        answer = await call("127.0.0.1", world.port, "POST", f"{key}/{entry}", headers=headers, body=body)
        assert answer.status == 204
    assert (await world.begin())["payload"] == {"text": "water ?", "more": ["?"]}


async def test_what_is_recorded_outlives_the_router(world: World) -> None:
    await world.begin()
    await world.post("/v1/deliveries/telegram:default:111:5/answered", {"payload": {"text": "hi"}})
    await world.stop_router()
    await world.start_router()
    assert (await world.begin())["payload"] == {"text": "hi"}


async def test_a_failure_is_told_and_counts_as_answered(world: World) -> None:
    await world.begin()
    answer = await world.post("/v1/deliveries/telegram:default:111:5/failed", {"reason": "no", "notice": "Sorry."})
    assert answer.status == 204
    assert (await world.begin())["payload"] == {"text": "Sorry."}
    await until(lambda: bool(world.host.events), what="the event")
    event = world.host.events[0]
    assert (event.kind, event.user) == ("DeliveryFailed", "alice")


async def test_a_key_belongs_to_one_person(world: World) -> None:
    await world.begin("k", "telegram:111")
    body = {"key": "k", "peer": "telegram:222", "conversation": "c"}
    assert (await world.post("/v1/deliveries", body)).status == 409


@pytest.mark.parametrize(
    "body",
    [
        {"peer": "telegram:111", "conversation": "c"},
        {"key": "k" * 513, "peer": "telegram:111", "conversation": "c"},
        {"key": "k", "peer": "telegram", "conversation": "c"},
        {"key": "k", "peer": "telegram:1 1", "conversation": "c"},
        {"key": "k", "peer": 5, "conversation": "c"},
        [],
    ],
)
async def test_a_malformed_delivery_is_refused(world: World, body: object) -> None:
    assert (await world.post("/v1/deliveries", body)).status == 400


async def test_an_unknown_delivery_cannot_be_answered(world: World) -> None:
    answer = await world.post("/v1/deliveries/nothing/answered", {"payload": {"text": "x"}})
    assert answer.status == 404


async def test_nobody_without_the_token_is_served(world: World) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = await call("127.0.0.1", world.port, "POST", "/v1/deliveries", headers=headers, body=b"{}")
        assert answer.status == 401
    assert (await call("127.0.0.1", world.port, "GET", "/v1/healthz")).status == 200


async def test_a_rotated_token_counts_at_once(world: World) -> None:
    (world.root / "run" / "router-token").write_text("another one")
    assert (await world.begin())["state"] == "new"


# The table


async def test_a_user_added_and_removed_counts_at_once(world: World) -> None:
    assert (await world.begin("k1", "telegram:333"))["state"] == "unknown_sender"
    world.write_tables(alice=["telegram:111", "telegram:333"], bob=[])
    assert (await world.begin("k2", "telegram:333"))["worker"] == "alice.alice"
    world.write_tables(alice=["telegram:111"], bob=[])
    assert (await world.begin("k3", "telegram:333"))["state"] == "unknown_sender"
    assert (await world.begin("k4", "telegram:222"))["state"] == "unknown_sender"


async def test_a_broken_table_leaves_the_last_good_one(world: World) -> None:
    assert (await world.begin())["state"] == "new"
    world.replace("routes.json", '{"routes": [{"name": 5}]}')
    assert (await world.begin("k2"))["state"] == "new"
    await until(lambda: "RoutesRejected" in world.event_kinds(), what="the event")
    assert "routes[0]" in (world.host.events[0].detail or "")


async def test_messages_of_different_people_go_to_their_own_workers(world: World) -> None:
    assert (await world.begin("a", "telegram:111"))["worker"] == "alice.alice"
    assert (await world.begin("b", "telegram:222"))["worker"] == "bob.bob"
    assert (await world.begin("c", "discord:999"))["worker"] == "alice.alice"


# Strangers


async def test_a_stranger_gets_a_pairing_code_and_costs_no_wake(world: World) -> None:
    answer = await world.begin("k", "telegram:999")
    assert answer["state"] == "unknown_sender"
    assert "mvm user pair alice K7QF3M" in answer["notice"]
    assert "19:20 UTC" in answer["notice"]
    assert world.host.wakes == []
    await until(lambda: world.event_kinds() == ["StrangerRefused"], what="the event")


async def test_a_stranger_is_answered_once_in_a_while(world: World) -> None:
    notices = [(await world.begin(f"k{n}", "telegram:999"))["notice"] for n in range(5)]
    assert [notice is not None for notice in notices] == [True, False, False, False, False]
    assert world.host.pairings == ["telegram:999"]


async def test_many_strangers_are_bounded_together(world: World) -> None:
    notices = [(await world.begin(f"k{n}", f"telegram:9{n}"))["notice"] for n in range(25)]
    assert sum(notice is not None for notice in notices) == 20


async def test_without_a_code_the_stranger_hears_the_truth(world: World) -> None:
    world.host.code = None
    notice = (await world.begin("k", "telegram:998"))["notice"]
    assert "does not know you" in notice
    assert "mvm user pair" not in notice
    world.host.up = False
    assert "does not know you" in (await world.begin("k", "telegram:997"))["notice"]


# Wakes


async def test_a_wake_answers_when_the_worker_runs(world: World) -> None:
    answer = await world.post("/v1/workers/alice.alice/wake")
    assert (answer.status, answer.json_value()) == (200, {"state": "running"})
    assert world.host.wakes == ["i-00000001"]


async def test_a_wake_names_the_message_that_it_is_for(world: World) -> None:
    for trace in ("mvm-telegram:default:111:5", "no trace\n", 7):
        await world.post("/v1/workers/alice.alice/wake", {"trace": trace})
    _, writer, _ = await world.open_ws(query="&trace=mvm-telegram%3A6")
    writer.close()
    await writer.wait_closed()
    assert world.host.traces == ["mvm-telegram:default:111:5", None, None, "mvm-telegram:6"]


async def test_wakes_of_one_worker_are_one_wake(world: World) -> None:
    world.host.gate.clear()
    asking = [asyncio.create_task(world.post("/v1/workers/alice.alice/wake")) for _ in range(20)]
    await until(lambda: bool(world.host.wakes), what="the wake")
    asking[0].cancel()
    world.host.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [answer.status for answer in answers[1:] if not isinstance(answer, BaseException)] == [200] * 19
    assert world.host.wakes == ["i-00000001"]


async def test_a_wake_that_fails_is_tried_again(world: World) -> None:
    world.host.failures = 2
    assert (await world.post("/v1/workers/alice.alice/wake")).status == 200
    assert len(world.host.wakes) == 3


async def test_a_wake_survives_a_restart_of_the_host_agent(world: World) -> None:
    world.host.up = False
    asking = asyncio.create_task(world.post("/v1/workers/alice.alice/wake"))
    await asyncio.sleep(0)
    world.host.up = True
    assert (await asking).status == 200


async def test_a_refused_wake_says_so(world: World) -> None:
    world.host.refusal = "not yours"
    answer = await world.post("/v1/workers/alice.alice/wake")
    assert answer.status == 503
    said = answer.json_value()
    assert said["retry"] is False
    assert "not yours" in said["reason"]
    assert "not yours" not in said["error"]


async def test_a_budget_that_is_used_up_is_told_to_the_person_at_once(world: World) -> None:
    world.host.refusal = f"{messages.OVER_BUDGET}it may be woken once an hour; it can be woken again at 13:00 UTC"
    said = (await world.post("/v1/workers/alice.alice/wake")).json_value()
    assert said["retry"] is False
    assert said["error"].endswith("it may be woken once an hour; it can be woken again at 13:00 UTC.")


async def test_a_wake_that_never_succeeds_ends_with_an_honest_sentence(tmp_path: Path) -> None:
    world = World(tmp_path / "router", wake_seconds=0.5)
    await world.start()
    world.host.failures = 1000
    answer = await world.post("/v1/workers/alice.alice/wake")
    assert answer.status == 503
    said = answer.json_value()
    assert "could not be started" in said["error"]
    assert said["reason"] == "no memory left"
    assert said["retry"] is True
    await until(lambda: "WakeFailed" in world.event_kinds(), what="the event")
    await world.close()


async def test_only_a_worker_that_a_route_leads_to_is_woken(world: World) -> None:
    world.write_tables(alice=["telegram:111"], bob=[])
    for key in ("bob.bob", "carol.carol", "..", "alice.alice%2F..%2Fbob"):
        assert (await world.post(f"/v1/workers/{key}/wake")).status == 404
    assert world.host.wakes == []


# The turn's connection


async def test_a_turn_reaches_the_worker_from_the_gateways_address(world: World) -> None:
    reader, writer, head = await world.open_ws()
    assert head.startswith(b"HTTP/1.1 101")
    writer.write(b"hello\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    seen = world.worker.heads[0]
    assert world.worker.sources == [GATEWAY_IP]
    assert seen.startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1")
    assert b"Sec-WebSocket-Key: abc" in seen
    assert world.token.encode() not in seen


async def test_a_turn_wakes_a_worker_that_went_to_sleep_after_its_wake(world: World) -> None:
    assert (await world.post("/v1/workers/alice.alice/wake")).status == 200
    await world.worker.stop()

    async def start(instance_id: str) -> None:
        await world.worker.start()

    world.host.on_wake = start
    _, writer, head = await world.open_ws()
    assert head.startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()


async def test_a_connection_dropped_before_the_answer_is_made_again(world: World) -> None:
    world.worker.drop_next = 2
    _, writer, head = await world.open_ws()
    assert head.startswith(b"HTTP/1.1 101")
    assert len(world.worker.sources) == 3
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("gone", ["stopped", "refused"])
async def test_a_turn_whose_worker_ended_without_a_word_is_hung_up(world: World, gone: str) -> None:
    await world.restart_router(silence_seconds=0.05)
    reader, writer, _ = await world.open_ws()
    world.worker.silent.set()
    world.host.status = "running"
    writer.write(b"are you there\n")
    await until(lambda: world.host.questions >= 2, what="a second question about a worker that runs")
    world.worker.silent.clear()
    writer.write(b"still here\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"STILL HERE\n"

    world.worker.silent.set()
    setattr(world.host, "unknown" if gone == "refused" else "status", gone)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_worker_that_ends_before_it_answers_is_woken_again(world: World) -> None:
    await world.restart_router(silence_seconds=0.05)
    world.worker.silent.set()
    world.host.status = "stopped"

    async def wakes(instance_id: str) -> None:
        if len(world.host.wakes) > 1:
            world.worker.silent.clear()

    world.host.on_wake = wakes
    _, writer, head = await world.open_ws()
    assert head.startswith(b"HTTP/1.1 101")
    assert len(world.host.wakes) == 2
    writer.close()
    await writer.wait_closed()


async def test_a_running_worker_is_served_while_the_host_agent_is_away(world: World) -> None:
    assert (await world.post("/v1/workers/alice.alice/wake")).status == 200
    world.host.up = False
    _, writer, head = await world.open_ws()
    assert head.startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()


async def test_a_turn_that_cannot_begin_says_why(world: World) -> None:
    world.host.refusal = "no"
    reader, writer, head = await world.open_ws()
    assert head.startswith(b"HTTP/1.1 503")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert json.loads(await reader.readexactly(length))["retry"] is False
    writer.close()
    await writer.wait_closed()


async def test_a_turn_needs_the_token_and_a_route(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(b"GET /v1/workers/alice.alice/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()
    await writer.wait_closed()
    _, writer, head = await world.open_ws("carol.carol")
    assert head.startswith(b"HTTP/1.1 404")
    writer.close()
    await writer.wait_closed()


async def test_stopping_ends_turns_after_their_grace(world: World) -> None:
    reader, writer, _ = await world.open_ws()
    await world.stop_router()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await writer.wait_closed()
