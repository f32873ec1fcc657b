"""The image of the machines that Nix builds in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.unit.image.samples import CONTENTS, QuickBuilder

from mvm.host.builder_image import STALE_SECONDS, BuilderImage
from mvm.openclaw.install import Progress


def quiet(_step: Progress) -> None:
    pass


@pytest.fixture
def quick() -> QuickBuilder:
    return QuickBuilder()


@pytest.fixture
def image(quick: QuickBuilder, tmp_path: Path) -> BuilderImage:
    return BuilderImage(quick, lambda: CONTENTS, tmp_path)


def test_it_is_made_once_and_anew_when_what_it_is_made_of_is_new(image: BuilderImage, quick: QuickBuilder) -> None:
    first = image.make(quiet)
    assert image.make(quiet) == first
    quick.version = "2"
    assert image.make(quiet) != first
    assert quick.builds == 2


def test_one_that_nobody_needed_for_long_is_garbage(image: BuilderImage, quick: QuickBuilder) -> None:
    assert image.stale() == []
    old = image.make(quiet)
    quick.version = "2"
    image.make(quiet)
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(old, (long_ago, long_ago))
    assert image.stale() == [old]
    quick.version = "1"
    assert image.make(quiet) == old
    assert image.stale() == []
