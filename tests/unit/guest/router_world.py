"""A router with everything around it: a host that wakes, workers that answer, OpenClaw's plugin."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvm.guest.http import Request, Response
from mvm.guest.http_client import call, call_json
from mvm.guest.http_server import HttpServer
from mvm.guest.router import Router, RouterSettings
from mvm.wire import messages, rpc
from mvm.wire.clock import parse_timestamp
from mvm.wire.frames import FrameError

GATEWAY_IP = "127.0.0.7"


class HostDesk:
    """Stands in for host port 53."""

    def __init__(self) -> None:
        self.up = True
        self.wakes: list[str] = []
        self.addresses: dict[str, str] = {}
        self.refusal: str | None = None
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.events: list[messages.ReportEvent] = []
        self.traces: list[str | None] = []
        self.pairings: list[str] = []
        self.code: str | None = "K7QF3M"
        self.on_wake: Any = None
        self.status = "sleeping"
        self.unknown = ""
        self.questions = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self.up or self._server is None:
            raise ConnectionRefusedError("the host's agent is away")
        return await asyncio.open_connection("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(FrameError):
            await rpc.serve_connection(reader, writer, self._answer, parse=messages.parse_host_request)

    async def _answer(self, request: messages.GuestToHost) -> messages.Answer:
        match request:
            case messages.WakeInstance():
                self.wakes.append(request.instance_id)
                self.traces.append(request.trace)
                await self.gate.wait()
                if self.refusal:
                    raise rpc.Refusal(self.refusal)
                if self.failures:
                    self.failures -= 1
                    return messages.WakeResult(success=False, detail="no memory left")
                if self.on_wake is not None:
                    await self.on_wake(request.instance_id)
                ip = self.addresses[request.instance_id]
                return messages.WakeResult(success=True, guest_ip=ip, state="running")
            case messages.QueryInstanceStatus():
                self.questions += 1
                if self.unknown:
                    raise rpc.Refusal(self.unknown)
                return messages.InstanceStatus(status=self.status, guest_ip=self.addresses[request.instance_id])
            case messages.RequestPairing():
                self.pairings.append(request.peer)
                return messages.PairingCode(
                    code=self.code, expires_at=parse_timestamp("2026-11-22T19:20:00Z"), tenant_id="alice"
                )
            case messages.ReportEvent():
                self.events.append(request)
                return messages.Ok()
        raise rpc.Refusal("not asked for here")


class FakeWorker:
    """Stands in for a worker's forwarder and OpenClaw: an Upgrade, then lines in capitals."""

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self.port = 0
        self.heads: list[bytes] = []
        self.sources: list[str] = []
        self.drop_next = 0
        self.silent = asyncio.Event()
        """While it is set it reads and says nothing, as a machine that ended without a word."""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.ip, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sources.append(writer.get_extra_info("peername")[0])
        if self.drop_next:
            self.drop_next -= 1
            writer.transport.abort()
            return
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            if self.silent.is_set():
                await reader.read()
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            while line := await reader.readline():
                if not self.silent.is_set():
                    writer.write(line.upper())
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()


