"""Whether Telegram, Discord and the model provider know the keys of a deployment, asked before it is created.

Each check is one harmless request with a short time limit. A service that says no makes the deployment fail at once,
naming the key by its place; one that cannot be reached is only a note, because the machine may be set up before its
network is. No key is ever part of an error, a note or a log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from mvm.model.entities import OpenClawSettings
from mvm.model.errors import InvalidInput

TELEGRAM_API = "https://api.telegram.org"
DISCORD_API = "https://discord.com/api/v10"
ANTHROPIC_API = "https://api.anthropic.com"
OPENAI_API = "https://api.openai.com"
ANTHROPIC_VERSION = "2023-06-01"
LIMIT_SECONDS = 8.0

_TELEGRAM_TOKEN = re.compile(r"[0-9]{5,16}:[A-Za-z0-9_-]{30,64}")
_UNKNOWN = frozenset({401, 403, 404})


@dataclass(frozen=True, kw_only=True)
class _Check:
    """One request that tells whether a key is known."""

    place: str
    """Place of the key, `<scope>/<KEY>`."""
    service: str
    url: str
    headers: Mapping[str, str]
    unknown: frozenset[int]
    """Statuses by which the service says that it does not know the key."""


async def check_keys(settings: OpenClawSettings | None, values: Mapping[str, str]) -> list[str]:
    """Ask every service about the key that is meant for it; `values` maps `<scope>/<KEY>` to the key.

    Returns notes about services that could not be asked. Raises `InvalidInput` naming every key that is malformed or
    that its service does not know.
    """
    wrong = _malformed(values)
    if wrong:
        raise _refusal(wrong)
    checks = _checks(settings or OpenClawSettings(), values)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_SECONDS)) as session:
        outcomes = await asyncio.gather(*(_ask(session, check) for check in checks))
    unknown = [outcome.text for outcome in outcomes if outcome is not None and outcome.wrong]
    if unknown:
        raise _refusal(unknown)
    return [outcome.text for outcome in outcomes if outcome is not None]


@dataclass(frozen=True)
class _Outcome:
    text: str
    wrong: bool


def _malformed(values: Mapping[str, str]) -> list[str]:
    token = values.get("telegram/TELEGRAM_BOT_TOKEN")
    if token is not None and not _TELEGRAM_TOKEN.fullmatch(token):
        return ["the Telegram token (telegram/TELEGRAM_BOT_TOKEN) is not of the form '<digits>:<35 characters>'"]
    return []


def _refusal(problems: list[str]) -> InvalidInput:
    return InvalidInput(
        "; ".join(problems),
        hint="put the right key into the file that the manifest names; @BotFather shows a bot's token with /mybots",
    )


def _checks(settings: OpenClawSettings, values: Mapping[str, str]) -> list[_Check]:
    checks = []
    if (token := values.get("telegram/TELEGRAM_BOT_TOKEN")) is not None:
        root = (settings.telegram_api_root or TELEGRAM_API).rstrip("/")
        # 404 is Telegram's answer to a token that never was one of its own.
        checks.append(
            _Check(
                place="telegram/TELEGRAM_BOT_TOKEN",
                service="Telegram",
                url=f"{root}/bot{token}/getMe",
                headers={},
                unknown=_UNKNOWN,
            )
        )
    if (token := values.get("discord/DISCORD_BOT_TOKEN")) is not None:
        checks.append(
            _Check(
                place="discord/DISCORD_BOT_TOKEN",
                service="Discord",
                url=f"{DISCORD_API}/users/@me",
                headers={"authorization": f"Bot {token}"},
                unknown=frozenset({401}),
            )
        )
    anthropic, openai = values.get("anthropic/ANTHROPIC_API_KEY"), values.get("openai/OPENAI_API_KEY")
    # A base URL of one's own belongs to the provider that is used: anthropic when both keys are there (`render`).
    if anthropic is not None:
        root = (settings.provider_base_url or ANTHROPIC_API).rstrip("/")
        checks.append(
            _Check(
                place="anthropic/ANTHROPIC_API_KEY",
                service="Anthropic",
                url=f"{root}/v1/models",
                headers={"x-api-key": anthropic, "anthropic-version": ANTHROPIC_VERSION},
                unknown=frozenset({401, 403}),
            )
        )
    if openai is not None:
        base = None if anthropic is not None else settings.provider_base_url
        root = (base or OPENAI_API).rstrip("/").removesuffix("/v1")
        checks.append(
            _Check(
                place="openai/OPENAI_API_KEY",
                service="OpenAI",
                url=f"{root}/v1/models",
                headers={"authorization": f"Bearer {openai}"},
                unknown=frozenset({401, 403}),
            )
        )
    return checks


async def _ask(session: aiohttp.ClientSession, check: _Check) -> _Outcome | None:
    """None when the key is known; errors of the transport are told by kind only, their text may hold the address."""
    try:
        async with session.get(check.url, headers=check.headers, allow_redirects=False) as response:
            status = response.status
    except TimeoutError:
        return _Outcome(f"{check.service} did not answer within {LIMIT_SECONDS:g} s; {check.place} is unchecked", False)
    except aiohttp.ClientError as error:
        reason = type(error).__name__
        return _Outcome(f"{check.service} cannot be reached ({reason}); {check.place} is unchecked", False)
    if status in check.unknown:
        return _Outcome(f"{check.service} does not know the key {check.place} (HTTP {status})", True)
    if status >= 400:
        return _Outcome(f"{check.service} answered HTTP {status}; {check.place} is unchecked", False)
    return None
