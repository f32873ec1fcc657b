"""The worker's outbox: taken means kept, carried in order, never sent twice by its own doing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.standins.waiting import until

from mvm.guest.http import HttpError, Request, Response
from mvm.guest.http_client import call, call_json
from mvm.guest.http_server import HttpServer
from mvm.guest.outbox import Outbox, OutboxSettings, submission_of


class Gateway:
    """Stands in for the router's outbound port."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any], str | None, str, str]] = []
        self.statuses: list[int] = []
        self.server = HttpServer(self._handle)

    async def _handle(self, request: Request) -> Response:
        status = self.statuses.pop(0) if self.statuses else 202
        if status == 202:
            self.taken.append(
                (
                    request.path,
                    request.json_object(),
                    request.bearer,
                    request.headers["idempotency-key"],
                    request.peer,
                )
            )
        return Response.json(status, {})

    @property
    def texts(self) -> list[str]:
        return [body["text"] for _, body, *_ in self.taken]


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    await gateway.server.start("127.0.0.1", 0)
    yield gateway
    await gateway.server.close()


@pytest.fixture
def settings(tmp_path: Path, gateway: Gateway) -> OutboxSettings:
    (tmp_path / "auth").write_text("the worker's token\n")
    return OutboxSettings(
        port=0,
        database=tmp_path / "outbox.db",
        token=tmp_path / "run" / "outbox-token",
        gateway_url=f"http://127.0.0.1:{gateway.server.port}",
        worker_key="alice.alice",
        auth_token=tmp_path / "auth",
        guest_ip="127.0.0.8",
        longest_delay=0.1,
    )


@pytest.fixture
def events() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def outbox(settings: OutboxSettings, events: list[tuple[str, str]]) -> AsyncIterator[Outbox]:
    outbox = Outbox(settings, on_event=lambda kind, detail: events.append((kind, detail)))
    await outbox.start()
    yield outbox
    await outbox.close()


