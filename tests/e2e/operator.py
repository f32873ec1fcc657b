"""An operator and the people they serve: mvm as a command of its own, the stand-ins for Telegram and the model.

Everything of mvm runs as a user runs it: `mvm` subprocesses, an agent in the background, real instances. What is in
this process are the stand-ins, so that tests can play the people and look at what reached the model.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from mvm.demo.model_provider import ModelStandIn
from mvm.demo.telegram import TelegramStandIn
from mvm.host.locations import locate

Json = dict[str, Any]

COMMAND_SECONDS = 600.0
MVM = (sys.executable, "-m", "mvm.cli.main")


class CommandFailed(AssertionError):
    """An `mvm` command ended with another status than expected."""

    def __init__(self, arguments: tuple[str, ...], status: int, stdout: str, stderr: str) -> None:
        super().__init__(f"mvm {' '.join(arguments)} ended with {status}\n{stdout}\n{stderr}")
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


class Operator:
    """One installation of mvm with a state of its own."""

    def __init__(self, directory: Path, telegram: TelegramStandIn, model: ModelStandIn, **environment: str) -> None:
        self.directory = directory
        self.telegram = telegram
        self.model = model
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MVM_", "OPENCLAW_", "PYTEST_"))},
            "MVM_STATE_DIR": str(directory / "state"),
            "MVM_RUN_DIR": str(directory / "run"),
            "MVM_PROGRAMS_DIR": str(locate({}).programs_dir),
            "MVM_RUNTIME": "process",
            "NO_COLOR": "1",
            **environment,
        }

    async def mvm(self, *arguments: str, expect: int = 0, seconds: float = COMMAND_SECONDS) -> str:
        """Run an `mvm` command; returns its stdout. Raises `CommandFailed` for any other status than `expect`."""
        process = await asyncio.create_subprocess_exec(
            *MVM,
            *arguments,
            cwd=self.directory,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), seconds)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        stdout, stderr = out.decode(), err.decode()
        if process.returncode != expect:
            raise CommandFailed(arguments, process.returncode or 0, stdout, stderr + self.agent_log())
        return stdout

    async def ask(self, *arguments: str) -> Any:
        """Run an `mvm` command with `--json`; returns its document."""
        return json.loads(await self.mvm(*arguments, "--json"))

    def agent_log(self) -> str:
        """The end of the background agent's log."""
        logs = sorted((self.directory / "state").glob("*.log"))
        return "".join(f"\n--- {path.name}\n{path.read_text()[-4000:]}" for path in logs)

    def write_deploy_toml(self, users: dict[str, int], *, extra: str = "", telegram_token: str | None = None) -> Path:
        """What an operator writes; `users` maps user ids to Telegram sender ids (0: not paired yet)."""
        secrets = self.directory / "secrets"
        secrets.mkdir(mode=0o700, exist_ok=True)
        for name, value in (
            ("telegram.token", telegram_token or self.telegram.token),
            ("anthropic.key", self.model.key),
        ):
            (secrets / name).write_text(value + "\n")
            (secrets / name).chmod(0o600)
        tables = "".join(
            f'\n[[users]]\nid = "{user}"\ntelegram = [{json.dumps(str(sender)) if sender else ""}]\n'
            for user, sender in users.items()
        )
        path = self.directory / "deploy.toml"
        path.write_text(
            "[secrets]\n"
            'anthropic_key = { file = "./secrets/anthropic.key" }\n'
            'telegram_token = { file = "./secrets/telegram.token" }\n'
            "\n[openclaw]\n"
            f'provider_base_url = "{self.model.url}"\n'
            f'telegram_api_root = "{self.telegram.url}"\n'
            f"{extra}{tables}"
        )
        return path

    async def new(self, name: str, users: dict[str, int], *, extra: str = "", seconds: float = COMMAND_SECONDS) -> None:
        """`mvm new openclaw NAME --config deploy.toml`, until it is ready."""
        path = self.write_deploy_toml(users, extra=extra)
        await self.mvm("new", "openclaw", name, "--config", str(path), seconds=seconds)

    async def instances(self, tenant: str, role: str | None = None) -> list[Json]:
        """The tenant's instances as `mvm instance list --json` shows them."""
        found = await self.ask("instance", "list", tenant)
        listed = found["instances"] if isinstance(found, dict) else found
        return [i for i in listed if role in (None, i["role"])]

    async def worker(self, tenant: str, user: str | None = None) -> Json:
        """The worker instance of a user."""
        workers = [i for i in await self.instances(tenant, "capability-openclaw") if user in (None, i.get("user"))]
        assert len(workers) == 1, f"{len(workers)} workers of {user or tenant}"
        return workers[0]

    async def gateway(self, tenant: str) -> Json:
        """The tenant's gateway instance."""
        (gateway,) = await self.instances(tenant, "gateway")
        return gateway

    @staticmethod
    def address(instance: Json) -> str:
        """`tenant/pool/instance`."""
        return f"{instance['tenant_id']}/{instance['pool_id']}/{instance['instance_id']}"

    async def sleep(self, instance: Json) -> None:
        """Put an instance to sleep now; retried while it is still busy with what it just did."""
        await eventually(lambda: self.mvm("instance", "sleep", self.address(instance), "--force"), 60, CommandFailed)

    async def state(self, instance: Json) -> str:
        """The instance's state now."""
        listed = await self.instances(instance["tenant_id"])
        return next(i["state"] for i in listed if i["instance_id"] == instance["instance_id"])

    async def wait_for_state(self, instance: Json, state: str, seconds: float) -> None:
        """Return when the instance is in that state."""

        async def check() -> None:
            now = await self.state(instance)
            assert now == state, f"{self.address(instance)} is {now}, not {state}, after {seconds:g} s"

        await eventually(check, seconds, AssertionError)

    async def say(self, sender: int, text: str, *, answers: int = 1, seconds: float = 180.0) -> list[str]:
        """A person writes; returns the bot's answers to it."""
        sent = await self.telegram.say(sender, text)
        entries = await self.telegram.wait_for_answers(sender, answers, after=sent.number, timeout=seconds)
        return [entry.text for entry in entries]

    # Processes

    def agent_pid(self) -> int:
        """The background agent's process."""
        for process in self.processes():
            if process.cmdline()[-2:] == ["agent", "serve"]:
                return process.pid
        raise AssertionError("no agent runs")

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this installation: the agent, supervisors, guests, OpenClaw, machines."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            marks = (environment.get(name, "") for name in ("MVM_STATE_DIR", "MVM_GUEST_ROOT", "MVM_MACHINE"))
            if any(mark.startswith(str(self.directory) + "/") for mark in marks):
                found.append(process)
        return found

    def processes_of(self, instance: Json) -> list[psutil.Process]:
        """The processes of one instance."""
        mark = f"/{instance['instance_id']}/"
        found = []
        for process in self.processes():
            try:
                if mark in process.environ().get("MVM_GUEST_ROOT", "") + "/":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def service_of(self, instance: Json, service: str) -> psutil.Process:
        """The process of a service (agent, router, openclaw) or of the supervisor of an instance, by its record."""
        run = self.directory / "run/i" / instance["instance_id"] / "root/run/mvm/supervisor.json"
        record = json.loads(run.read_text())
        entry = record["supervisor"] if service == "supervisor" else record["services"][service]
        return psutil.Process(entry["pid"])

    async def kill_agent(self) -> None:
        """`kill -9` of the agent; returns when it is gone."""
        await kill(psutil.Process(self.agent_pid()))

    async def close(self) -> None:
        """End whatever a test left running, by pid."""
        for attempt in (signal.SIGTERM, signal.SIGKILL):
            left = self.processes()
            for process in left:
                with_suppressed(process.send_signal, attempt)
            await asyncio.to_thread(psutil.wait_procs, left, 20 if attempt is signal.SIGTERM else 5)


