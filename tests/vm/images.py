"""Images for tests with virtual machines, built once and kept for later runs.

They are kept in `MVM_TEST_IMAGE_CACHE`, else in `.mvm/test-images` of the checkout, and their layers in
`MVM_IMAGE_CACHE` where that is set (as by `make`). A run with unchanged sources finds them there in seconds, one with a
changed guest program has only its own layer to build. Every test may ask for them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import mvm.openclaw
from mvm.host.locations import locate
from mvm.image.base import BuildRequest, Contents
from mvm.image.debian import DebianBuilder
from mvm.image.guest_zipapp import build_zipapp
from mvm.image.revisions import Revisions
from mvm.openclaw.install import Progress, installed
from mvm.openclaw.programs import find_programs

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "tests/contract/runtime/service.py"
STANDIN = ROOT / "tests/standins/openclaw"
PLUGIN = Path(mvm.openclaw.__path__[0]) / "plugin"
KEPT = 2
"""Revisions of each kind that are kept: sources change often."""


def store() -> Path:
    """Where the images are kept."""
    return Path(os.environ.get("MVM_TEST_IMAGE_CACHE") or ROOT / ".mvm/test-images")


def builder() -> DebianBuilder:
    """What builds them."""
    return DebianBuilder(cache())


def cache() -> Path:
    """Where layers and downloads are kept."""
    return Path(os.environ.get("MVM_IMAGE_CACHE") or store() / ".cache")


def build(kind: str, node: Path, openclaw_dir: Path, plugin_dir: Path, work: Path) -> Path:
    """The revision with these programs in it; skips the test where none can be built."""
    debian = builder()
    if not (readiness := debian.probe()).usable:
        if os.environ.get("CI"):
            pytest.fail(f"no image can be built: {readiness.reason}; {readiness.remedy}")
        pytest.skip(f"no image can be built: {readiness.reason}")
    zipapp = work / "guest.pyz"
    build_zipapp(zipapp)
    contents = Contents(node=node, openclaw_dir=openclaw_dir, zipapp=zipapp, plugin_dir=plugin_dir)
    revisions = Revisions(store() / kind)
    inputs = debian.resolve(BuildRequest(contents=contents), _quiet)
    directory = revisions.build(debian, inputs, _quiet)
    os.utime(directory)
    _forget_old(revisions)
    return directory


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose OpenClaw is the conformance suite's service, run by Python in Node's place."""
    work = tmp_path_factory.mktemp("small-image")
    node, package, plugin = work / "node", work / "openclaw", work / "plugin"
    node.write_text('#!/bin/sh\nexec /usr/bin/python3 "$@"\n')
    node.chmod(0o755)
    package.mkdir()
    shutil.copyfile(SERVICE, package / "openclaw.mjs")
    plugin.mkdir()
    (plugin / "openclaw.plugin.json").write_text("{}")
    return build("small", node, package, plugin, work)


@pytest.fixture(scope="session")
def standin_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with the real Node and mvm's plugin, and the stand-in for OpenClaw."""
    work = tmp_path_factory.mktemp("standin-image")
    return build("standin", find_programs().node, STANDIN, PLUGIN, work)


@pytest.fixture(scope="session")
def openclaw_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with the real OpenClaw, as a deployment has it."""
    installation = installed(locate({}).programs_dir)
    if installation is None:
        pytest.skip("OpenClaw is not installed: run `make setup`")
    work = tmp_path_factory.mktemp("openclaw-image")
    return build("openclaw", find_programs().node, installation.openclaw_dir, PLUGIN, work)


def _quiet(_progress: Progress) -> None:
    pass


def _forget_old(revisions: Revisions) -> None:
    by_age = sorted(revisions.all(), key=lambda revision: revision.directory.stat().st_mtime)
    for revision in by_age[:-KEPT]:
        revisions.remove(revision.digest)
