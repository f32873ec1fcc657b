"""The template `openclaw` of `mvm new openclaw NAME`: one gateway, and a private worker for each user."""

from __future__ import annotations

from mvm.model import ids
from mvm.model.entities import OPENCLAW_POLICY, OPENCLAW_QUOTAS, DesiredCounts, PoolSpec
from mvm.model.roles import Role
from mvm.model.template import Template

GATEWAYS = ids.PoolId("gateways")
WORKERS = ids.PoolId("workers")

OPENCLAW = Template(
    name="openclaw",
    quotas=OPENCLAW_QUOTAS,
    pools=(
        PoolSpec(
            pool_id=GATEWAYS,
            role=Role.GATEWAY,
            vcpus=2,
            mem_mib=1024,
            desired=DesiredCounts(running=1),
            runtime_policy=OPENCLAW_POLICY,
        ),
        PoolSpec(
            pool_id=WORKERS,
            role=Role.CAPABILITY_OPENCLAW,
            vcpus=2,
            mem_mib=2048,
            data_disk_mib=2048,
            runtime_policy=OPENCLAW_POLICY,
        ),
    ),
)
"""Sizes: OpenClaw needs 2 GiB to work in (facts/OPENCLAW.md, section 1); a gateway's runs no turns and gets half."""
