"""Backup of a whole tenant into one sealed file, and its way back: config, users, pools, secrets and data drives.

An instance is at rest while its drive is read (slept, or stopped when it is a gateway) and locked, so that nobody wakes
it in between; then it comes back as it was. A backup is read to its end and checked before an import creates anything,
and an import that fails takes back what it created.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from mvm.host.archives import VERSION, ArchivedInstance, ArchiveWriter, Manifest, drive_of, read_manifest, unpack
from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.lifecycle import Lifecycle
from mvm.host.pools import Pools
from mvm.host.progress import Progress, silent
from mvm.host.runtimes import Runtimes
from mvm.host.secrets import SecretStore
from mvm.host.tenants import TenantChanges, Tenants
from mvm.host.users import Users
from mvm.host.version import own_version
from mvm.model.entities import DesiredCounts, Instance
from mvm.model.errors import Conflict, MvmError, Refused
from mvm.model.ids import InstanceId, TenantId
from mvm.model.roles import Role
from mvm.model.states import State

log = structlog.get_logger(__name__)

REST_TRIES = 5
REST_PAUSE_SECONDS = 2.0
"""Between attempts to bring an instance to rest that works for somebody just now."""


@dataclass(frozen=True)
class Outcome:
    """What an export or import did."""

    tenant_id: TenantId
    instances: int
    notes: tuple[str, ...] = ()


class Backups:
    """Exports and imports tenants."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        lifecycle: Lifecycle,
        runtimes: Runtimes,
        tenants: Tenants,
        pools: Pools,
        users: Users,
        secrets: SecretStore,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._runtimes = runtimes
        self._tenants = tenants
        self._pools = pools
        self._users = users
        self._secrets = secrets
        self._chronicle = chronicle
        self._clock = clock
        self._exporting: set[TenantId] = set()

    # Export

    async def export(
        self, tenant_id: TenantId, path: Path, passphrase: str, *, actor: str, progress: Progress = silent
    ) -> Outcome:
        """Write a tenant into the file `path`. Every instance is back where it was when this returns or raises.

        Raises `Refused` when an instance works for somebody all the time; the file is then of no use to anybody.
        """
        self._catalog.tenant(tenant_id)
        if tenant_id in self._exporting:
            raise Conflict(f"tenant {tenant_id!r} is being exported already", hint="wait for it to end")
        self._exporting.add(tenant_id)
        try:
            return await self._export(tenant_id, path, passphrase, actor=actor, progress=progress)
        finally:
            self._exporting.discard(tenant_id)

    async def _export(
        self, tenant_id: TenantId, path: Path, passphrase: str, *, actor: str, progress: Progress
    ) -> Outcome:
        instances = self._catalog.instances_of(tenant_id)
        writer = await asyncio.to_thread(ArchiveWriter, path, passphrase)
        notes: list[str] = []
        try:
            await asyncio.to_thread(writer.manifest, await self._manifest(tenant_id, instances))
            for number, instance in enumerate(instances, 1):
                progress(f"saving {instance.ref}", done=number, total=len(instances))
                async with self._at_rest(instance, notes, actor=actor):
                    state_dir = self._lifecycle.machine(instance).state_dir
                    await asyncio.to_thread(writer.drive, instance.instance_id, state_dir)
            await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abandon()
            raise
        self._chronicle.record_tenant(
            tenant_id, AuditAction.TENANT_EXPORTED, actor=actor, detail=f"{len(instances)} instances"
        )
        return Outcome(tenant_id, len(instances), tuple(notes))

    async def _manifest(self, tenant_id: TenantId, instances: list[Instance]) -> Manifest:
        return Manifest(
            version=VERSION,
            made_at=self._clock.now().isoformat(),
            made_by=own_version(),
            tenant=self._catalog.tenant(tenant_id),
            pools=tuple(pool.spec for pool in self._catalog.pools_of(tenant_id)),
            users=tuple(self._catalog.users_of(tenant_id)),
            instances=tuple(
                ArchivedInstance(
                    instance_id=instance.instance_id,
                    pool_id=instance.pool_id,
                    user=instance.user,
                    runtime=instance.runtime,
                    drive=drive_of(self._lifecycle.machine(instance).state_dir),
                    held=instance.held,
                    was_up=instance.state.has_process,
                    next_alarm_at=instance.next_alarm_at and instance.next_alarm_at.isoformat(),
                )
                for instance in instances
            ),
            secrets=await self._secrets.reveal(tenant_id),
        )

    @contextlib.asynccontextmanager
    async def _at_rest(self, instance: Instance, notes: list[str], *, actor: str) -> AsyncIterator[None]:
        """Hold an instance locked and without a process during the block, and bring it back after it."""
        ref = instance.ref
        was_up = instance.state.has_process
        try:
            for tries_left in reversed(range(REST_TRIES)):
                if self._catalog.instance(ref).state.has_process:
                    was_up = True
                    await self._lay_down(instance, tries_left, actor=actor)
                async with self._lifecycle.locked(ref):
                    if not self._catalog.instance(ref).state.has_process:
                        yield
                        return
            raise Refused(f"{ref} is woken again and again: it cannot be saved now", hint="try again later")
        finally:
            if was_up:
                try:
                    await self._lifecycle.start(ref, actor=actor, unless_held=True)
                except MvmError as error:
                    log.warning("an instance does not come back after its export", instance=str(ref))
                    notes.append(f"{ref} did not come back: {error.message}")

    async def _lay_down(self, instance: Instance, tries_left: int, *, actor: str) -> None:
        # Policy would bring an always-on gateway back at its next look.
        await self._lifecycle.leave_alone(instance.ref)
        try:
            if instance.role is Role.GATEWAY:
                await self._lifecycle.stop(instance.ref, actor=actor, hold=False)
            else:
                await self._lifecycle.sleep(instance.ref, actor=actor, force=True)
        except (Refused, Conflict):
            if not tries_left:
                raise
            await asyncio.sleep(REST_PAUSE_SECONDS)

    # Import

    async def restore(
        self,
        path: Path,
        passphrase: str,
        *,
        name: TenantId | None = None,
        start: bool = True,
        actor: str,
        progress: Progress = silent,
    ) -> Outcome:
        """Make a tenant again from a backup, under its own name or another one.

        It gets a network of its own (net ids are never reused), and its instances keep their ids where these are free.
        Raises before anything is created when the backup is not in order, the name is taken or the runtime is another.
        """
        progress("checking the backup")
        manifest = await asyncio.to_thread(read_manifest, path, passphrase)
        tenant_id = name or manifest.tenant.tenant_id
        if tenant_id in self._catalog.tenants:
            raise Conflict(
                f"tenant {tenant_id!r} exists already",
                hint=f"`mvm tenant destroy {tenant_id}` makes room for the backup, with all that came after it;"
                " --as NAME imports it under another name",
            )
        await self._require_runtime(manifest)
        await self._tenants.require_own_bots(tenant_id, manifest.secrets, remedy=_without_its_bot)
        before = manifest.tenant
        await self._tenants.create(
            tenant_id,
            changes=TenantChanges(
                quotas=before.quotas,
                gateway_tenant=before.gateway_tenant,
                accepts=before.accepts,
                openclaw=before.openclaw,
            ),
            template=before.template,
            actor=actor,
        )
        try:
            instances = await self._fill(
                tenant_id, manifest, path, passphrase, actor=actor, progress=progress, hold_gateways=not start
            )
        except BaseException:
            await self._tenants.destroy(tenant_id, actor=actor)
            raise
        self._chronicle.record_tenant(
            tenant_id, AuditAction.TENANT_IMPORTED, actor=actor, detail=f"of {manifest.made_at}, by {manifest.made_by}"
        )
        notes = await self._start_gateways(tenant_id, actor=actor, progress=progress) if start else ()
        return Outcome(tenant_id, len(instances), notes)

    async def _require_runtime(self, manifest: Manifest) -> None:
        """An image fits machines of their own only, a directory processes only."""
        runtime = (await self._runtimes.choose()).runtime
        wanted = "image" if runtime.capabilities.images else "directory"
        for instance in manifest.instances:
            if instance.drive not in (wanted, "none"):
                raise Conflict(
                    f"the backup is of instances of the runtime {instance.runtime}, whose data "
                    f"the runtime {runtime.name} of this host cannot read",
                    hint=f"set MVM_RUNTIME={instance.runtime}, or import it on a host that has that runtime",
                )

    async def _fill(
        self,
        tenant_id: TenantId,
        manifest: Manifest,
        path: Path,
        passphrase: str,
        *,
        actor: str,
        progress: Progress,
        hold_gateways: bool,
    ) -> dict[InstanceId, Instance]:
        """Everything of a tenant but its record; returns archived id -> instance."""
        for spec in manifest.pools:
            # What a pool should have is said when it has its instances: until then nobody may make others.
            await self._pools.create(tenant_id, spec.model_copy(update={"desired": DesiredCounts()}), actor=actor)
        if manifest.secrets:
            await self._tenants.set_secrets(tenant_id, manifest.secrets, actor=actor)
        instances = {
            archived.instance_id: await self._lifecycle.create_instance(
                tenant_id, archived.pool_id, user=archived.user, actor=actor, wanted_id=archived.instance_id
            )
            for archived in manifest.instances
        }
        progress("unpacking the data drives")
        places = {archived: self._lifecycle.machine(instance).state_dir for archived, instance in instances.items()}
        for place in places.values():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(unpack, path, passphrase, places)
        for archived in manifest.instances:
            instance = instances[archived.instance_id]
            held = archived.held or (hold_gateways and instance.role is Role.GATEWAY)
            await self._has_run_before(instance, archived, held=held)
        for user in manifest.users:
            await self._users.add(
                tenant_id,
                user.user_id,
                telegram=user.telegram,
                discord=user.discord,
                pool_id=user.pool_id,
                budget=user.budget,
                actor=actor,
            )
        for spec in manifest.pools:
            await self._pools.update(tenant_id, spec, actor=actor)
        return instances

    async def _has_run_before(self, instance: Instance, archived: ArchivedInstance, *, held: bool) -> None:
        """It is stopped, with data: a message or its alarm boots it, unless it is held."""
        alarm = archived.next_alarm_at
        async with self._lifecycle.locked(instance.ref):
            latest = self._catalog.instance(instance.ref)
            changes = {
                "state": State.STOPPED,
                "held": held,
                "next_alarm_at": alarm and datetime.fromisoformat(alarm),
            }
            await self._catalog.save_instance(latest.model_copy(update=changes))

    async def _start_gateways(self, tenant_id: TenantId, *, actor: str, progress: Progress) -> tuple[str, ...]:
        notes = []
        for instance in self._catalog.instances_of(tenant_id):
            if instance.role is Role.GATEWAY and not instance.held:
                progress(f"starting {instance.ref}")
                try:
                    await self._lifecycle.start(instance.ref, actor=actor, unless_held=True)
                except MvmError as error:
                    notes.append(f"{instance.ref} does not start: {error.message}")
        return tuple(notes)


def _without_its_bot(owner: TenantId, token: str) -> str:
    """What to do about a copy whose original is still here: the bot leaves the one before it comes with the other."""
    return (
        f"destroy the original first, with all that came after the backup: `mvm tenant destroy {owner}`; or give it"
        f" another bot: `mvm tenant secrets set {owner} --file {token}=FILE`; then import again"
    )
