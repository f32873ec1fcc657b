"""A guest's directory with services that are small Python scripts, and its supervisor as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvm.guest import processes
from mvm.guest.paths import GuestPaths
from mvm.guest.processes import Identity
from mvm.guest.supervisor_socket import SupervisorClient

LIMIT_SECONDS = 45.0

AGENT = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
def end(*_):
    with (here / "ends").open("a") as file:
        file.write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("hello from", sys.argv[1], flush=True)
while True:
    time.sleep(60)
"""

OPENCLAW = """
import os, signal, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
def end(*_):
    with (here.parent / "ends").open("a") as file:
        file.write("openclaw\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("hello from openclaw", flush=True)
while True:
    time.sleep(60)
"""


async def until(condition: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> Any:
    """Wait for a condition and return its (true) value; fails saying what never came."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


def config(**changes: Any) -> dict[str, Any]:
    """A `config.json` of a worker."""
    return {
        "instance_id": "i-0a1b2c3d",
        "pool_id": "workers",
        "tenant_id": "alice",
        "role": "capability-openclaw",
        "guest_ip": "127.0.0.1",
        "gateway_ip": "127.0.0.1",
        "prefix": 24,
        "vcpus": 2,
        "mem_mib": 2048,
        "openclaw": {"live_secrets": ["ANTHROPIC_API_KEY"]},
        "config_version": 1,
        "secrets_epoch": 1,
        **changes,
    }


class GuestWorld:
    """One guest. `close` ends its supervisor and removes everything."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mvm-"))
        self.root = self.directory / "root"
        self.paths = GuestPaths(self.root)
        self.programs = self.directory / "programs"
        self.supervisor: asyncio.subprocess.Process | None = None
        for directory in (
            self.paths.config_dir,
            self.paths.secrets,
            self.paths.data,
            self.programs / "openclaw",
            self.channel,
        ):
            directory.mkdir(parents=True)
        self.paths.prepare()
        self.paths.environment_file.write_text("")
        self.script("agent", AGENT)
        self.script("openclaw", OPENCLAW)
        self.write_config(config())

    @property
    def channel(self) -> Path:
        return self.directory / "ch"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "MVM_GUEST_ROOT": str(self.root),
            "MVM_CHANNEL_DIR": str(self.channel),
            "MVM_PYTHON": sys.executable,
            "MVM_NODE": sys.executable,
            "MVM_OPENCLAW_DIR": str(self.programs / "openclaw"),
            "MVM_GUEST_ZIPAPP": str(self.programs / "guest.py"),
        }

    @property
    def client(self) -> SupervisorClient:
        return SupervisorClient(self.paths.supervisor_socket)

    def script(self, service: str, text: str) -> None:
        """What a service does from its next start on (the agent's script is the router's too)."""
        name = "openclaw/openclaw.mjs" if service == "openclaw" else "guest.py"
        (self.programs / name).write_text(text)

    def write_config(self, value: dict[str, Any]) -> None:
        self.paths.config.write_text(json.dumps(value))

    def log(self, service: str) -> str:
        path = self.paths.log(service)
        return path.read_text() if path.exists() else ""

    def ends(self) -> list[str]:
        path = self.programs / "ends"
        return path.read_text().split() if path.exists() else []

    async def supervise(self, *program: str) -> Identity:
        """Start the supervisor, or what a test has Python run instead; returns when it answers."""
        self.supervisor = await asyncio.create_subprocess_exec(
            sys.executable,
            *(program or ("-m", "mvm.guest", "supervise")),
            env=self.environment,
            start_new_session=True,
        )
        await until(self.paths.supervisor_record.exists, "the supervisor's record")
        identity = processes.identity_of(self.supervisor.pid)
        assert identity is not None
        return identity

    async def service(self, name: str) -> dict[str, Any]:
        status = await self.client.status()
        found: dict[str, Any] = status["services"][name]
        return found

    async def running(self, name: str) -> Identity:
        """Wait until a service runs and has said hello."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            service = await self.service(name)
            if service["state"] == "running" and f"hello from {name}" in self.log(name):
                return Identity(service["pid"], service["start_time"])
            assert time.monotonic() < deadline, f"{name} never ran: {self.log(name)}"
            await asyncio.sleep(0.01)

    def alive(self) -> list[processes.Process]:
        """Every process of this guest."""
        return processes.marked(str(self.root.resolve()))

    async def close(self) -> None:
        if self.supervisor is not None and self.supervisor.returncode is None:
            self.supervisor.terminate()
            await asyncio.wait_for(self.supervisor.wait(), LIMIT_SECONDS)
        left = self.alive()
        await processes.kill_all(self.alive)
        shutil.rmtree(self.directory)
        assert not left, f"processes were left: {left}"
