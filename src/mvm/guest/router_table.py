"""Who is served by whom: the router's view of `routes.json` and `users.json`, always up to date.

`routes.json` decides (it is the gateway's grant): a peer without a route is a stranger. `users.json` tells whose worker
a route's target is. Both are looked at again whenever they change; a broken file leaves the last good table in force.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mvm.wire.routing import RouteTable, Target
from mvm.wire.schema import INSTANCE_ID, NAME, PEER, WORKER_KEY, ListOf, MessageError, Nullable, Record

log = logging.getLogger(__name__)

DELIVERY_PORT = 18789
"""Where a worker's forwarder listens unless the route names another port (CONTRACT 11)."""
MAX_USERS = 4096
MAX_PEERS = 64


@dataclass(frozen=True, kw_only=True)
class UserEntry:
    """One line of `users.json`."""

    worker_key: Annotated[str, WORKER_KEY]
    tenant_id: Annotated[str, NAME]
    user_id: Annotated[str, NAME]
    pool_id: Annotated[str, NAME]
    instance_id: Annotated[str | None, Nullable(INSTANCE_ID)]
    peers: Annotated[tuple[str, ...], ListOf(PEER, MAX_PEERS)]


@dataclass(frozen=True, kw_only=True)
class UsersFile:
    """`users.json`."""

    users: Annotated[tuple[UserEntry, ...], ListOf(Record(UserEntry), MAX_USERS)]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A person's worker."""

    key: str
    user_id: str
    tenant_id: str
    pool_id: str
    instance_id: str
    port: int
    """Where its forwarder listens."""
    peers: tuple[str, ...]
    """Every address that this person writes from, as `channel:sender`."""
    granted: bool
    """Whether a route leads to it; only then may it be woken from here."""

    @property
    def reply_peer(self) -> str | None:
        """Where this person is told what nobody asked for: Telegram first, else Discord."""
        return min(self.peers, key=lambda peer: not peer.startswith("telegram:"), default=None)


Stamp = tuple[int, int, int] | None


class RouterTable:
    """Looks peers and worker keys up; reads its two files anew when they change."""

    def __init__(
        self,
        *,
        routes: Path,
        users: Path,
        tenant_id: str,
        on_problem: Callable[[str], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`tenant_id` is the gateway's own tenant, meant where a route names none."""
        self._routes_path = routes
        self._users_path = users
        self._tenant_id = tenant_id
        self._on_problem = on_problem
        self._on_change = on_change
        self._stamps: tuple[Stamp, Stamp] | None = None
        self._routes = RouteTable()
        self._workers: dict[str, Worker] = {}

    def for_peer(self, peer: str) -> Worker | None:
        """The worker of the person who writes from there; None for a stranger."""
        self._refresh()
        route = self._routes.match(peer=peer)
        if route is None:
            return None
        target = route.target
        candidates = [worker for worker in self._workers.values() if self._leads_to(target, worker)]
        if target.instance_id is None:
            candidates = [worker for worker in candidates if peer in worker.peers]
        if not candidates:
            log.warning("route %s leads to no user of users.json", route.name)
            return None
        return candidates[0]

    def for_key(self, key: str) -> Worker | None:
        """The worker of that key, whether or not a route leads to it."""
        self._refresh()
        return self._workers.get(key)

    def reload(self) -> None:
        """Read both files again even if they look unchanged."""
        self._stamps = None
        self._refresh()

    def _leads_to(self, target: Target, worker: Worker) -> bool:
        return (
            worker.tenant_id == (target.tenant_id or self._tenant_id)
            and worker.pool_id == target.pool_id
            and target.instance_id in (None, worker.instance_id)
        )

    def _refresh(self) -> None:
        stamps = (_stamp(self._routes_path), _stamp(self._users_path))
        if stamps == self._stamps:
            return
        first = self._stamps is None and not self._workers
        self._stamps = stamps
        if first and stamps == (None, None):
            return  # nobody is served by this gateway yet
        try:
            routes = RouteTable.parse(json.loads(self._routes_path.read_bytes()))
            users = Record(UsersFile).parse(json.loads(self._users_path.read_bytes()), "")
        except (OSError, ValueError, RecursionError, MessageError) as error:
            problem = f"routes.json or users.json cannot be used, the last good table stays in force: {error}"
            log.error("%s", problem)
            self._on_problem(problem)
            return
        self._routes = routes
        self._workers = {entry.worker_key: self._worker(entry) for entry in users.users if entry.instance_id}
        self._on_change()

    def _worker(self, entry: UserEntry) -> Worker:
        assert entry.instance_id is not None
        worker = Worker(
            key=entry.worker_key,
            user_id=entry.user_id,
            tenant_id=entry.tenant_id,
            pool_id=entry.pool_id,
            instance_id=entry.instance_id,
            port=DELIVERY_PORT,
            peers=entry.peers,
            granted=False,
        )
        targets = [route.target for route in self._routes.routes if self._leads_to(route.target, worker)]
        ports = [target.target_port for target in targets if target.target_port is not None]
        return Worker(**{**vars(worker), "granted": bool(targets), "port": ports[0] if ports else DELIVERY_PORT})


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
