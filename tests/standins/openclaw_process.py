"""One OpenClaw as a process of a test: the stand-in by default, the real one when its directory is given."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import aiohttp
from tests.standins.waiting import until

from mvm.openclaw.programs import find_programs
from mvm.openclaw.render import JsonObject, Place, environment

STANDIN = Path(__file__).parent / "openclaw"
PLUGIN = Path(__file__).resolve().parents[2] / "src/mvm/openclaw/plugin"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OpenClawProcess:
    """Everything of one OpenClaw hangs under `root`; `secrets` are the values behind its SecretRefs."""

    def __init__(self, root: Path, secrets: dict[str, str], *, package: Path = STANDIN) -> None:
        self.root = root
        self.secrets = secrets
        self.port = free_port()
        self._package = package
        self._process: asyncio.subprocess.Process | None = None
        for folder in ("home", "state", "secrets/workers", "secrets/openclaw"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.place = Place(
            port=self.port,
            plugin_dir=str(PLUGIN),
            state_dir=str(root / "state"),
            workspace=str(root / "workspace"),
            home=str(root / "home"),
            config_file=str(root / "openclaw.json"),
            secrets_file=str(root / "secrets.json"),
            secrets_dir=str(root / "secrets"),
            control_socket=str(root / "control.sock"),
            log_file=str(root / "openclaw.log"),
        )
        self.write_secrets()

    @property
    def token(self) -> str:
        return self.secrets["OPENCLAW_AUTH_TOKEN"]

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def write_secrets(self) -> None:
        """Put `secrets` where OpenClaw and the plugin read them."""
        replace(self.root / "secrets.json", json.dumps(self.secrets))
        replace(self.root / "secrets/openclaw/OPENCLAW_AUTH_TOKEN", self.token)

    def write_config(self, config: JsonObject) -> None:
        replace(self.root / "openclaw.json", json.dumps(config))

    async def launch(self) -> None:
        """Start the process and return at once."""
        assert not self.alive
        with (self.root / "stdout.log").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                find_programs(os.environ.get("MVM_NODE")).node,
                self._package / "openclaw.mjs",
                *("gateway", "run"),
                env={"PATH": os.defpath, "OPENCLAW_GATEWAY_TOKEN": self.token, **environment(self.place)},
                cwd=self.root,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def start(self, *, seconds: float = 150.0) -> None:
        """Start and wait until it is ready."""
        await self.launch()
        await self.wait_ready(seconds=seconds)

    async def wait_ready(self, *, seconds: float = 150.0) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http, asyncio.timeout(seconds):
            while True:
                assert self.alive, self.output()[-2000:]
                try:
                    async with http.get(f"http://127.0.0.1:{self.port}/readyz") as answer:
                        if answer.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.02)

    async def wait_ended(self, *, seconds: float = 30.0) -> int:
        """The status with which it ends (negative: the signal)."""
        assert self._process is not None
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def stop(self) -> int:
        """End it in order."""
        if self._process is None:
            return 0
        if self.alive:
            self._process.terminate()
        return await self.wait_ended()

    async def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None and self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def kill_at(self, stage: str) -> None:
        """Have it kill itself when it next gets to this point (`openclaw/lib/stages.mjs` lists them)."""
        self._set("kill-at", stage)

    def delay_start(self, milliseconds: int) -> None:
        """Make its starts slower from now on."""
        self._set("start-delay-ms", str(milliseconds))

    def _set(self, name: str, value: str) -> None:
        folder = self.root / "state/standin"
        folder.mkdir(exist_ok=True)
        replace(folder / name, value)

    def violations(self) -> list[JsonObject]:
        """Rules of the real OpenClaw that were broken."""
        return violations(self.root / "state")

    def output(self) -> str:
        log = self.root / "stdout.log"
        return log.read_text(errors="replace") if log.exists() else ""

    async def control(self, request: str, *, seconds: float = 30.0) -> JsonObject:
        """Ask the plugin's control socket."""
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(self.place.control_socket)
            try:
                writer.write(f"{request}\n".encode())
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
                await writer.wait_closed()
        assert isinstance(answer, dict)
        return answer

    async def wait_idle(self, *, seconds: float = 30.0) -> None:
        """Return when it does nothing for anyone."""
        async with asyncio.timeout(seconds):
            while True:
                status = await self.control("STATUS")
                if status["in_flight"] == 0 and status["queued"] == 0:
                    return
                await asyncio.sleep(0.02)

    async def wait_dead(self, *, seconds: float = 30.0) -> None:
        """Return when it has ended by itself (see `kill_at`)."""
        await until(lambda: not self.alive, what=f"the end of {self.root.name}", seconds=seconds)


def violations(state: Path) -> list[JsonObject]:
    """What a stand-in OpenClaw with this state directory has to complain about."""
    path = state / "standin/violations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def replace(path: Path, text: str) -> None:
    """Write a file whole, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o600)
    temporary.replace(path)
