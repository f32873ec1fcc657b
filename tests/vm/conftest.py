"""Tests with virtual machines run in a network namespace of their own: nothing of the host's network is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.vm.namespace import enter_private_network

pytest.register_assert_rewrite("tests.vm.path")


@pytest.fixture(scope="session")
def private_network(standin_image: Path) -> None:
    """From here on this process, and everything that it starts, has a network of its own with nothing in it.

    An image is built before: what every image has in common comes from where that network does not lead.
    """
    if os.geteuid() != 0:
        pytest.skip("machines with networks of their own need root")
    try:
        enter_private_network()
    except OSError as error:
        pytest.skip(str(error))
