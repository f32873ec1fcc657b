"""The stand-ins as fixtures, and small callers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from tests.unit.demo.callers import BotCall

from mvm.demo.model_provider import ModelStandIn
from mvm.demo.telegram import TelegramStandIn


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn() as standin:
        yield standin


@pytest.fixture
def bot(telegram: TelegramStandIn, http: aiohttp.ClientSession) -> BotCall:
    """Call a method of the first bot: `await bot("getMe")` gives the status and the body."""

    async def call(method: str, **values: object) -> tuple[int, dict[str, object]]:
        async with http.post(f"{telegram.url}/bot{telegram.token}/{method}", json=values) as answer:
            return answer.status, await answer.json()

    return call


@pytest.fixture
async def model() -> AsyncIterator[ModelStandIn]:
    async with ModelStandIn() as standin:
        yield standin


@pytest.fixture
def headers(model: ModelStandIn) -> dict[str, str]:
    return {"x-api-key": model.key, "anthropic-version": "2023-06-01"}
