"""Fresh config and secrets drives for an instance: before each start and wake, and whenever something changed.

Version numbers grow when the content changes and only then, over restarts of the agent too, so that a guest (and the
lifecycle) can tell by them whether there is anything new. They are kept here, not in the instance: what an instance's
record holds is what its guest has seen.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from pydantic import Field, TypeAdapter

from mvm.drives.content import CONFIG_FILE_MODE, SECRET_FILE_MODE, write_tree
from mvm.host.catalog import Catalog
from mvm.host.configuration import DriveContents, Picture, render_drives
from mvm.host.documents import parsed_or
from mvm.host.gateways import Gateways
from mvm.host.secrets import Cipher, SecretStore
from mvm.model.base import Frozen
from mvm.model.entities import Instance, User
from mvm.model.errors import Conflict, MvmError
from mvm.model.ids import InstanceId
from mvm.model.roles import Role
from mvm.runtime.base import GuestLayout, Machine
from mvm.store.base import Store


class _Prepared(Frozen):
    """What was last written for an instance."""

    config_digest: str = ""
    config_version: int = 0
    sealed_secrets_digest: str = ""
    secrets_epoch: int = 0
    layout: dict[str, str | int | None] = Field(default_factory=dict)
    guest_ip: str = ""


class DrivePreparer:
    """Writes the content of an instance's drives from the catalog and the secret store."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: Store,
        secrets: SecretStore,
        cipher: Cipher,
        gateways: Gateways,
        dns: Callable[[Instance], tuple[str, ...]] = lambda _: (),
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._secrets = secrets
        self._cipher = cipher
        self._gateways = gateways
        self._dns = dns
        self._prepared: dict[InstanceId, _Prepared] = {}
        self.on_gateway_moved: Callable[[Instance], None] = lambda _: None
        """Told of a gateway that gets another address than last time: its workers that run must hear of it."""

    async def prepare(self, instance: Instance, machine: Machine, layout: GuestLayout | None) -> Instance:
        """Write both drives; returns the instance with the numbers of what is on them now (not saved).

        `layout` None means the one of the last start: the instance runs. Raises `InvalidInput` when its OpenClaw cannot
        be configured with what there is, `MvmError` when a drive cannot be written; nothing is half-written then.
        """
        before = await self._last(instance)
        if layout is None:
            layout = _layout_of(before, instance)
        contents = render_drives(await self._picture(instance, layout))
        after = await self._number(instance, layout, contents, before)
        await asyncio.to_thread(_write, machine, contents, after)
        if after != before:
            # Not durable: after a power cut nothing runs, and a number too many costs one look at equal content.
            await self._store.put(_key(instance.instance_id), after.model_dump(mode="json"), durable=False)
            self._prepared[instance.instance_id] = after
        if instance.role is Role.GATEWAY and before.guest_ip != after.guest_ip:
            self.on_gateway_moved(instance)
        return instance.model_copy(
            update={"secrets_epoch": after.secrets_epoch, "config_version": after.config_version}
        )

    async def forget(self, instance: Instance) -> None:
        """The instance is gone: forget its numbers and its token. Idempotent."""
        await self._store.delete(_key(instance.instance_id))
        self._prepared.pop(instance.instance_id, None)
        await self._secrets.forget_instance(instance)

    async def _picture(self, instance: Instance, layout: GuestLayout) -> Picture:
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        served = self._gateways.users_served_by(instance.tenant_id) if pool.role is Role.GATEWAY else []
        return Picture(
            tenant=self._catalog.tenant(instance.tenant_id),
            pool=pool,
            instance=instance,
            layout=layout,
            gateway=self._gateways.gateway_of(instance.tenant_id),
            secrets=await self._secrets.visible(instance, pool),
            served=served,
            worker_tokens=await self._secrets.openclaw_tokens(self._workers_of(served)),
            dns=self._dns(instance),
        )

    def _workers_of(self, users: list[User]) -> list[Instance]:
        return [
            worker
            for user in users
            if user.instance_id is not None and (worker := self._catalog.instances.get(user.instance_id)) is not None
        ]

    async def _number(
        self, instance: Instance, layout: GuestLayout, contents: DriveContents, before: _Prepared
    ) -> _Prepared:
        """The next numbers: each grows when its content is not what was written last."""
        context = _key(instance.instance_id)
        config_digest, secrets_digest = contents.config_digest, contents.secrets_digest
        sealed, epoch = before.sealed_secrets_digest, before.secrets_epoch
        if self._opened(sealed, context) != secrets_digest:
            # The digest of a short secret could be guessed from; at rest it is sealed like the secrets themselves.
            sealed = self._cipher.seal(secrets_digest, context=context)
            epoch = max(epoch + 1, await self._secrets.epoch(instance.tenant_id))
        return _Prepared(
            config_digest=config_digest,
            config_version=before.config_version + (config_digest != before.config_digest),
            sealed_secrets_digest=sealed,
            secrets_epoch=epoch,
            layout=dataclasses.asdict(layout),
            guest_ip=instance.network.guest_ip,
        )

    def _opened(self, sealed: str, context: str) -> str | None:
        """The digest that was written last; None when there is none, or its key was lost: then it counts as another."""
        try:
            return self._cipher.open(sealed, context=context) if sealed else None
        except MvmError:
            return None

    async def _last(self, instance: Instance) -> _Prepared:
        if instance.instance_id not in self._prepared:
            document = await self._store.get(_key(instance.instance_id))
            self._prepared[instance.instance_id] = parsed_or(_Prepared, document, _Prepared())
        return self._prepared[instance.instance_id]


def _layout_of(prepared: _Prepared, instance: Instance) -> GuestLayout:
    if not prepared.layout:
        raise Conflict(
            f"the drives of {instance.ref} were never prepared", hint=f"start it: `mvm instance start {instance.ref}`"
        )
    return TypeAdapter(GuestLayout).validate_python(prepared.layout)


def _write(machine: Machine, contents: DriveContents, numbers: _Prepared) -> None:
    """Secrets first: whoever sees a new configuration finds the secrets that it names."""
    write_tree(machine.secrets, contents.secrets, file_mode=SECRET_FILE_MODE)
    files = contents.config_files(config_version=numbers.config_version, secrets_epoch=numbers.secrets_epoch)
    write_tree(machine.config, files, file_mode=CONFIG_FILE_MODE)


def _key(instance: InstanceId) -> str:
    return f"drives/{instance}"
