"""`mvm demo` from the outside, with the stand-in OpenClaw: quick, so that its ways to end can be tested."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.standins.openclaw_process import STANDIN
from tests.standins.waiting import until

pytestmark = pytest.mark.node

LIMIT = 90.0


class Desk:
    """A person at a terminal, with directories of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        passed = {name: value for name, value in os.environ.items() if not name.startswith(("MVM_", "OPENCLAW_"))}
        self.environment = passed | {
            "MVM_STATE_DIR": str(directory / "state"),
            "MVM_RUN_DIR": str(directory / "run"),
            "MVM_OPENCLAW_DIR": str(STANDIN),
            "MVM_RUNTIME": "process",
        }

    async def type(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mvm.cli.main", *arguments),
            env=self.environment,
            cwd=self.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Whoever runs tests in the background has it ignored, which a program inherits; a person's shell has not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    async def mvm(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run a command to its end; gives stdout and stderr."""
        process = await self.type(*arguments)
        async with asyncio.timeout(LIMIT):
            out, err = await process.communicate()
        assert process.returncode == status, err.decode()
        return out.decode(), err.decode()

    async def ask(self, *arguments: str) -> Any:
        out, _ = await self.mvm(*arguments, "--json")
        return json.loads(out)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this desk: it is found by its directories."""
        found = []
        for process in psutil.process_iter():
            try:
                environment, command = process.environ(), process.cmdline()
            except psutil.Error:
                continue
            texts = [*environment.values(), *command]
            if process.pid != os.getpid() and any(str(self.directory) in text for text in texts):
                found.append(process)
        return found


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    # Not below pytest's directory: the paths of sockets must stay short.
    directory = Path(tempfile.mkdtemp(prefix="mvmd-")).resolve()
    desk = Desk(directory)
    try:
        yield desk
        await desk.mvm("demo", "--down") if (directory / "state/demo/alice").exists() else None
    finally:
        for process in desk.processes():
            process.kill()
        shutil.rmtree(directory)


async def test_once_shows_the_answer_and_leaves_nothing_running(desk: Desk) -> None:
    out, err = await desk.mvm("demo", "--once")
    assert "Telegram got  You said: hello" in out
    assert "restore" in out
    assert "NOT isolated" in err
    await until(lambda: desk.processes() == [], what="the end of the agent")
    assert not (desk.directory / "state/demo/alice").exists()


async def test_a_second_run_uses_what_is_there(desk: Desk) -> None:
    first = await desk.ask("demo")
    second = await desk.ask("demo")
    assert first["answers"] == second["answers"] == ["You said: hello"]
    assert first["standins"] == second["standins"]
    assert first["connect"]["gateway"] == second["connect"]["gateway"]
    assert second["wake"]["kind"] == "wake"
    assert (await desk.mvm("demo", "--say", "how are you?"))[0] == "You said: how are you?\n"
    await desk.mvm("demo", "--down")
    assert await desk.ask("tenant", "list") == {"tenants": []}
    await desk.mvm("demo", "--down", status=3)


async def test_a_demo_that_became_somebody_s_own_deployment_is_not_taken_down_with_its_data(desk: Desk) -> None:
    await desk.ask("demo")
    file = desk.directory / "state/demo/alice/deploy.toml"
    written = file.read_text()
    file.write_text("\n".join(line for line in written.splitlines() if not line.startswith("telegram_api_root")))
    await desk.mvm("new", "openclaw", "alice", "--config", str(file), "--no-check", "--no-wait")
    _, err = await desk.mvm("demo", "--down", status=1)
    assert "is no demo any more" in err
    assert "mvm tenant destroy alice" in err
    assert [tenant["tenant_id"] for tenant in (await desk.ask("tenant", "list"))["tenants"]] == ["alice"]
    await desk.mvm("new", "openclaw", "alice", "--config", str(_file(file, written)), "--no-check", "--no-wait")


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


async def test_standins_that_died_come_back_and_are_the_same(desk: Desk) -> None:
    first = await desk.ask("demo")
    state = json.loads((desk.directory / "state/demo/alice/standins.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    psutil.wait_procs([process for process in desk.processes() if process.pid == state["pid"]], timeout=10)
    second = await desk.ask("demo")
    assert second["standins"] == first["standins"]
    assert second["answers"] == ["You said: hello"]


@pytest.mark.parametrize("line", ["stand-ins: Telegram", "alice has written"])
async def test_an_interrupted_demo_takes_down_what_it_made(desk: Desk, line: str) -> None:
    process = await desk.type("demo")
    assert process.stderr is not None
    async with asyncio.timeout(LIMIT):
        async for heard in process.stderr:
            if line in heard.decode():
                break
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
    assert not (desk.directory / "state/demo/alice").exists()
    await until(lambda: desk.processes() == [], what="the end of the agent")


async def test_a_deployment_that_no_demo_made_is_left_alone(desk: Desk) -> None:
    await desk.mvm("tenant", "create", "alice")
    _, err = await desk.mvm("demo", status=1)
    assert "no demo made" in err
    assert (await desk.ask("tenant", "list"))["tenants"] != []


async def test_another_runtime_than_the_agents_is_refused(desk: Desk) -> None:
    await desk.mvm("tenant", "list")
    _, err = await desk.mvm("demo", "--runtime", "qemu", status=1)
    assert "uses the runtime process, not qemu" in err


async def test_options_that_exclude_each_other(desk: Desk) -> None:
    _, err = await desk.mvm("demo", "--once", "--down", status=2)
    assert "exclude each other" in err
