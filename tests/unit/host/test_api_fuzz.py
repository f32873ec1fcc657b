"""Whatever is asked of the agent, it answers; what it refuses as wrong has changed nothing; it is never at fault."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tests.unit.host.live_agent import Agent

from mvm.host.api_requests import REQUESTS
from mvm.model.errors import InvalidInput, MvmError

# Those that end the agent, wait for minutes, or build an image from the network.
NAMES = sorted(REQUESTS.keys() - {"Shutdown", "DeploymentReady", "PoolBuild"})
REQUESTS_EACH = 200
IDS = ["alice", "bob", "workers", "gateways", "x", "", "ALICE", "a/b", "../x", "a" * 64, "mvm-host"]
SCALARS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    101,
    4095,
    2**63 - 1,
    1.5,
    "",
    "\0",
    "é\n",
    "zstd",
    "internet",
    "host:80",
    "x/Y",
    *IDS,
]


class Asker:
    """Makes up requests that are nearly right, or not at all."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def request(self) -> tuple[str, dict[str, Any]]:
        name = self._chance.choice(NAMES)
        fields = REQUESTS[name].params.model_fields
        params = {field: self._field(field) for field in fields if field == "follow" or self._chance.random() < 0.85}
        if self._chance.random() < 0.05:
            params["more"] = self._anything()
        return name, params

    def _anything(self, depth: int = 0) -> Any:
        kind = self._chance.random() if depth < 2 else 1.0
        if kind < 0.15:
            return [self._anything(depth + 1) for _ in range(self._chance.randrange(3))]
        if kind < 0.3:
            return {
                str(self._chance.choice(SCALARS)): self._anything(depth + 1) for _ in range(self._chance.randrange(3))
            }
        return self._chance.choice(SCALARS)

    def _field(self, field: str) -> Any:
        pick = self._chance.choice
        if field != "follow" and self._chance.random() < 0.15:
            return self._anything()
        match field:
            case "follow":
                return False
            case "tenant_id":
                return pick(["alice"] * 8 + IDS)
            case "pool_id" | "user_id":
                return pick(["workers", "gateways", "alice", "bob"] * 3 + IDS)
            case "instance_id":
                return pick(["i-00000000", "HERE"])
            case "address":
                return pick(
                    ["alice", "alice/workers", "alice/workers/i-00000000", "alice/workers/HERE", "//", "a/b/c/d"]
                )
            case "secrets":
                return {pick(["x/Y", "anthropic/ANTHROPIC_API_KEY", "", "x"]): pick(["v", "", "a\nb", "\0"])}
            case "quotas":
                return {pick(["max_running", "max_pools", "nonsense"]): pick([0, 5, -1, None])}
            case "telegram" | "discord":
                return [pick(["1", "111", "x"])]
            case "settings":
                return {
                    pick(["mem_mib", "vcpus", "egress", "pinned", "role"]): pick(
                        [0, 2, 1536, True, "none", ["internet"]]
                    )
                }
            case "pool":
                return {"tenant_id": "alice", "pool_id": pick(IDS), "role": pick(["worker", "gateway", "x"])}
            case "deployment":
                pools = [{"pool_id": pick(IDS), "role": pick(["worker", "gateway", "capability-openclaw"])}]
                return {
                    "name": pick(["alice", "bob"]),
                    "pools": pools,
                    "users": pick([[], [{"user_id": "u", "pool_id": "x"}]]),
                }
            case "desired":
                pool = {"pool_id": pick(["workers", "new"]), "role": pick(["worker", "capability-openclaw"])}
                tenant = {"tenant_id": pick(["alice", "bob"]), "pools": [pool]}
                return {"schema_version": pick([1, 1, 2]), "node_id": "local", "tenants": [tenant]}
        return self._anything()


async def stored(agent: Agent) -> list[Any]:
    return [(document.key, document.value) for document in await agent.host.catalog.store.list("")]


@pytest.mark.parametrize("seed", range(2))
async def test_no_request_is_a_defect_and_what_is_refused_as_wrong_changed_nothing(agent: Agent, seed: int) -> None:
    asker = Asker(seed)
    defects, half_done, answered = [], [], 0
    for _ in range(REQUESTS_EACH):
        workers = [i for i in agent.host.catalog.instances.values() if i.pool_id == "workers"]
        name, params = asker.request()
        written = json.dumps(params).replace("HERE", workers[0].instance_id if workers else "i-00000001")
        if "alice" not in agent.host.catalog.tenants:
            await agent.deploy()
        before = await stored(agent)
        try:
            await agent.call(name, **json.loads(written))
            answered += 1
        except InvalidInput as error:
            if await stored(agent) != before:
                half_done.append(f"{name} {written}: {error.message}")
        except MvmError as error:
            if error.code == 500:
                defects.append(f"{name} {written}: {error.message}")
    assert (defects, half_done) == ([], [])
    assert answered > REQUESTS_EACH / 10, "not everything is nonsense"
    assert (await agent.call("NodeInfo"))["hostname"]


@pytest.mark.parametrize("value", ["half a character: \ud800", float("nan"), 10**30, "x" * (1 << 21)])
async def test_what_no_message_can_hold_is_refused_before_it_is_sent(agent: Agent, value: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be sent to the agent"):
        await agent.call("TenantInfo", tenant_id=value)
