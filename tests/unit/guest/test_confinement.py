"""What services of a machine of their own may do, and how copies of init become services. Real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvm.guest import services, users
from mvm.guest.paths import GuestPaths
from mvm.guest.services import OPENCLAW, ROUTER, SERVICES, Programs

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")

CONFINED = """
import json, os
from pathlib import Path
from mvm.guest.services import OPENCLAW
OPENCLAW.confinement.take()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
told = {name: status[name].split() for name in ("Uid", "Gid", "Groups", "CapBnd", "CapEff", "NoNewPrivs")}
print(json.dumps(told | {"oom": Path("/proc/self/oom_score_adj").read_text().strip(), "umask": os.umask(0)}))
"""

COPY = """
import json, os, sys, time
from mvm.guest import forked
reading, writing = os.pipe()
kept = os.open("/dev/null", os.O_RDONLY)
def work():
    there = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    print(json.dumps({
        "environment": dict(os.environ), "directory": os.getcwd(), "session": os.getsid(0) == os.getpid(),
        "name": open("/proc/self/comm").read().strip(), "kept": kept in there,
    }))
    print("and to stderr", file=sys.stderr)
    sys.exit(7)
pid = forked.start("a-service", work, environment={"A": "1"}, directory="/", output=writing, prepare=lambda: None)
os.close(writing)
said = os.fdopen(reading).read()
_, status = os.waitpid(pid, 0)
print(said + str(os.waitstatus_to_exitcode(status)))
"""


def run(script: str) -> str:
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_root
def test_openclaw_runs_without_any_right_and_can_gain_none() -> None:
    told = json.loads(run(CONFINED))
    assert told["Uid"] == ["1000"] * 4
    assert told["Gid"] == ["1000"] * 4
    assert sorted(told["Groups"]) == ["1000", "990"]
    assert [int(told[name][0], 16) for name in ("CapBnd", "CapEff")] == [0, 0]
    assert told["NoNewPrivs"] == ["1"]
    assert (told["oom"], told["umask"]) == ("500", 0o077)


def test_a_copy_is_a_process_as_if_it_had_been_started() -> None:
    lines = run(COPY).splitlines()
    assert json.loads(lines[0]) == {
        "environment": {"A": "1"},
        "directory": "/",
        "session": True,
        "name": "a-service",
        "kept": False,
    }
    assert lines[1:] == ["and to stderr", "7"]


def test_who_uses_the_most_memory_is_ended_first() -> None:
    scores = {service.name: service.confinement.oom_score for service in SERVICES}
    assert max(scores, key=lambda name: scores[name]) == OPENCLAW.name
    assert scores[OPENCLAW.name] > 0 > scores[ROUTER.name] > scores["agent"]


def test_only_services_of_inits_own_user_are_copies_of_it(tmp_path: Path) -> None:
    programs = Programs(python="python3", zipapp="guest.pyz", node="node", openclaw="openclaw")
    copied = {
        service.name: services.launch(service, GuestPaths(), programs, {}).copied
        for service in SERVICES
        if not service.environment_file
    }
    assert copied == {"channel": ("channel",), "agent": ("agent",), "router": None}
    there = services.launch(services.AGENT, GuestPaths(tmp_path), programs, {})
    assert (there.copied, there.confinement) == (None, None), "under the process runtime nobody is confined or copied"


def test_what_openclaw_could_write_nobody_else_trusts() -> None:
    access = users.directories(GuestPaths())
    paths = GuestPaths()
    assert access[paths.mvm_data].owner is users.ROUTER
    assert access[paths.channel].owner is users.ROUTER
    assert access[paths.channel].mode == 0o700
    for shared in (paths.openclaw_run, paths.logs):
        assert access[shared].owner is users.ROOT
        assert access[shared].mode & 0o1000, "what others put there cannot be replaced"
    assert users.secret_file("workers").group is users.ROUTER
    assert users.secret_file("anthropic").group is users.OPENCLAW


def test_the_heap_of_openclaw_follows_the_memory_of_its_machine() -> None:
    limits = {mem_mib: services.heap_mib(mem_mib) for mem_mib in (1024, 2048, 4096, None)}
    assert limits == {1024: 384, 2048: 512, 4096: 1024, None: 512}
