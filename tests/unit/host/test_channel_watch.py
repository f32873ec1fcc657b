"""A channel that is closed to a gateway while it runs is told, once; and when it is open again, that too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.host.live_agent import Agent

from mvm.host.channel_logins import is_over
from mvm.model.ids import InstanceId, TenantId
from mvm.wire import messages

REVOKED = (
    "{stamp} [telegram] outbound send ok accountId=default\n"
    "{stamp} [telegram] [default] channel exited: Unauthorized | Telegram ingress worker exited with code 1\n"
    "{stamp} [telegram] [default] auto-restart skipped, terminal disconnect\n"
)
"""What OpenClaw 2026.9.6 wrote when the token was revoked while it polled."""
STARTED = "mvm 2026-11-29T12:00:00Z openclaw started as process 77\n"
READY = "2026-11-29T12:00:09.000+00:00 [gateway] ready\n"
LET_IN = "2026-11-29T12:00:10.000+00:00 [telegram] [default] starting provider (@somebot)\n"


def revoked() -> str:
    return REVOKED.format(stamp=datetime.now(UTC).isoformat(timespec="milliseconds"))


async def gateway_of(agent: Agent) -> InstanceId:
    await agent.deploy()
    (found,) = (await agent.call("InstanceList", tenant_id="alice", pool_id="gateways"))["instances"]
    return InstanceId(found["instance_id"])


def told(agent: Agent) -> list[tuple[str, str | None]]:
    """Events of channels so far."""
    page = agent.host.chronicle.events.recent(tenant_id=TenantId("alice"))
    return [(event.kind, event.detail) for event in page if event.kind.startswith("Channel")]


async def test_a_token_that_is_revoked_while_its_gateway_runs_is_told_once(agent: Agent) -> None:
    gateway = await gateway_of(agent)
    agent.runtime.guest(gateway).logs["openclaw"] = STARTED + READY
    await agent.host.channels.look()
    assert told(agent) == []

    agent.runtime.guest(gateway).logs["openclaw"] += revoked()
    for _ in range(3):
        await agent.host.channels.look()
    ((kind, detail),) = told(agent)
    assert kind == "ChannelRefused"
    assert "Telegram does not let the gateway" in (detail or "")
    assert "mvm tenant secrets set alice --file telegram_token=FILE" in (detail or "")
    assert "Unauthorized" in (agent.host.catalog.instances[gateway].last_error or "")
    (error,) = (await agent.call("Explain", address="alice"))["tenant"]["errors"]
    assert "Telegram does not let" in error["error"]


async def test_it_stays_told_until_openclaw_was_ready_anew(agent: Agent) -> None:
    gateway = await gateway_of(agent)
    guest = agent.runtime.guest(gateway)
    guest.logs["openclaw"] = revoked()
    await agent.host.channels.look()

    for log in ("nothing about channels any more\n", STARTED):
        guest.logs["openclaw"] = log
        await agent.host.channels.look()
        assert agent.host.catalog.instances[gateway].last_error is not None
    guest.logs["openclaw"] = revoked() + STARTED + READY
    await agent.host.channels.look()
    assert agent.host.catalog.instances[gateway].last_error is None
    assert [kind for kind, _ in told(agent)] == ["ChannelRefused", "ChannelOpen"]


async def test_another_error_of_a_gateway_is_left_alone(agent: Agent) -> None:
    gateway = await gateway_of(agent)
    known = agent.host.catalog.instances[gateway]
    await agent.host.catalog.save_instance(known.model_copy(update={"last_error": "it could not be paused"}))
    agent.runtime.guest(gateway).logs["openclaw"] = STARTED + READY
    await agent.host.channels.look()
    assert agent.host.catalog.instances[gateway].last_error == "it could not be paused"


async def test_a_gateway_that_does_not_answer_or_is_being_stopped_is_passed_over(agent: Agent) -> None:
    gateway = await gateway_of(agent)
    guest = agent.runtime.guest(gateway)
    guest.logs["openclaw"] = revoked()

    async def break_off(request: messages.HostToGuest) -> None:
        if isinstance(request, messages.Logs):
            raise ConnectionResetError

    guest.before = break_off
    await agent.host.channels.look()

    async def stop_meanwhile(request: messages.HostToGuest) -> None:
        if isinstance(request, messages.Logs):
            guest.before = None
            await agent.call("InstanceStop", address=f"alice/gateways/{gateway}")

    guest.before = stop_meanwhile
    await agent.host.channels.look()
    assert told(agent) == []
    assert agent.host.catalog.instances[gateway].last_error is None


@pytest.mark.parametrize(
    ("log", "over"),
    [
        ("", False),
        (READY, False),
        (STARTED, False),
        (READY + STARTED, False),
        (STARTED + READY, True),
        (STARTED + READY + STARTED, False),
        (LET_IN, True),
        (LET_IN.replace("telegram", "discord"), False),
        (LET_IN + STARTED, False),
    ],
)
def test_a_start_that_became_ready_or_a_login_ends_a_refusal(log: str, over: bool) -> None:
    assert is_over("Telegram does not let the gateway alice/gateways/i-00000001 in: no", log) is over


async def test_a_new_token_is_taken_over_without_a_start(agent: Agent) -> None:
    gateway = await gateway_of(agent)
    guest = agent.runtime.guest(gateway)
    guest.logs["openclaw"] = STARTED + READY + LET_IN + revoked()
    await agent.host.channels.look()
    guest.logs["openclaw"] += LET_IN
    await agent.host.channels.look()
    assert [kind for kind, _ in told(agent)] == ["ChannelRefused", "ChannelOpen"]
    await agent.call("DeploymentReady", tenant_id="alice")


async def test_what_was_written_before_the_start_is_of_another_token(agent: Agent) -> None:
    gateway = await gateway_of(agent)
    stamp = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="milliseconds")
    agent.runtime.guest(gateway).logs["openclaw"] = REVOKED.format(stamp=stamp)
    await agent.host.channels.look()
    assert told(agent) == []
