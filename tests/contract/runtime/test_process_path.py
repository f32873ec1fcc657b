"""A gateway's router and a sleeping worker, both as real instances: a delivery wakes it, a reminder comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.contract.runtime.bench import Subject
from tests.contract.runtime.test_process import ProcessBench
from tests.standins.waiting import until

from mvm.drives.content import CONFIG_FILE_MODE, SECRET_FILE_MODE, write_tree
from mvm.guest.http import Request, Response
from mvm.guest.http_client import call_json
from mvm.guest.http_server import HttpServer
from mvm.model.roles import Role
from mvm.runtime.base import HOST_PORT
from mvm.runtime.process.directories import Directories
from mvm.wire import messages, rpc
from mvm.wire.frames import FrameError
from mvm.wire.messages import WorkStatus
from mvm.wire.tagged import Answer

OUTBOUND_PORT = 18790


class Deployment:
    """One gateway that runs and one worker that sleeps until the router asks for it."""

    def __init__(self, base: Path) -> None:
        self.bench = ProcessBench(base)
        self.wakes: list[str] = []
        self.events: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.plugin = HttpServer(self._plugin)
        self.gateway: Subject
        self.worker: Subject

    async def start(self) -> None:
        self.gateway = await self.bench.new(role=Role.GATEWAY)
        self.worker = await self.bench.new()
        # The plugin's own port is taken by the script in OpenClaw's place; this test is the plugin.
        await self.plugin.start("127.0.0.1", 0)
        await self._write_gateway()
        await self._write_worker()
        self.gateway.desk = await self.bench.runtime.listen(self.gateway.machine, HOST_PORT, self._serve)
        await self.gateway.start()
        await until(self._router_token().exists, what="the router's token", seconds=30)

    async def close(self) -> None:
        await self.plugin.close()
        await self.bench.close()

    async def _write_gateway(self) -> None:
        worker, layout = self.worker.machine.ref, self.gateway.layout
        ports = {
            "port": self.plugin.port,
            "router_port": layout.router_port,
            "outbox_port": layout.outbox_port,
        }
        await self.gateway.write_drives(key="unused", openclaw=ports)
        files = {
            "config.json": self.gateway.machine.config.joinpath("config.json").read_bytes(),
            "openclaw.json": self.gateway.machine.config.joinpath("openclaw.json").read_bytes(),
            "routes.json": json.dumps(
                {
                    "routes": [
                        {
                            "name": "alice",
                            "match_rule": {"peer": "telegram:111"},
                            "target": {"pool_id": worker.pool_id, "instance_id": worker.instance_id},
                        }
                    ]
                }
            ).encode(),
            "users.json": json.dumps(
                {
                    "users": [
                        {
                            "worker_key": "alice.alice",
                            "tenant_id": worker.tenant_id,
                            "user_id": "alice",
                            "pool_id": worker.pool_id,
                            "instance_id": worker.instance_id,
                            "peers": ["telegram:111"],
                        }
                    ]
                }
            ).encode(),
        }
        write_tree(self.gateway.machine.config, files, file_mode=CONFIG_FILE_MODE)
        write_tree(
            self.gateway.machine.secrets,
            {"workers/alice.alice": b"the token", "openclaw/OPENCLAW_AUTH_TOKEN": b"gateway's own"},
            file_mode=SECRET_FILE_MODE,
        )

    async def _write_worker(self) -> None:
        layout, gateway = self.worker.layout, self.gateway.machine.guest_ip
        await self.worker.write_drives(
            key="first key",
            openclaw={
                "port": layout.openclaw_port,
                "router_port": layout.router_port,
                "outbox_port": layout.outbox_port,
                "delivery_sources": [gateway],
                "worker_key": "alice.alice",
                "gateway_url": f"http://{gateway}:{OUTBOUND_PORT}",
            },
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(FrameError, asyncio.CancelledError):
            await rpc.serve_connection(reader, writer, self._host, parse=messages.parse_host_request)

    async def _host(self, request: messages.GuestToHost) -> Answer:
        match request:
            case messages.WakeInstance():
                assert request.instance_id == self.worker.machine.ref.instance_id
                self.wakes.append(request.instance_id)
                if self.worker.process is None:
                    await self.worker.start_ready()
                return messages.WakeResult(success=True, guest_ip=self.worker.machine.guest_ip, state="running")
            case messages.QueryInstanceStatus():
                return messages.InstanceStatus(status="sleeping", guest_ip=self.worker.machine.guest_ip)
            case messages.ReportEvent():
                self.events.append(request.kind)
        return messages.Ok()

    async def _plugin(self, request: Request) -> Response:
        if request.path == "/mvm/outbound":
            self.sent.append(request.json_object())
        return Response.json(200, {})

    def _router_token(self) -> Path:
        return Directories.of(self.gateway.machine).run / "openclaw/router-token"

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """A request of the plugin to the router."""
        headers = {"Authorization": f"Bearer {self._router_token().read_text()}"}
        port = self.gateway.layout.router_port
        async with asyncio.timeout(60):
            while True:
                with suppress(ConnectionRefusedError):  # the plugin, too, waits for a router that is being started
                    answer = await call_json("127.0.0.1", port, "POST", path, body, headers=headers, seconds=60)
                    assert answer.status in (200, 204), answer
                    return answer.json_value() if answer.body else None
                await asyncio.sleep(0.02)

    async def open_turn(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The plugin's connection to the worker, as far as an Upgrade."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.layout.router_port)
        token = self._router_token().read_text()
        writer.write(
            f"GET /v1/workers/alice.alice/ws?token={token} HTTP/1.1\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()
        )
        # The script in OpenClaw's place says everything back in capitals, beginning with the request itself.
        assert await asyncio.wait_for(reader.readuntil(b"\r\n"), 60) == b"GET / HTTP/1.1\r\n"
        return reader, writer


@pytest.fixture
async def deployment(short_directory: Path) -> AsyncIterator[Deployment]:
    deployment = Deployment(short_directory)
    await deployment.start()
    yield deployment
    await deployment.close()


async def test_a_message_wakes_the_worker_and_its_answer_is_kept(deployment: Deployment) -> None:
    body = {"key": "k1", "peer": "telegram:111", "conversation": "c"}
    assert (await deployment.post("/v1/deliveries", body))["state"] == "new"
    assert await deployment.post("/v1/workers/alice.alice/wake", {}) == {"state": "running"}
    _, writer = await deployment.open_turn()
    assert (await deployment.worker.until(WorkStatus.BUSY)).in_flight
    refused = await deployment.worker.sleep(drain_seconds=0)
    assert not refused.success
    writer.close()
    await writer.wait_closed()
    await deployment.worker.until(WorkStatus.IDLE)
    await deployment.post("/v1/deliveries/k1/answered", {"payload": {"text": "hi"}})
    await deployment.gateway.stop()
    await deployment.gateway.start()
    await until(deployment._router_token().exists, what="the router's token", seconds=30)
    again = await deployment.post("/v1/deliveries", body)
    assert (again["state"], again["payload"]) == ("answered", {"text": "hi"})


async def test_a_reminder_reaches_the_gateways_openclaw_with_the_router_away_meanwhile(
    deployment: Deployment,
) -> None:
    await deployment.post("/v1/workers/alice.alice/wake", {})
    await deployment.gateway.stop()
    worker = deployment.worker
    token = Directories.of(worker.machine).run / "openclaw/outbox-token"
    taken = await call_json(
        "127.0.0.1",
        worker.layout.outbox_port,
        "POST",
        "/v1/outbound",
        {"text": "water the plants", "id": "r1"},
        headers={"Authorization": f"Bearer {token.read_text()}"},
    )
    assert taken.status == 202
    await worker.until(WorkStatus.BUSY)
    await deployment.gateway.start()
    await until(lambda: bool(deployment.sent), what="the reminder's arrival", seconds=60)
    assert deployment.sent == [{"id": "alice.alice:r1", "channel": "telegram", "to": "111", "text": "water the plants"}]
    await worker.until(WorkStatus.IDLE)
