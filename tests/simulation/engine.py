"""The reconcile engine over a simulated host."""

from __future__ import annotations

from tests.simulation.world import World

from mvm.host.desired_store import DesiredStore
from mvm.host.gateways import Gateways
from mvm.host.pairing import Pairing
from mvm.host.pools import Pools
from mvm.host.progress import Progress
from mvm.host.reconcile import Reconciler
from mvm.host.reconcile_apply import Executor, Images
from mvm.host.refreshes import Refreshes
from mvm.host.removals import Removals
from mvm.host.retries import Retries
from mvm.host.secrets import SecretStore
from mvm.host.tenants import Tenants
from mvm.host.users import Users
from mvm.model.entities import Instance, Pool
from mvm.security.vault import Vault


class TwoImages:
    """Stands for the images: each build gives a new revision, and there is a way back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.built = 0

    async def build(self, pool: Pool, *, actor: str, progress: Progress) -> Pool:
        self.built += 1
        return await self._give(pool, f"revision-{self.built}", (pool.revision, *pool.previous_revisions))

    async def roll_back(self, pool: Pool, *, actor: str, reason: str) -> Pool | None:
        if not pool.previous_revisions:
            return None
        return await self._give(pool, pool.previous_revisions[0], pool.previous_revisions[1:])

    async def _give(self, pool: Pool, revision: str, before: tuple[str, ...]) -> Pool:
        changed = pool.model_copy(update={"revision": revision, "previous_revisions": before})
        return await self._world.catalog.save_pool(changed)


async def _no_words(instance: Instance) -> str | None:
    return None


def engine(world: World, *, images: Images | None = None) -> Reconciler:
    """A reconciler for the agent that runs now; made anew after each `restart_agent`."""
    clock, catalog, lifecycle = world.time.clock(), world.catalog, world.lifecycle
    gateways, removals = Gateways(catalog), Removals(world.store, clock)
    secrets = SecretStore(world.store, Vault.load(world.directory / "secrets.key"), clock)
    refreshes = Refreshes(catalog, lifecycle, gateways, world.chronicle)
    users = Users(
        catalog=catalog,
        gateways=gateways,
        operations=lifecycle,
        refreshes=refreshes,
        removals=removals,
        secrets=secrets,
        chronicle=world.chronicle,
        clock=clock,
    )
    pools = Pools(
        catalog=catalog,
        operations=lifecycle,
        quotas=world.quotas,
        refreshes=refreshes,
        removals=removals,
        chronicle=world.chronicle,
        clock=clock,
    )
    tenants = Tenants(
        catalog=catalog,
        store=world.store,
        operations=lifecycle,
        quotas=world.quotas,
        gateways=gateways,
        users=users,
        pairing=Pairing(world.store, gateways, users, world.chronicle, clock),
        secrets=secrets,
        refreshes=refreshes,
        removals=removals,
        chronicle=world.chronicle,
        clock=clock,
        host_networks=dict,
    )
    return Reconciler(
        catalog=catalog,
        executor=Executor(
            catalog=catalog,
            tenants=tenants,
            pools=pools,
            users=users,
            operations=lifecycle,
            images=images,
            last_words=_no_words,
        ),
        is_busy=lifecycle.busy,
        is_idle=lambda instance: world.observer.observe(instance).idle,
        secrets=secrets,
        removals=removals,
        desired=DesiredStore(catalog, world.store),
        retries=Retries(clock),
        chronicle=world.chronicle,
        clock=clock,
    )