async def post(outbox: Outbox, settings: OutboxSettings, body: object, **headers: str) -> Response:
    token = settings.token.read_text()
    sent = {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await call_json("127.0.0.1", outbox.port, "POST", "/v1/outbound", body, headers=sent)


async def test_a_message_is_taken_and_carried_to_the_gateway(
    outbox: Outbox, settings: OutboxSettings, gateway: Gateway
) -> None:
    assert (await post(outbox, settings, {"text": "water the plants", "id": "r1"})).status == 202
    await until(lambda: outbox.pending == 0, what="the carrying")
    assert gateway.taken == [
        (
            "/v1/outbound/alice.alice",
            {"id": "r1", "text": "water the plants"},
            "the worker's token",
            "r1",
            "127.0.0.8",
        )
    ]


async def test_half_a_character_does_not_cost_the_reminder(
    outbox: Outbox, settings: OutboxSettings, gateway: Gateway
) -> None:
    headers = {"Authorization": f"Bearer {settings.token.read_text()}"}
    body = rb'{"text": "water \ud83d", "id": "r1"}'
    answer = await call("127.0.0.1", outbox.port, "POST", "/v1/outbound", headers=headers, body=body)
    assert answer.status == 202
    await until(lambda: outbox.pending == 0, what="the carrying")
    assert gateway.texts == ["water ?"]


async def test_messages_wait_for_the_gateway_and_keep_their_order(
    outbox: Outbox, settings: OutboxSettings, gateway: Gateway
) -> None:
    gateway.statuses = [503, 401, 404]
    for number in range(5):
        await post(outbox, settings, {"text": f"m{number}"})
    await until(lambda: outbox.pending == 0, what="the carrying")
    assert gateway.texts == ["m0", "m1", "m2", "m3", "m4"]


async def test_a_repetition_is_carried_once(outbox: Outbox, settings: OutboxSettings, gateway: Gateway) -> None:
    await post(outbox, settings, {"text": "once", "id": "r1"})
    await until(lambda: outbox.pending == 0, what="the carrying")
    again = await post(outbox, settings, {"text": "once", "id": "r1"})
    assert again.json_value()["duplicate"] is True
    await post(outbox, settings, {"text": "other"}, Idempotency_Key="r2")
    await until(lambda: len(gateway.taken) == 2, what="the carrying")
    assert gateway.texts == ["once", "other"]


async def test_what_was_taken_outlives_the_outbox(settings: OutboxSettings, gateway: Gateway) -> None:
    away = replace(settings, gateway_url="http://127.0.0.1:1")
    first = Outbox(away, on_event=lambda kind, detail: None)
    await first.start()
    await post(first, settings, {"text": "kept"})
    assert first.pending == 1
    await first.close()
    second = Outbox(settings, on_event=lambda kind, detail: None)
    await second.start()
    await until(lambda: second.pending == 0, what="the carrying")
    assert gateway.texts == ["kept"]
    await second.close()


async def test_a_gateway_that_moved_is_found(settings: OutboxSettings, gateway: Gateway) -> None:
    outbox = Outbox(replace(settings, gateway_url="http://127.0.0.1:1"), on_event=lambda kind, detail: None)
    await outbox.start()
    await post(outbox, settings, {"text": "late"})
    outbox.configure(settings)
    await until(lambda: outbox.pending == 0, what="the carrying")
    assert gateway.texts == ["late"]
    await outbox.close()


async def test_what_the_gateway_will_never_take_is_given_up_and_told(
    outbox: Outbox, settings: OutboxSettings, gateway: Gateway, events: list[tuple[str, str]]
) -> None:
    gateway.statuses = [422]
    await post(outbox, settings, {"text": "never"})
    await post(outbox, settings, {"text": "fine"})
    await until(lambda: outbox.pending == 0, what="the end of both")
    assert gateway.texts == ["fine"]
    assert [kind for kind, _ in events] == ["OutboundFailed"]


async def test_changes_of_what_waits_are_told(settings: OutboxSettings) -> None:
    seen: list[int] = []
    outbox = Outbox(settings, on_event=lambda kind, detail: None, on_change=lambda: seen.append(outbox.pending))
    await outbox.start()
    await post(outbox, settings, {"text": "x"})
    await until(lambda: seen == [1, 0], what="both changes")
    await outbox.close()


async def test_only_the_bearer_is_served(outbox: Outbox) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = await call_json("127.0.0.1", outbox.port, "POST", "/v1/outbound", {"text": "x"}, headers=headers)
        assert answer.status == 401
    assert outbox.pending == 0


async def test_an_empty_message_is_taken_and_goes_nowhere(
    outbox: Outbox, settings: OutboxSettings, gateway: Gateway
) -> None:
    assert (await post(outbox, settings, {"jobId": "j", "status": "ok", "runAtMs": 1})).status == 202
    assert outbox.pending == 0
    assert gateway.taken == []


def test_a_cron_run_is_known_by_its_job_and_time() -> None:
    event = {"action": "finished", "jobId": "j1", "runAtMs": 17, "status": "ok", "summary": "Tea is ready."}
    found = submission_of(event, None)
    assert found is not None
    assert (found.id, found.text) == ("cron:j1:17", "Tea is ready.")


def test_a_failed_cron_run_is_said_to_the_person() -> None:
    event = {"jobId": "j1", "runAtMs": 17, "status": "error", "error": "stack trace", "job": {"name": "tea"}}
    found = submission_of(event, None)
    assert found is not None
    assert "tea" in found.text
    assert "stack trace" not in found.text


def test_an_id_that_cannot_travel_in_a_header_is_replaced() -> None:
    found = submission_of({"text": "x", "id": "a\r\nB: c"}, None)
    assert found is not None
    assert found.id.startswith("sha256-")


@pytest.mark.parametrize("body", [{}, {"text": 5}, {"text": "x" * (128 * 1024 + 1)}, {"text": "x", "id": 7}])
def test_a_submission_of_neither_form_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(HttpError) as refused:
        submission_of(body, None)
    assert refused.value.status == 422
