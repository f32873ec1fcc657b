"""What `patience.cjs` looks for is in the pinned OpenClaw: an upgrade that words it otherwise is noticed here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mvm.openclaw
from mvm.host.locations import locate
from mvm.openclaw.install import installed


def test_the_pinned_openclaw_gives_a_slow_thread_up_by_the_timer_that_is_put_off() -> None:
    installation = installed(locate({}).programs_dir)
    if installation is None:
        pytest.skip("OpenClaw is not installed: run `make setup`")
    shim = Path(mvm.openclaw.__path__[0], "plugin/patience.cjs").read_text()
    (giving_up,) = re.findall(r"^const GIVING_UP = '(.*)';$", shim, re.MULTILINE)
    (module,) = (
        path
        for path in (installation.openclaw_dir / "dist").glob("openclaw-state-lease-heartbeat-*.mjs")
        if "shared" not in path.name
    )
    assert f"let startTimer = setTimeout({giving_up}, startupTimeoutMs);" in module.read_text()
