"""A bot's token that is revoked while its gateway runs: the same for the stand-in and for the real OpenClaw."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.standins.deployment import Deployment
from tests.standins.waiting import until

from mvm.host.channel_logins import is_over, refusal_in
from mvm.model.ids import Address

GATEWAY = Address.parse("alice/gateways/i-00000001").instance


async def token_revoked_and_replaced(deployment: Deployment) -> None:
    """OpenClaw's log tells of both as `mvm.host.channel_logins` reads it, and people are answered again."""
    gateway, began = deployment.gateway, datetime.now(UTC)

    def refused() -> str | None:
        refusal = refusal_in(gateway.output(), ref=GATEWAY, since=began)
        return refusal.message if refusal else None

    assert refused() is None
    deployment.telegram.revoke()
    await until(lambda: refused() is not None, what="word of the revoked token", seconds=60)
    message, told = refused() or "", len(gateway.output())
    assert "Telegram does not let the gateway" in message
    gateway.secrets["TELEGRAM_BOT_TOKEN"] = deployment.telegram.token
    gateway.write_secrets()
    assert (await gateway.control("RELOAD_SECRETS"))["ok"] is True
    await until(lambda: refused() is None, what="word of the new token", seconds=60)
    assert is_over(message, gateway.output()[told:])
    assert await deployment.say("with the new token", timeout=60) == ["You said: with the new token"]