async def kill(process: psutil.Process) -> None:
    """SIGKILL, by handle; returns when it is gone."""
    process.kill()
    await asyncio.to_thread(process.wait, 10)


def with_suppressed(action: Callable[..., object], *arguments: object) -> None:
    """Do something to a process that may have ended meanwhile."""
    try:
        action(*arguments)
    except psutil.NoSuchProcess:
        return


async def eventually(
    action: Callable[[], Awaitable[Any]], seconds: float, expected: type[BaseException], *, pause: float = 0.25
) -> Any:
    """Try until it does not raise `expected`; the last error is raised after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await action()
        except expected:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(pause)


@asynccontextmanager
async def operator(**environment: str) -> AsyncIterator[Operator]:
    """An operator with fresh stand-ins; afterwards nothing of it is left, and that is checked."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-e2e-"))
    directory.chmod(0o755)
    async with TelegramStandIn() as telegram, ModelStandIn() as model:
        someone = Operator(directory, telegram, model, **environment)
        try:
            yield someone
        finally:
            await someone.close()
            left = someone.processes()
            secrets = locate({"state_dir": str(directory / "state"), "run_dir": str(directory / "run")}).secrets_dir
            shutil.rmtree(directory, ignore_errors=True)
            shutil.rmtree(secrets, ignore_errors=True)
            assert not left, f"processes were left: {left}"
