"""Answers and reminders while Telegram has its bad minutes: the same for the stand-in and for the real OpenClaw."""

from __future__ import annotations

from tests.standins.deployment import ALICE, GATEWAY_IP, Deployment
from tests.standins.waiting import until

from mvm.demo.faults import Fault
from mvm.guest.http_client import call_json


async def answered_once(deployment: Deployment, text: str, *faults: Fault, timeout: float = 60.0) -> None:
    """The answer comes, once and after one turn, though the channel meets `faults`."""
    for fault in faults:
        deployment.telegram.faults.add(fault)
    assert await deployment.say(text, timeout=timeout) == [f"You said: {text}"]
    await deployment.gateway.wait_idle()
    assert _said(deployment).count(f"You said: {text}") == 1
    assert len(deployment.model.journal.turns(containing=text)) == 1


async def answered_twice_at_the_most(deployment: Deployment, text: str) -> None:
    """The connection breaks after Telegram took it: nobody can know that, so it comes once more, not oftener."""
    deployment.telegram.faults.add(Fault("drop_after", "sendMessage"))
    assert f"You said: {text}" in await deployment.say(text)
    await deployment.gateway.wait_idle()
    assert _said(deployment).count(f"You said: {text}") == 2
    assert len(deployment.model.journal.turns(containing=text)) == 1


async def reminders_come_in_spite_of(deployment: Deployment, name: str, *faults: Fault) -> None:
    """A reminder that the channel refuses for now comes all the same, and before the one after it."""
    for fault in faults:
        deployment.telegram.faults.add(fault)
    await remind(deployment, f"{name} one")
    await remind(deployment, f"{name} two")
    await until(lambda: f"{name} two" in _said(deployment), what="the second reminder", seconds=60)
    assert [text for text in _said(deployment) if text.startswith(name)] == [f"{name} one", f"{name} two"]


async def a_refused_reminder_lets_the_next_one_pass(deployment: Deployment, name: str) -> None:
    """What Telegram will never take is given up, the operator is told, and whatever waits behind it comes."""
    description = "Forbidden: bot was blocked by the user"
    deployment.telegram.faults.add(Fault("error", "sendMessage", code=403, description=description))
    await remind(deployment, f"{name} one")
    await remind(deployment, f"{name} two")
    await until(lambda: f"{name} two" in _said(deployment), what="the second reminder", seconds=60)
    assert f"{name} one" not in _said(deployment)
    (told,) = [event for event in deployment.host.events if event.kind == "OutboundFailed"]
    assert description in str(told.detail)


async def remind(deployment: Deployment, text: str) -> None:
    """What alice's outbox does with a reminder; alice's worker has been woken before."""
    worker = deployment.workers["alice"]
    answer = await call_json(
        GATEWAY_IP,
        deployment.outbound_port,
        "POST",
        "/v1/outbound/alice.alice",
        {"text": text},
        headers={"Authorization": f"Bearer {worker.token}", "Idempotency-Key": text.replace(" ", "-")},
        source="127.0.0.1",
    )
    assert answer.status == 202


def _said(deployment: Deployment) -> list[str]:
    return [str(entry.text) for entry in deployment.telegram.transcript.answers(ALICE)]
