"""Machines for tests of the QEMU runtime without a QEMU."""

from __future__ import annotations

from pathlib import Path

from mvm.model.ids import InstanceRef, instance_id, pool_id, tenant_id
from mvm.model.roles import Role
from mvm.runtime.base import Machine


def machine(base: Path, **changes: object) -> Machine:
    """A small worker whose directories exist."""
    run, state = base / "r", base / "s"
    given: dict[str, object] = {
        "ref": InstanceRef(tenant_id("alice"), pool_id("workers"), instance_id("i-0a0b0c0d")),
        "role": Role.WORKER,
        "vcpus": 1,
        "mem_mib": 64,
        "guest_ip": "10.240.1.3",
        "gateway_ip": "10.240.1.1",
        "prefix": 24,
        "mac": "02:fc:00:01:00:03",
        "tap": "tn1i3",
        "state_dir": state,
        "run_dir": run,
        "data": state / "data",
        "secrets": base / "k/i-0a0b0c0d",
        "config": run / "config",
        **changes,
    }
    found = Machine(**given)  # type: ignore[arg-type]
    for directory in (found.state_dir, found.run_dir, found.data, found.secrets, found.config):
        directory.mkdir(parents=True, exist_ok=True)
    return found
