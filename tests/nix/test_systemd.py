"""systemd itself reads the units that the modules are made of, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mvm.image import units

NEWER = re.compile(r"Unknown key 'Restart(MaxDelaySec|Steps)' in section \[Service\], ignoring\.$")
"""Settings of systemd 254, which NixOS has and Debian 12 has not."""
ABSENT = re.compile(r"Command \S+ is not executable: No such file or directory$")
"""What a guest runs need not be on this machine."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def text(unit: dict[str, Any]) -> str:
    """A unit's file as NixOS writes it."""
    return "\n".join(["[Unit]", *_section(unit["unitConfig"]), "[Service]", *_section(unit["serviceConfig"]), ""])


def _section(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        for each in value if isinstance(value, list) else [value]:
            yield f"{name}={str(each).lower() if isinstance(each, bool) else each}"


def complaints(directory: Path, described: dict[str, dict[str, Any]]) -> list[str]:
    """What systemd says of units."""
    files = []
    for name, unit in described.items():
        files.append(directory / f"{name}.service")
        order = {"After": unit["after"], "Requires": unit["requires"]}
        files[-1].write_text(text({**unit, "unitConfig": {**unit["unitConfig"], **order}}))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, files)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr
    return [line for line in said.splitlines() if not NEWER.search(line) and not ABSENT.search(line)]


def test_it_understands_every_setting(tmp_path: Path) -> None:
    described = json.loads(units.files()["services.json"])["units"]
    assert complaints(tmp_path, described) == []


def test_a_setting_that_it_does_not_know_is_found(tmp_path: Path) -> None:
    (unit,) = (u for n, u in json.loads(units.files()["services.json"])["units"].items() if n == "mvm-channel")
    unit["serviceConfig"]["OOMScoreAdjust"] = "most"
    (said,) = complaints(tmp_path, {"mvm-channel": unit})
    assert "OOM score adjust value 'most'" in said
