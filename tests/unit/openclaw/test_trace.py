"""One id follows a message through the plugin, the router and the worker: both languages make the same one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import mvm.openclaw
from mvm.guest.trace import trace_of, valid_trace
from mvm.openclaw.programs import find_programs

KEYS = ["telegram:default:111:5", "discord:main:chan%2F9:77", "telegram:a b:\u00fc:\u2603", "x" * 240]


@pytest.mark.node
def test_the_plugin_and_the_router_call_a_message_the_same() -> None:
    module = Path(mvm.openclaw.__file__).parent / "plugin/message.js"
    keys = json.dumps(KEYS)
    script = f"import {{runIdOf}} from '{module}'; console.log(JSON.stringify({keys}.map(runIdOf)))"
    node = [str(find_programs().node), "--input-type=module", "-e", script]
    run = subprocess.run(node, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(run.stdout) == [trace_of(key) for key in KEYS]


def test_a_trace_is_a_valid_one() -> None:
    assert [valid_trace(trace_of(key)) for key in KEYS] == [trace_of(key) for key in KEYS]
    assert [valid_trace(wrong) for wrong in (None, 7, "", "a b", "x" * 601)] == [None] * 5
