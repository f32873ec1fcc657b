"""A gateway and workers with everything between them but the host: real router, real plugin, OpenClaw as processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.standins.openclaw_process import STANDIN, OpenClawProcess, free_port, replace

from mvm.demo.model_provider import DEFAULT_MODEL, ModelStandIn
from mvm.demo.telegram import TelegramStandIn
from mvm.guest.http import Request, Response
from mvm.guest.http_server import HttpServer
from mvm.guest.router import Router, RouterSettings
from mvm.openclaw.render import gateway_config, worker_config
from mvm.wire import messages, rpc
from mvm.wire.clock import parse_timestamp
from mvm.wire.frames import FrameError

GATEWAY_IP = "127.0.0.7"
ALICE, BOB, STRANGER = 111, 222, 333
PEOPLE = {"alice": ALICE, "bob": BOB}
INSTANCES = {"alice": "i-00000001", "bob": "i-00000002"}


class Host:
    """Host port 53: starts the worker that is asked for."""

    def __init__(self, workers: dict[str, OpenClawProcess]) -> None:
        self.workers = workers
        self.wakes: list[str] = []
        self.events: list[messages.ReportEvent] = []
        self._lock = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self._server is not None
        return await asyncio.open_connection("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(FrameError, ConnectionError):
            await rpc.serve_connection(reader, writer, self._answer, parse=messages.parse_host_request)

    async def _answer(self, request: messages.GuestToHost) -> messages.Answer:
        match request:
            case messages.WakeInstance():
                name = next(name for name, instance in INSTANCES.items() if instance == request.instance_id)
                self.wakes.append(name)
                async with self._lock:
                    if not self.workers[name].alive:
                        await self.workers[name].start()
                return messages.WakeResult(success=True, guest_ip="127.0.0.1", state="running")
            case messages.RequestPairing():
                return messages.PairingCode(
                    code="K7QF3M", expires_at=parse_timestamp("2026-11-22T19:20:00Z"), tenant_id="alice"
                )
            case messages.ReportEvent():
                self.events.append(request)
                return messages.Ok()
        raise rpc.Refusal("not asked for here")


@dataclass
class Outbox:
    """Where a worker's plugin posts what it has to say by itself; each id counts once."""

    server: HttpServer = field(init=False)
    taken: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered instead, without being taken."""
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.server = HttpServer(self._take)

    async def _take(self, request: Request) -> Response:
        assert request.bearer == "outbox token"
        if self.statuses:
            return Response.json(self.statuses.pop(0), {})
        body = request.json_object()
        self.taken[str(body["id"])] = str(body["text"])
        return Response.json(202, {})


@dataclass
class Deployment:
    """Alice's and bob's workers behind one gateway; `stop` ends everything."""

    root: Path
    package: Path = STANDIN
    telegram: TelegramStandIn = field(default_factory=TelegramStandIn)
    model: ModelStandIn = field(default_factory=ModelStandIn)
    workers: dict[str, OpenClawProcess] = field(default_factory=dict)
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    router: Router | None = None

    async def start(self) -> None:
        await self.telegram.start()
        await self.model.start()
        for name in PEOPLE:
            secrets = {"OPENCLAW_AUTH_TOKEN": f"token-of-{name}", "ANTHROPIC_API_KEY": self.model.key}
            worker = OpenClawProcess(self.root / name, secrets, package=self.package)
            outbox = Outbox()
            await outbox.server.start("127.0.0.1", outbox.port)
            replace(worker.root / "outbox-token", "outbox token")
            worker.write_config(
                worker_config(
                    worker.place,
                    secret_keys=secrets,
                    outbox_port=outbox.port,
                    outbox_token_file=str(worker.root / "outbox-token"),
                    model=f"anthropic/{DEFAULT_MODEL}",
                    provider_base_url=self.model.url,
                )
            )
            self.workers[name], self.outboxes[name] = worker, outbox
        self.host = Host(self.workers)
        await self.host.start()
        secrets = {"OPENCLAW_AUTH_TOKEN": "token-of-the-gateway", "TELEGRAM_BOT_TOKEN": self.telegram.token}
        self.gateway = OpenClawProcess(self.root / "gateway", secrets, package=self.package)
        for name, worker in self.workers.items():
            replace(self.gateway.root / f"secrets/workers/{name}.{name}", worker.token)
        self.router_port, self.outbound_port = free_port(), free_port()
        self._write_tables()
        self.gateway.write_config(
            gateway_config(
                self.gateway.place,
                secret_keys=secrets,
                router_port=self.router_port,
                router_token_file=str(self.gateway.root / "router-token"),
                telegram_api_root=self.telegram.url,
            )
        )
        await self.start_router()
        await self.gateway.start()

    async def start_router(self) -> None:
        settings = RouterSettings(
            tenant_id="alice",
            guest_ip=GATEWAY_IP,
            router_port=self.router_port,
            outbound_port=self.outbound_port,
            openclaw_port=self.gateway.port,
            routes=self.gateway.root / "routes.json",
            users=self.gateway.root / "users.json",
            journal=self.gateway.root / "journal.db",
            token=self.gateway.root / "router-token",
            worker_tokens=self.gateway.root / "secrets/workers",
        )
        self.router = Router(settings, self.host.connect)
        await self.router.start()

    async def stop_router(self) -> None:
        router, self.router = self.router, None
        if router is not None:
            await router.close()

    async def stop(self) -> None:
        for process in (getattr(self, "gateway", None), *self.workers.values()):
            if process is not None:
                await process.kill()
        await self.stop_router()
        if hasattr(self, "host"):
            await self.host.stop()
        for outbox in self.outboxes.values():
            await outbox.server.close()
        await self.model.stop()
        await self.telegram.stop()

    async def say(self, text: str, *, person: int = ALICE, count: int = 1, timeout: float = 60.0) -> list[str]:
        """The person writes; gives the texts of what the bot then says."""
        sent = await self.telegram.say(person, text)
        answers = await self.telegram.wait_for_answers(person, count, after=sent.number, timeout=timeout)
        return [str(answer.text) for answer in answers]

    def files_in_gateway(self, folder: str) -> list[Path]:
        """Files in folders of that name in the gateway's state."""
        return [path for path in self.gateway.root.rglob(f"{folder}/**/*") if path.is_file()]

    def violations(self) -> list[object]:
        """Rules of the real OpenClaw that anybody here has broken."""
        return [found for process in (self.gateway, *self.workers.values()) for found in process.violations()]

    def _write_tables(self) -> None:
        routes, users = [], []
        for name, person in PEOPLE.items():
            place = {"pool_id": "workers", "tenant_id": name, "instance_id": INSTANCES[name]}
            peer = f"telegram:{person}"
            target = {**place, "target_port": self.workers[name].port}
            routes.append({"name": name, "match_rule": {"peer": peer}, "target": target})
            users.append({"worker_key": f"{name}.{name}", "user_id": name, "peers": [peer], **place})
        replace(self.gateway.root / "routes.json", json.dumps({"routes": routes}))
        replace(self.gateway.root / "users.json", json.dumps({"users": users}))


@asynccontextmanager
async def deployed(root: Path, *, package: Path = STANDIN) -> AsyncIterator[Deployment]:
    """A deployment that is ended with the block."""
    deployment = Deployment(root, package)
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()
