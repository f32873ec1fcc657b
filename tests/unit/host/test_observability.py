"""Metrics and health of the agent as a scraper gets them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from tests.standins.instant_runtime import InstantRuntime
from tests.unit.host.live_agent import Agent

from mvm.host.api import ApiServer
from mvm.host.api_requests import REQUESTS
from mvm.host.app import Host, open_host
from mvm.host.client import AgentClient
from mvm.host.daemon import observed
from mvm.host.locations import Locations, locate
from mvm.host.rest import _bytes_in
from mvm.model.errors import NotFound, Unavailable
from mvm.model.ids import InstanceId


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))  # short enough for sockets
    locations = locate({"state_dir": str(directory / "s"), "run_dir": str(directory / "r")}, {}, directory)
    for path in (locations.state_dir, locations.run_dir):
        path.mkdir(mode=0o700)
    try:
        async with open_host(locations, {"instant": InstantRuntime()}, environment={}) as host:
            yield host
    finally:
        shutil.rmtree(directory)


def showing(host: Host, port: int) -> Locations:
    host.locations = replace(host.locations, metrics_port=port)
    return host.locations


async def get(host: Host, path: str) -> tuple[int, str, str]:
    url = f"http://127.0.0.1:{host.metrics_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def test_requests_to_the_agent_are_counted_by_kind_and_result(host: Host) -> None:
    locations = showing(host, 0)
    async with observed(host) as observe:
        api = ApiServer(REQUESTS, host, observe=observe)
        await api.start(locations.socket)
        try:
            client = AgentClient(locations.socket)
            info = await client.call("NodeInfo")
            assert info["metrics_port"] == host.metrics_port
            with pytest.raises(NotFound):
                await client.call("TenantInfo", {"tenant_id": "nobody"})
            status, kind, text = await get(host, "/metrics")
        finally:
            await api.close()
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'mvm_requests_total{kind="NodeInfo",result="ok"} 1.0' in text
    assert 'mvm_requests_total{kind="TenantInfo",result="404"} 1.0' in text
    assert 'mvm_instances{state="running"} 0.0' in text
    assert "nobody" not in text


async def test_the_health_follows_whether_requests_are_taken(host: Host) -> None:
    showing(host, 0)
    async with observed(host):
        assert (await get(host, "/healthz"))[0] == 503
        host.serving.set()
        assert (await get(host, "/healthz"))[::2] == (200, "ok\n")
        assert (await get(host, "/nothing"))[0] == 404


async def test_a_port_that_is_taken_is_said_with_what_to_do(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        showing(host, taken.getsockname()[1])
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+") as caught:
            async with observed(host):
                pass
    assert "metrics_port" in (caught.value.hint or "")


async def test_nothing_listens_unless_a_port_is_set(host: Host) -> None:
    async with observed(host) as observe:
        observe("NodeInfo", "ok")
        assert host.metrics_port is None


def test_an_agent_without_metrics_loads_nothing_for_them() -> None:
    check = "import sys, mvm.host.daemon; sys.exit(bool({'aiohttp', 'prometheus_client'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0


async def test_a_snapshot_is_measured_and_audited(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvm.host.rest._bytes_in", lambda directory: 3 * 2**20)
    await agent.deploy()
    worker = agent.host.catalog.instances[InstanceId((await agent.worker())["instance_id"])]
    showing(agent.host, 0)
    async with observed(agent.host):
        await agent.call("InstanceSleep", address=str(worker.ref), force=True)
        _, _, text = await get(agent.host, "/metrics")
    assert "mvm_snapshot_bytes_count 1.0" in text
    assert "mvm_snapshot_bytes_sum 3.145728e+06" in text
    (audited,) = [
        line for line in agent.host.chronicle.audit.recent(worker.tenant_id, 50) if line["action"] == "SnapshotCreated"
    ]
    assert (audited["instance_id"], audited["detail"]) == (worker.instance_id, "3145728 bytes")


def test_disk_space_is_what_was_written_of_a_sparse_file(tmp_path: Path) -> None:
    with (tmp_path / "ram").open("wb") as file:
        file.truncate(64 * 2**20)
        file.write(b"x" * 8192)
    assert 8192 <= _bytes_in(tmp_path) < 2**20
