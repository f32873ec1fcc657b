"""A host of its own for each test of networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.contract.network.world import World, new_host


@pytest.fixture
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(new_host())
        yield World(stack)