class Plugin:
    """Stands in for OpenClaw with mvm's plugin, the side that sends."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.bearers: list[str | None] = []
        self.statuses: list[int] = []
        self.server = HttpServer(self._handle)

    async def _handle(self, request: Request) -> Response:
        assert request.path == "/mvm/outbound"
        status = self.statuses.pop(0) if self.statuses else 200
        self.bearers.append(request.bearer)
        if status == 200:
            self.sent.append(request.json_object())
        return Response.json(status, {})


@dataclass
class World:
    """Everything, on free ports of the loopback network."""

    root: Path
    host: HostDesk = field(default_factory=HostDesk)
    plugin: Plugin = field(default_factory=Plugin)
    worker: FakeWorker = field(default_factory=lambda: FakeWorker("127.0.0.8"))
    router: Router | None = None
    wake_seconds: float = 20.0
    silence_seconds: float = 5.0

    async def start(self) -> None:
        (self.root / "workers").mkdir(parents=True)
        (self.root / "workers" / "alice.alice").write_text("alice's token\n")
        (self.root / "workers" / "bob.bob").write_text("bob's token\n")
        await self.host.start()
        await self.worker.start()
        await self.plugin.server.start("127.0.0.1", 0)
        self.host.addresses = {"i-00000001": self.worker.ip, "i-00000002": "127.0.0.9"}
        self.write_tables(alice=["telegram:111", "discord:999"], bob=["telegram:222"])
        await self.start_router()

    def write_tables(self, *, alice_has: str = "i-00000001", **peers: list[str]) -> None:
        """`routes.json` and `users.json` for alice and bob; `alice_has` is the instance of alice's worker."""
        instances = {"alice": alice_has, "bob": "i-00000002"}
        routes = [
            {
                "name": f"{name}-{index}",
                "match_rule": {"peer": peer},
                "target": {
                    "pool_id": "workers",
                    "tenant_id": name,
                    "instance_id": instances[name],
                    "target_port": self.worker.port,
                },
            }
            for name, addresses in peers.items()
            for index, peer in enumerate(addresses)
        ]
        users = [
            {
                "worker_key": f"{name}.{name}",
                "tenant_id": name,
                "user_id": name,
                "pool_id": "workers",
                "instance_id": instances[name],
                "peers": addresses,
            }
            for name, addresses in peers.items()
        ]
        self.replace("routes.json", {"routes": routes})
        self.replace("users.json", {"users": users})

    def replace(self, name: str, value: object) -> None:
        fresh = self.root / f"{name}.new"
        fresh.write_text(value if isinstance(value, str) else json.dumps(value))
        fresh.replace(self.root / name)

    async def start_router(self) -> None:
        settings = RouterSettings(
            tenant_id="alice",
            guest_ip=GATEWAY_IP,
            router_port=0,
            outbound_port=0,
            openclaw_port=self.plugin.server.port,
            routes=self.root / "routes.json",
            users=self.root / "users.json",
            journal=self.root / "data" / "journal.db",
            token=self.root / "run" / "router-token",
            worker_tokens=self.root / "workers",
            wake_seconds=self.wake_seconds,
            silence_seconds=self.silence_seconds,
            longest_delay=0.1,
        )
        self.router = Router(settings, self.host.connect)
        await self.router.start()

    async def stop_router(self) -> None:
        if self.router is not None:
            await self.router.close(grace=0.5)
            self.router = None

    async def restart_router(self, *, silence_seconds: float) -> None:
        self.silence_seconds = silence_seconds
        await self.stop_router()
        await self.start_router()

    async def close(self) -> None:
        await self.stop_router()
        await self.worker.stop()
        await self.plugin.server.close()
        await self.host.close()

    @property
    def token(self) -> str:
        return (self.root / "run" / "router-token").read_text()

    @property
    def port(self) -> int:
        assert self.router is not None
        return self.router.port

    async def post(self, path: str, body: object | None = None) -> Response:
        """A request as the plugin sends it."""
        return await call_json(
            "127.0.0.1",
            self.port,
            "POST",
            path,
            {} if body is None else body,
            headers={"Authorization": f"Bearer {self.token}"},
            seconds=30,
        )

    async def begin(self, key: str = "telegram:default:111:5", peer: str = "telegram:111") -> dict[str, Any]:
        answer = await self.post("/v1/deliveries", {"key": key, "peer": peer, "conversation": "telegram:default:111"})
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json_value()
        return found

    async def open_ws(
        self, worker: str = "alice.alice", *, query: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """A WebSocket's beginning as GatewayClient does it; returns the connection and the head of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            f"GET /v1/workers/{worker}/ws?token={self.token}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n".encode()
        )
        return reader, writer, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)

    async def outbound(
        self,
        text: str = "water the plants",
        *,
        id: str = "1",
        worker: str = "alice.alice",
        token: str = "alice's token",  # noqa: S107
        source: str = "127.0.0.8",
    ) -> Response:
        """A message as alice's outbox posts it."""
        assert self.router is not None
        return await call(
            GATEWAY_IP,
            self.router.outbound_port,
            "POST",
            f"/v1/outbound/{worker}",
            body=json.dumps({"text": text}).encode(),
            headers={"Authorization": f"Bearer {token}", "Idempotency-Key": id},
            source=source,
        )

    def event_kinds(self) -> list[str]:
        return [event.kind for event in self.host.events]
