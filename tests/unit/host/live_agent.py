"""A whole agent over machines that take no time, reached through its client."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.standins.instant_runtime import InstantRuntime

from mvm.host.api import ApiServer
from mvm.host.api_requests import REQUESTS
from mvm.host.app import Host, open_host
from mvm.host.client import AgentClient
from mvm.host.locations import Locations
from mvm.model.deployment import Deployment
from mvm.model.entities import DesiredCounts, PoolSpec, UserSpec
from mvm.model.ids import PoolId, TenantId, UserId
from mvm.model.roles import Role

KEY = "sk-ant-0123456789abcdef"
SECRETS = {"anthropic/ANTHROPIC_API_KEY": KEY, "telegram/TELEGRAM_BOT_TOKEN": "123456:AAE-abcdefghijklmnopqrstuvwxyz01"}
LIMIT = 20.0


@dataclass
class Agent:
    """What a test works with."""

    host: Host
    runtime: InstantRuntime
    client: AgentClient

    async def call(self, name: str, **params: Any) -> dict[str, Any]:
        """The answer to one request."""
        return await self.client.call(name, params, timeout=LIMIT)

    async def deploy(self, **params: Any) -> dict[str, Any]:
        """A deployment of one gateway and alice's worker, which runs."""
        wanted = Deployment(
            name=TenantId("alice"),
            pools=(
                PoolSpec(pool_id=PoolId("gateways"), role=Role.GATEWAY, desired=DesiredCounts(running=1)),
                PoolSpec(pool_id=PoolId("workers"), role=Role.CAPABILITY_OPENCLAW),
            ),
            users=(UserSpec(user_id=UserId("alice"), pool_id=PoolId("workers"), telegram=("111",)),),
        )
        return await self.call("ApplyDeployment", deployment=wanted.model_dump(mode="json"), secrets=SECRETS, **params)

    async def worker(self) -> dict[str, Any]:
        (found,) = (await self.call("InstanceList", tenant_id="alice", pool_id="workers"))["instances"]
        return dict(found)

    async def address(self) -> str:
        worker = await self.worker()
        return f"alice/workers/{worker['instance_id']}"


@contextlib.asynccontextmanager
async def opened_agent() -> AsyncIterator[Agent]:
    """An agent with state of its own, which is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))  # short enough for sockets
    locations = Locations(
        state_dir=directory / "s",
        run_dir=directory / "r",
        programs_dir=directory / "p",
        secrets_dir=directory / "r/secrets",
        secrets_in_memory=False,
        runtime="instant",
        production=False,
        log_level="info",
        autostart=False,
    )
    for path in (locations.state_dir, locations.run_dir, locations.secrets_dir):
        path.mkdir(mode=0o700, parents=True)
    runtime = InstantRuntime()
    try:
        async with open_host(locations, {"instant": runtime}, environment={}) as host:
            server = ApiServer(REQUESTS, host)
            await server.start(locations.socket)
            try:
                yield Agent(host, runtime, AgentClient(locations.socket))
            finally:
                await server.close()
                for tenant in list(host.catalog.tenants):
                    await host.tenants.destroy(tenant, actor="test")
    finally:
        shutil.rmtree(directory)
