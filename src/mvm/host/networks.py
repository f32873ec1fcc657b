"""The networks of this host's tenants: kept as the catalog says (CONTRACT 11).

Bridges and rules cover every instance whether it runs or not, so a wake finds them in place: `ready` then costs two
questions to the kernel. They are renewed when tenants, pools, users or the places of instances change, and every half
minute when somebody else has changed them. A host without instances that need them is left alone altogether.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

import structlog

from mvm.host.catalog import Catalog
from mvm.host.gateways import Gateways
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance
from mvm.model.errors import Conflict, InvalidInput, MvmError, Unavailable
from mvm.model.ids import TenantId
from mvm.network import devices, doors, taps
from mvm.network.apply import Rules, nft, owner_of_rules
from mvm.network.claim import Claim
from mvm.network.picture import Guest, Picture, Resolvers, builder_of, draw
from mvm.network.resolvers import read_resolvers
from mvm.network.rules import render

log = structlog.get_logger(__name__)

LOOK_SECONDS = 30.0
"""How often devices, rules and the host's resolvers are looked at."""
_FOUND = "host/network"
"""Document that holds the settings of the host as they were found."""


class Networks:
    """Bridges and rules of this host's tenants."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        runtimes: Runtimes,
        gateways: Gateways,
        owner: str,
        resolvers: Callable[[], Resolvers] = read_resolvers,
    ) -> None:
        """`owner` names this agent in the rules: its state directory."""
        self._catalog = catalog
        self._runtimes = runtimes
        self._gateways = gateways
        self._owner = owner
        self._read_resolvers = resolvers
        self._resolvers = Resolvers()
        self._claim = Claim()
        self._rules = Rules()
        self._doors_due = True
        """The rules of other programs have to be looked at."""
        self._lock = asyncio.Lock()
        self._wanted = 0
        """Grows with every change of what the picture is drawn from."""
        self._reached = -1
        self._picture = Picture()
        self._reason: str | None = "not started"
        self._building: set[TenantId] = set()
        """For whom an image is built in a machine now."""
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find out what this host allows, put in place what its instances need, and keep it so until `close`."""
        self._resolvers = await asyncio.to_thread(self._read_resolvers)
        self._reason = await what_is_missing()
        self._catalog.watchers.append(self._instance_changed)
        self._catalog.scene_watchers.append(self._scene_changed)
        try:
            await self.changed()
        except MvmError as error:
            log.warning("the networks of tenants are not in place", reason=error.message)
        self._keeper = asyncio.create_task(self._keep(), name="networks")

    async def close(self) -> None:
        """Stop keeping them. Bridges and rules stay: machines run on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._catalog.watchers.remove(self._instance_changed)
            self._catalog.scene_watchers.remove(self._scene_changed)
        self._claim.release()

    def usable(self) -> tuple[bool, str]:
        """Whether this host's tenants can have networks of their own, and why not."""
        if self._reason is None and not self._claim.held:
            try:
                self._claim.take()
            except Conflict as error:
                return False, error.message
            self._claim.release()
        return self._reason is None, self._reason or "bridges and rules can be made"

    def dns(self, instance: Instance) -> tuple[str, ...]:
        """Resolvers that an instance is told of."""
        return self.resolvers_behind(instance.network.gateway_ip)

    def resolvers_behind(self, gateway_ip: str) -> tuple[str, ...]:
        """Resolvers that a machine with that gateway is told of."""
        return self._resolvers.for_guest(gateway_ip)

    async def ready(self, instance: Instance) -> None:
        """Return when the instance's TAP may be made: its bridge is there and the rules know it.

        A matter of microseconds when nothing has changed. Raises `MvmError` when that cannot be had: it must not start.
        """
        if not self._has_network(instance):
            return
        if self._reached != self._wanted or not self._in_place(instance):
            await self.changed()
        if not self._in_place(instance):
            raise Unavailable(
                f"the network of {instance.ref} is not in place", hint="`mvm doctor` says what is missing"
            )

    async def admit_builder(self, tenant_id: TenantId) -> None:
        """Give the machine that an image is built in its place in a tenant's network. Raises `MvmError`."""
        self._building.add(tenant_id)
        self._scene_changed()
        await self.changed()

    async def dismiss_builder(self, tenant_id: TenantId) -> None:
        """That machine is gone. What could not be removed goes at a later look."""
        self._building.discard(tenant_id)
        self._scene_changed()
        try:
            await self.changed()
        except MvmError as error:
            log.warning("the network of a build could not be removed", tenant=tenant_id, reason=error.message)

    async def changed(self) -> None:
        """Have bridges and rules follow the catalog as it is now; returns when they do. Raises `MvmError`."""
        async with self._lock:
            reached = self._wanted
            picture = self._draw()
            if picture.guests or self._claim.held:
                await self._apply(picture)
            self._reached = reached

    async def tenant_removed(self, tenant_id: TenantId) -> None:
        """Remove what a tenant that is gone had. Idempotent; what could not be removed goes at a later look."""
        try:
            await self.changed()
        except MvmError as error:
            log.warning("the network of a tenant could not be removed", tenant=tenant_id, reason=error.message)

    @property
    def picture(self) -> Picture:
        """What is in place now."""
        return self._picture

    def place_of(self, instance: Instance) -> Guest | None:
        """The instance's place in its tenant's network; None when it has none (yet)."""
        return self._picture.guest_at.get(instance.network.guest_ip) if self._has_network(instance) else None

    async def inspect(self) -> list[tuple[str, bool, str]]:
        """What is checked of the host's part: what, whether it is so, and what was found."""
        if not self._picture.guests:
            return []
        bridges = [bridge.name for bridge in self._picture.bridges]
        missing = [name for name in bridges if not devices.bridge_is_there(name)]
        settings = devices.host_settings()
        wrong = [f"{name} is {value}" for name, value in settings.items() if value != devices.HOST[name]]
        open_ports = await asyncio.to_thread(devices.ports_not_isolated)
        drops = await doors.foreign_drops()
        intact = await self._rules.intact()
        return [
            ("mvm's rules", intact, "untouched" if intact else "changed by somebody else"),
            ("bridges of tenants", not missing, f"no {', '.join(missing)}" if missing else f"{len(bridges)} there"),
            ("settings of the kernel", not wrong, ", ".join(wrong) or "as needed"),
            ("ports of machines", not open_ports, f"{', '.join(open_ports)} see others" if open_ports else "isolated"),
            (
                "rules of other programs",
                not drops,
                f"{', '.join(drops)} drop what is forwarded" if drops else "let pass",
            ),
        ]

    async def strays(self) -> tuple[str, ...]:
        """Devices of tenants that nobody uses and no instance here needs; none that another agent may want."""
        async with self._lock:
            held = self._claim.held
            try:
                self._claim.take()
            except Conflict:
                return ()
            try:
                if self._reason is not None or await owner_of_rules() not in (None, self._owner):
                    return ()
                unused = await asyncio.to_thread(devices.devices_without_users)
            finally:
                if not held:
                    self._claim.release()
        # A TAP is of a process that holds it; a bridge stays while there are instances, running or asleep.
        needed = {bridge.name for bridge in self._draw().bridges}
        starting = {i.network.tap for i in self._catalog.instances.values() if i.transition is not None}
        starting |= {builder_of(self._catalog.tenants[t]).tap for t in self._building if t in self._catalog.tenants}
        return tuple(name for name in unused if name not in needed | starting)

    async def remove_strays(self, names: tuple[str, ...]) -> None:
        """Remove such devices."""
        async with self._lock:
            await asyncio.to_thread(devices.remove_devices, names)

    def _draw(self) -> Picture:
        return draw(
            self._catalog.tenants,
            self._catalog.pools,
            [i for i in self._catalog.instances.values() if self._has_network(i)],
            serving=lambda tenant: s.tenant_id if (s := self._gateways.serving_tenant(tenant)) else None,
            granted=self._gateways.granted,
            resolvers=self._resolvers,
            building=self._building,
        )

    async def _apply(self, picture: Picture) -> None:
        if self._reason is not None:
            raise Unavailable(f"tenants cannot have networks here: {self._reason}", hint="`mvm doctor` says more")
        began = time.perf_counter()
        if not self._claim.held:
            await self._take_over()
        if not picture.guests:
            return await self._remove()
        # Rules before the bridges that they are for, so that no bridge is there without them.
        # Somebody's change of any rules may have been that of Docker's, and taken away the way through them.
        self._doors_due |= not self._rules.surely_intact()
        renewed = await self._rules.put(render(picture, owner=self._owner))
        made = await asyncio.to_thread(devices.make_bridges, picture)
        if (before := devices.host_settings()) != devices.HOST:
            if await self._catalog.store.get(_FOUND) is None:
                await self._catalog.store.put(_FOUND, before)
            devices.set_host()
        opened = (self._doors_due or renewed or made) and await doors.open_docker()
        if opened:
            await self._rules.settle()
        self._doors_due = False
        if renewed or made or opened:
            log.info(
                "networks of tenants renewed",
                tenants=len(picture.bridges),
                instances=len(picture.guests),
                milliseconds=round((time.perf_counter() - began) * 1000, 1),
            )
        self._picture = picture

    async def _take_over(self) -> None:
        """Become the one who keeps this host's networks, unless machines of another agent are connected to them."""
        self._claim.take()
        owner = await owner_of_rules()
        if owner not in (None, self._owner) and (used := await asyncio.to_thread(devices.bridges_with_ports)):
            self._claim.release()
            raise Conflict(
                f"machines of the agent of '{owner}' run on {', '.join(used)}",
                hint="end those machines first: two agents cannot keep one host's networks",
            )

    async def _remove(self) -> None:
        """Leave the host as it was found."""
        await asyncio.to_thread(devices.remove_bridges)
        await self._rules.remove()
        await doors.close_docker()
        if (found := await self._catalog.store.get(_FOUND)) is not None:
            # Others who forward as well, and may have come later, have rules of their own for it.
            if isinstance(found.value, dict) and not await doors.others_forward():
                devices.set_host({name: str(value) for name, value in found.value.items() if name in devices.HOST})
            await self._catalog.store.delete(_FOUND)
        self._picture = Picture()
        self._claim.release()

    def _has_network(self, instance: Instance) -> bool:
        try:
            return self._runtimes.of(instance).capabilities.networks
        except InvalidInput:  # of a runtime that this agent does not have
            return False

    def _in_place(self, instance: Instance) -> bool:
        name = self._picture.bridge_of.get(instance.network.guest_ip)
        return name is not None and devices.bridge_is_there(name) and self._rules.surely_intact()

    # Keeping

    def _scene_changed(self) -> None:
        self._wanted += 1
        self._changed.set()

    def _instance_changed(self, before: Instance | None, after: Instance | None) -> None:
        if before is None or after is None or _place(before) != _place(after):
            self._scene_changed()

    async def _keep(self) -> None:
        while True:
            # Not `wait_for`, which (in 3.11) forgets that it was cancelled when what it waits for is there by then.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                self._resolvers = await asyncio.to_thread(self._read_resolvers)
                await self.changed()
            except MvmError as error:
                log.warning("the networks of tenants are not in place", reason=error.message)
            except Exception:
                log.exception("the networks of tenants could not be looked at")


def _place(instance: Instance) -> object:
    return instance.network, instance.runtime, instance.user


async def what_is_missing() -> str | None:
    """Why tenants cannot have networks here, found out by asking the parts; None when they can."""
    if not os.access(taps.TUN_DEVICE, os.R_OK | os.W_OK):
        return f"{taps.TUN_DEVICE} is missing or may not be opened"
    try:
        await nft("--check", "-f", "-", text=render(Picture(), owner="probe"))
    except MvmError as error:
        return error.message
    return None
