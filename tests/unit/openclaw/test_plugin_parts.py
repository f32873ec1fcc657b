"""The plugin's pure parts, in Node's own test runner."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mvm.openclaw.programs import find_programs

PARTS = sorted((Path(__file__).parent / "plugin").glob("*.test.mjs"))


@pytest.mark.node
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name.removesuffix(".test.mjs"))
def test_parts_of_the_plugin(part: Path) -> None:
    run = subprocess.run([str(find_programs().node), "--test", str(part)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "fail 0" in run.stdout, run.stdout
