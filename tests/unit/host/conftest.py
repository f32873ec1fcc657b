"""Fixtures of the host's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.host.live_agent import Agent, opened_agent
from tests.unit.host.services import Services, opened


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    async with opened(tmp_path / "state") as found:
        yield found


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with opened_agent() as agent:
        yield agent
