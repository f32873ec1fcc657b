"""A whole guest: the real zipapp under the real supervisor, a scripted OpenClaw, and a host that listens."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tests.unit.guest.guest_world import LIMIT_SECONDS, GuestWorld, config, until

from mvm.guest.secrets import AUTH_TOKEN
from mvm.image.guest_zipapp import build_zipapp
from mvm.wire import messages, rpc
from mvm.wire.frames import FrameError
from mvm.wire.messages import WorkStatus
from mvm.wire.tagged import Answer, Request

A = TypeVar("A", bound=Answer)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody has right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class AgentWorld(GuestWorld):
    """One guest with its agent."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[messages.ReportStatus] = []
        self.events: list[messages.ReportEvent] = []
        self._desk: asyncio.Server | None = None
        build_zipapp(self.programs / "guest.py")
        self.script("openclaw", (Path(__file__).parent / "scripted_openclaw.py").read_text())
        self.openclaw_port, self.forwarder_port, outbox, router, outbound = free_ports(5)
        self.openclaw: dict[str, Any] = {
            "port": self.openclaw_port,
            "forwarder_port": self.forwarder_port,
            "outbox_port": outbox,
            "router_port": router,
            "outbound_port": outbound,
            "delivery_sources": ["127.0.0.1"],
            "worker_key": "alice.alice",
            "gateway_url": None,
            "live_secrets": ["ANTHROPIC_API_KEY", AUTH_TOKEN],
        }
        self.configure()
        self.write_openclaw_config({"port": self.openclaw_port})
        self.write_secret("openclaw", AUTH_TOKEN, "token-1")
        self.write_secret("anthropic", "ANTHROPIC_API_KEY", "key-1")

    def configure(self, **changes: Any) -> None:
        """Write `config.json` for this guest."""
        values: dict[str, Any] = {"openclaw": self.openclaw, "allow_exec": True, "user": "alice", **changes}
        values.setdefault("runtime_policy", {"drain_timeout_seconds": 5})
        self.write_config(config(**values))

    def write_openclaw_config(self, value: dict[str, Any]) -> None:
        self.paths.openclaw_config_source.write_text(json.dumps(value))

    def write_secret(self, scope: str, key: str, value: str) -> None:
        directory = self.paths.secrets / scope
        directory.mkdir(exist_ok=True)
        (directory / key).write_text(value)

    def behave(self, **behaviour: Any) -> None:
        """How the scripted OpenClaw behaves from now on."""
        (self.programs / "openclaw/behaviour.json").write_text(json.dumps(behaviour))

    def calls(self) -> list[str]:
        """What OpenClaw was asked, oldest first."""
        path = self.programs / "openclaw/calls"
        return path.read_text().splitlines() if path.exists() else []

    def clear_calls(self) -> None:
        (self.programs / "openclaw/calls").unlink(missing_ok=True)

    async def start(self) -> None:
        """Start everything, and wait until the guest says that it is idle."""
        await self.begin()
        await self.status_is(WorkStatus.IDLE)
        await until(lambda: "CHANNELS" in self.calls(), "the look at held back channels")

    async def begin(self) -> None:
        """Start everything without waiting for more than the agent."""
        await self.listen_as_host()
        await self.supervise()
        await until((self.channel / "guest_52.sock").exists, "the agent's socket")

    async def listen_as_host(self) -> None:
        """Serve host port 53."""
        self._desk = await asyncio.start_unix_server(self._serve_desk, str(self.channel / "host_53.sock"))

    async def ask(self, request: Request[A]) -> A:
        """One request to guest port 52."""
        reader, writer = await asyncio.open_unix_connection(str(self.channel / "guest_52.sock"))
        try:
            return await rpc.call(reader, writer, request, timeout=LIMIT_SECONDS)
        finally:
            writer.close()
            await writer.wait_closed()

    async def line(self, text: str) -> str:
        """One line to guest port 5200."""
        reader, writer = await asyncio.open_unix_connection(str(self.channel / "guest_5200.sock"))
        try:
            writer.write(text.encode() + b"\n")
            return (await reader.readline()).decode().strip()
        finally:
            writer.close()
            await writer.wait_closed()

    async def tell_openclaw(self, **changes: Any) -> None:
        """Change what OpenClaw says it is doing."""
        reader, writer = await asyncio.open_unix_connection(str(self.paths.control_socket))
        writer.write(f"TEST {json.dumps(changes)}\n".encode())
        await reader.readline()
        writer.close()
        await writer.wait_closed()

    async def status_is(self, wanted: WorkStatus, also: Callable[[messages.WorkerStatus], bool] | None = None) -> None:
        """Wait until the guest says that of itself."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            status = await self.ask(messages.QueryWorkerStatus())
            if status.status is wanted and (also is None or also(status)):
                return
            assert time.monotonic() < deadline, f"{status} instead of {wanted}: {self.log('agent')}"
            await asyncio.sleep(0.01)

    async def wake(self, **changes: Any) -> messages.WakeAck:
        """A wake with the numbers of `config.json`."""
        values: dict[str, Any] = {"secrets_epoch": 1, "config_version": 1, "entropy": b"x" * 64, **changes}
        return await self.ask(messages.Wake(host_time=datetime.now(UTC), **values))

    async def reach_forwarder(self) -> bool:
        """Whether a delivery is let in."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.forwarder_port)
        except OSError:
            return False
        try:
            writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
            return bool(await reader.read(1))
        except OSError:
            return False
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def close(self) -> None:
        if self._desk is not None:
            self._desk.close()
        await super().close()

    async def _serve_desk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(FrameError):
            await rpc.serve_connection(reader, writer, self._answer_guest, parse=messages.parse_host_request)

    async def _answer_guest(self, request: messages.GuestToHost) -> Answer:
        match request:
            case messages.ReportStatus():
                self.reports.append(request)
            case messages.ReportEvent():
                self.events.append(request)
            case _:
                raise rpc.Refusal("not here")
        return messages.Ok()
