"""OpenClaw is told once where its Discord channel comes from, and keeps to it through updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvm.guest.discord import PACKAGE, record_discord


def package(directory: Path, name: str) -> str:
    directory.mkdir(parents=True)
    (directory / "package.json").write_text(json.dumps({"name": name}))
    return str(directory)


def loading(*paths: str) -> dict[str, Any]:
    return {"plugins": {"load": {"paths": list(paths)}}}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return loading(package(tmp_path / "mvm", "mvm-openclaw-plugin"), package(tmp_path / "one/discord", PACKAGE))


def test_the_record_names_the_official_package_by_a_link_to_it(config: dict[str, Any], tmp_path: Path) -> None:
    record_discord(config, tmp_path / "state")
    records = json.loads((tmp_path / "state/plugins/installs.json").read_text())["installRecords"]
    assert records["discord"]["source"] == "npm"
    assert records["discord"]["spec"] == PACKAGE
    assert Path(records["discord"]["installPath"]).resolve() == tmp_path / "one/discord"


def test_a_record_that_openclaw_took_over_is_not_written_again(config: dict[str, Any], tmp_path: Path) -> None:
    record_discord(config, tmp_path / "state")
    record = tmp_path / "state/plugins/installs.json"
    record.rename(f"{record}.migrated")
    record_discord(config, tmp_path / "state")
    assert not record.exists()


def test_the_link_follows_the_package(config: dict[str, Any], tmp_path: Path) -> None:
    record_discord(config, tmp_path / "state")
    record_discord(loading(package(tmp_path / "two/discord", PACKAGE)), tmp_path / "state")
    assert (tmp_path / "state/plugins/discord").resolve() == tmp_path / "two/discord"


@pytest.mark.parametrize("config", [{}, loading(), loading("/nowhere")])
def test_without_the_channel_nothing_is_written(config: dict[str, Any], tmp_path: Path) -> None:
    record_discord(config, tmp_path / "state")
    assert not (tmp_path / "state").exists()
