"""Directories, images and networks for instances."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.runtime.firecracker_bench import bridged_host
from tests.standins.firecracker.images import make_bare_image


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory in which sockets fit; pytest's own are too deep."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def bridged_network() -> Iterator[None]:
    """A bridge for machines, seen by this process only."""
    with bridged_host():
        yield


@pytest.fixture(scope="module")
def bare_image() -> Iterator[Path]:
    """An image of machines in which nobody answers."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield make_bare_image(directory)
    shutil.rmtree(directory)
