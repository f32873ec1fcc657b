"""A bot whose token its channel does not know is found out from OpenClaw's log, and told at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.host.live_agent import Agent

from mvm.host import guests, inspection
from mvm.host.channel_logins import refusal_in
from mvm.model.errors import Unavailable
from mvm.model.ids import Address, InstanceId
from mvm.wire import messages
from mvm.wire.messages import WorkStatus

GATEWAY = Address.parse("alice/gateways/i-00000001").instance
WHEN = datetime(2026, 11, 29, 18, 8, 46, tzinfo=UTC)


def log(when: datetime) -> str:
    """What OpenClaw 2026.9.6 wrote about a token that Telegram did not know."""
    stamp = when.isoformat(timespec="milliseconds")
    why = (
        'Telegram bot token unauthorized for account "default" (getMe returned 401 from Telegram; source: config'
        " token). Update channels.telegram.botToken, channels.telegram.tokenFile, or TELEGRAM_BOT_TOKEN with the"
        " current BotFather token."
    )
    return (
        f"{stamp} [gateway] ready\n{stamp} [telegram] [default] {why}\n"
        f"{stamp} [telegram] [default] channel exited: {why}\n"
        f"{stamp} [telegram] [default] auto-restart skipped, terminal disconnect\n"
    )


def test_a_channel_that_does_not_know_the_bot_is_told_with_what_to_type() -> None:
    refusal = refusal_in(log(WHEN), ref=GATEWAY, since=WHEN)
    assert refusal is not None
    assert refusal.message.startswith(
        f"Telegram does not let the gateway {GATEWAY} in: Telegram bot token unauthorized"
    )
    assert "`mvm tenant secrets set alice --file telegram_token=FILE`" in (refusal.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        log(WHEN - timedelta(seconds=1)),
        log(WHEN).replace("+00:00", ""),
        log(WHEN).replace("channel exited", "said hello"),
        f"{WHEN.isoformat()} [telegram] [default] channel exited: the network is down",
        "channel exited: 401",
        log(WHEN) + "mvm 2026-11-29T12:00:00Z openclaw started as process 77\n",
    ],
)
def test_what_an_earlier_start_said_or_another_trouble_is_no_refusal(text: str) -> None:
    assert refusal_in(text, ref=GATEWAY, since=WHEN) is None


async def gateway_of(agent: Agent) -> tuple[str, InstanceId]:
    await agent.deploy()
    (found,) = (await agent.call("InstanceList", tenant_id="alice", pool_id="gateways"))["instances"]
    return f"alice/gateways/{found['instance_id']}", InstanceId(found["instance_id"])


async def test_a_deployment_whose_bot_is_unknown_is_not_ready_though_its_gateway_is(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "SETTLE_SECONDS", 0.0)
    _, gateway = await gateway_of(agent)
    agent.runtime.guest(gateway).logs["openclaw"] = log(datetime.now(UTC) - timedelta(days=1))
    await agent.call("DeploymentReady", tenant_id="alice")
    agent.runtime.guest(gateway).logs["openclaw"] += log(datetime.now(UTC))
    with pytest.raises(Unavailable, match="Telegram does not let the gateway"):
        await agent.call("DeploymentReady", tenant_id="alice")


async def test_the_moment_in_which_a_channel_answers_is_waited_for(agent: Agent) -> None:
    _, gateway = await gateway_of(agent)
    guest = agent.runtime.guest(gateway)
    guest.logs["openclaw"] = ""
    looks = 0

    async def answer_late(request: messages.HostToGuest) -> None:
        nonlocal looks
        looks += isinstance(request, messages.Logs)
        if looks == 2:
            guest.logs["openclaw"] = log(datetime.now(UTC))

    guest.before = answer_late
    with pytest.raises(Unavailable, match="Telegram does not let the gateway"):
        await agent.call("DeploymentReady", tenant_id="alice")


async def test_a_gateway_that_no_channel_lets_in_is_not_waited_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "LOOK_SECONDS", 0.0)
    address, gateway = await gateway_of(agent)
    await agent.call("InstanceStop", address=address)
    guest = agent.runtime.guest(gateway)
    guest.status, guest.logs["openclaw"] = WorkStatus.UNKNOWN, log(datetime.now(UTC) + timedelta(minutes=1))
    with pytest.raises(Unavailable, match="Telegram does not let the gateway") as caught:
        await agent.call("InstanceStart", address=address)
    assert "telegram_token=FILE" in (caught.value.hint or "")
    (found,) = (await agent.call("InstanceList", tenant_id="alice", pool_id="gateways"))["instances"]
    assert found["state"] == "stopped"
    assert "Telegram does not let" in found["last_error"]
