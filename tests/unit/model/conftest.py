"""What the tests of the model share: a template, and manifests in a directory of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mvm.model.deployment import Deployment
from mvm.model.entities import OPENCLAW_POLICY, OPENCLAW_QUOTAS, DesiredCounts, PoolSpec
from mvm.model.manifest import load_deploy_toml, load_deployment_toml
from mvm.model.roles import Role
from mvm.model.template import Template

TEMPLATE = Template(
    name="openclaw",
    quotas=OPENCLAW_QUOTAS,
    pools=(
        PoolSpec(pool_id="gateways", role=Role.GATEWAY, flake="template", desired=DesiredCounts(running=1)),
        PoolSpec(
            pool_id="workers",
            role=Role.CAPABILITY_OPENCLAW,
            flake="template",
            mem_mib=2048,
            data_disk_mib=2048,
            runtime_policy=OPENCLAW_POLICY,
        ),
    ),
)

Load = Callable[[str], Deployment]


@pytest.fixture(scope="session")
def template() -> Template:
    """A template such as the real one."""
    return TEMPLATE


@pytest.fixture
def load_deploy(tmp_path: Path) -> Load:
    """Write a deploy.toml and load it as the deployment `alice`."""

    def load(text: str) -> Deployment:
        path = tmp_path / "deploy.toml"
        path.write_text(text)
        return load_deploy_toml(path, "alice", template=TEMPLATE)

    return load


@pytest.fixture
def load_deployment(tmp_path: Path) -> Load:
    """Write a deployment.toml and load it."""

    def load(text: str) -> Deployment:
        path = tmp_path / "deployment.toml"
        path.write_text(text)
        return load_deployment_toml(path)

    return load
