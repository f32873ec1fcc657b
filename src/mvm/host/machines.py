"""Directories of an instance on this host, and the `Machine` that a runtime is given."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from mvm.drives.table import data_disk_mib
from mvm.host.private_directories import make_private
from mvm.model import addresses
from mvm.model.entities import Instance, Pool, TenantNetwork
from mvm.model.ids import InstanceId, InstanceRef
from mvm.runtime.base import Limits, Machine


@dataclass(frozen=True, kw_only=True)
class InstanceDirectories:
    """Where the files of instances are. Everything is mode 0700: an instance's files are its tenant's secrets."""

    state_dir: Path
    """Kept over reboots: data drives, snapshots."""
    run_dir: Path
    """Sockets, pid files; must be short (Unix socket paths)."""
    secrets_dir: Path
    """Memory-backed where the host has such a place."""
    own_uids: bool = False
    """Machines may run under a user id of their own each: the agent is root."""

    @property
    def images(self) -> Path:
        """Where image revisions are, each under its digest."""
        return self.state_dir / "images"

    def state(self, instance: InstanceId) -> Path:
        return self.state_dir / "instances" / instance

    def run(self, instance: InstanceId) -> Path:
        return self.run_dir / "i" / instance

    def secrets(self, instance: InstanceId) -> Path:
        return self.secrets_dir / instance

    def machine(self, instance: Instance, pool: Pool, network: TenantNetwork, environment: dict[str, str]) -> Machine:
        """What a runtime is given for this instance. Pure: `prepare` makes the directories."""
        net_id, octet = network.tenant_net_id, instance.network.host_octet
        state, run = self.state(instance.instance_id), self.run(instance.instance_id)
        return Machine(
            ref=instance.ref,
            role=instance.role,
            vcpus=pool.vcpus,
            mem_mib=pool.mem_mib,
            guest_ip=instance.network.guest_ip,
            gateway_ip=instance.network.gateway_ip,
            prefix=instance.network.prefix,
            mac=instance.network.mac,
            tap=instance.network.tap,
            state_dir=state,
            run_dir=run,
            data=state / "data",
            secrets=self.secrets(instance.instance_id),
            config=run / "config",
            image=self.images / instance.image_revision if instance.image_revision else None,
            data_mib=data_disk_mib(pool.data_disk_mib),
            bridge=addresses.bridge_name(net_id),
            closed=pool.egress == "none",
            limits=Limits(
                disk_mib=pool.disk_mib_per_second,
                disk_ops=pool.disk_ops_per_second,
                network_mib=pool.network_mib_per_second,
            ),
            uid=addresses.instance_uid(net_id, octet) if self.own_uids and octet else None,
            environment=environment,
        )

    def prepare(self, machine: Machine) -> None:
        """Make the directories of an instance. Idempotent. Raises `Refused` when the place of secrets is not ours."""
        for directory in (machine.state_dir, machine.run_dir, machine.data, machine.config):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        while True:
            make_private(self.secrets_dir)
            with contextlib.suppress(FileNotFoundError):  # the last other instance went to sleep just now
                machine.secrets.mkdir(mode=0o700, exist_ok=True)
                return

    def remove_secrets(self, ref: InstanceRef) -> None:
        """Remove the content of the secrets drive; a sleeping or stopped instance holds none."""
        shutil.rmtree(self.secrets(ref.instance_id), ignore_errors=True)
        for image in self.secrets_dir.glob(f"{ref.instance_id}.*"):  # what a machine reads them from
            image.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of the last one only: nothing stays in memory when nobody runs
            self.secrets_dir.rmdir()

    def remove(self, ref: InstanceRef) -> None:
        """Remove every file of an instance. Idempotent."""
        self.remove_secrets(ref)
        for directory in (self.run(ref.instance_id), self.state(ref.instance_id)):
            shutil.rmtree(directory, ignore_errors=False) if directory.exists() else None


def base_id(key: str) -> InstanceId:
    """The id of the machine of nobody's that a base with this key is made from."""
    return InstanceId(f"i-{hashlib.sha256(key.encode()).hexdigest()[:8]}")
