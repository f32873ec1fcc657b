"""Audit per tenant: append-only JSON lines, each carrying the SHA-256 of the line before it (CONTRACT 16).

A line that is changed, removed or put in breaks the chain at a place that `verify` names. Lines that were cut off the
end are missed while this agent lives; over its restart they cannot be seen from the file alone: compare the last digest
(`Verdict.head`) with one kept elsewhere where that matters.
The chain goes on over rotation; when the oldest file is dropped, it begins at the oldest line that is left.

What is recorded is with the kernel when `record` returns and on the disk a second later (see `mvm.host.line_files`): an
audit line never waits for a disk, and no transition waits for an audit line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from mvm.host.line_files import LineFile, Syncer
from mvm.model.ids import InstanceId, PoolId, TenantId, tenant_id
from mvm.telemetry.printable import printable
from mvm.telemetry.redaction import redact
from mvm.wire.clock import format_timestamp

ROTATE_BYTES = 10 * 1024 * 1024
KEPT_FILES = 3
MAX_DETAIL = 4096
NO_LINE = "0" * 64
"""Stands for the digest of the line before the first."""


class AuditAction(StrEnum):
    """What can be in an audit."""

    INSTANCE_CREATED = "InstanceCreated"
    INSTANCE_STARTED = "InstanceStarted"
    INSTANCE_STOPPED = "InstanceStopped"
    INSTANCE_WARMED = "InstanceWarmed"
    INSTANCE_RESUMED = "InstanceResumed"
    INSTANCE_SLEPT = "InstanceSlept"
    INSTANCE_WOKEN = "InstanceWoken"
    INSTANCE_DESTROYED = "InstanceDestroyed"
    POOL_CREATED = "PoolCreated"
    POOL_UPDATED = "PoolUpdated"
    POOL_BUILT = "PoolBuilt"
    POOL_DESTROYED = "PoolDestroyed"
    TENANT_CREATED = "TenantCreated"
    TENANT_UPDATED = "TenantUpdated"
    TENANT_DESTROYED = "TenantDestroyed"
    QUOTA_EXCEEDED = "QuotaExceeded"
    SECRETS_SET = "SecretsSet"
    SECRETS_ROTATED = "SecretsRotated"
    SNAPSHOT_CREATED = "SnapshotCreated"
    SNAPSHOT_RESTORED = "SnapshotRestored"
    SNAPSHOT_DISCARDED = "SnapshotDiscarded"
    SNAPSHOT_REJECTED = "SnapshotRejected"
    TRANSITION_DEFERRED = "TransitionDeferred"
    MIN_RUNTIME_OVERRIDDEN = "MinRuntimeOverridden"
    WAKE_REQUESTED = "WakeRequested"
    WAKE_REFUSED = "WakeRefused"
    # Beyond CONTRACT 16: CONTRACT 6 wants pairing audited, a backup holds every secret, a repaired file says so itself.
    USER_ADDED = "UserAdded"
    USER_REMOVED = "UserRemoved"
    USER_PAIRED = "UserPaired"
    TENANT_EXPORTED = "TenantExported"
    TENANT_IMPORTED = "TenantImported"
    PAIRING_REQUESTED = "PairingRequested"
    AUDIT_REPAIRED = "AuditRepaired"


@dataclass(frozen=True)
class BrokenLine:
    """The first place where an audit is not what was written."""

    file: Path
    line: int
    """Counted from 1 in that file."""
    problem: str


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    lines: int
    """Lines that are in order, up to the broken one."""
    head: str
    """Digest of the last of them; of no line when there is none."""
    broken: BrokenLine | None = None

    @property
    def intact(self) -> bool:
        return self.broken is None


class _Chain:
    """A tenant's file and the digest of its last line."""

    def __init__(self, path: Path, now: datetime) -> None:
        self.file = LineFile(path, limit=ROTATE_BYTES, kept=KEPT_FILES, now=now)
        last = self.file.last_line()
        self.head = NO_LINE if last is None else _digest(last)
        self.missing = 0
        """Lines that could not be written since the last one that could."""


class AuditLog:
    """The audits of all tenants, in one directory (mode 0700). Usable from any thread; `close` when done."""

    def __init__(self, directory: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._chains: dict[TenantId, _Chain] = {}
        self._syncer = Syncer("mvm-audit")

    def record(
        self,
        tenant_id: TenantId,
        action: AuditAction,
        actor: str,
        *,
        pool_id: PoolId | None = None,
        instance_id: InstanceId | None = None,
        detail: str | None = None,
    ) -> None:
        """Append one line. Registered secrets are taken out of `actor` and `detail`, and a long detail is cut.

        Raises `OSError` when the file cannot be written; nothing of the line is then left in it, and the next one that
        can be written says before it how many are missing.
        """
        with self._lock:
            chain = self._chain(tenant_id)
            try:
                self._tell_missing(chain, tenant_id)
                self._append(chain, tenant_id, action, actor, pool_id, instance_id, detail)
            except OSError:
                chain.missing += 1
                raise

    def verify(self, tenant_id: TenantId) -> Verdict:
        """Read a tenant's audit from its oldest line and check the chain. Reads up to 40 MiB: call it in a thread."""
        with self._lock:
            chain = self._chain(tenant_id)
            files = _contents(chain)
            begun_here = not chain.file.has_dropped
            head = chain.head
        verdict = _verify(files, NO_LINE if begun_here else None)
        if verdict.intact and verdict.head != head:
            path, content = files[-1] if files else (chain.file.path, b"")
            return replace(verdict, broken=BrokenLine(path, content.count(b"\n") + 1, "lines were cut off the end"))
        return verdict

    def recent(
        self,
        tenant_id: TenantId,
        limit: int,
        *,
        actions: Container[AuditAction] | None = None,
        pool_id: PoolId | None = None,
        instance_id: InstanceId | None = None,
    ) -> list[dict[str, str]]:
        """The newest `limit` lines of those actions and of that pool or instance, oldest first.

        A tenant without an audit has none; a line that is not one of an audit is passed over. Reads as `verify` does.
        """
        with self._lock:
            if tenant_id not in self._chains and not self._path(tenant_id).exists():
                return []
            files = _contents(self._chain(tenant_id))
        wanted = {"pool_id": pool_id, "instance_id": instance_id}
        found: list[dict[str, str]] = []
        for record in _backwards(files):
            if len(found) == limit:
                break
            if actions is not None and record["action"] not in actions:
                continue
            if all(value is None or record.get(name) == value for name, value in wanted.items()):
                found.append({key: value for key, value in record.items() if key != "previous"})
        return found[::-1]

    def destroy(self, tenant_id: TenantId) -> None:
        """Remove every file of a tenant's audit. Idempotent; recording anything after it begins a new audit."""
        with self._lock:
            self._chain(tenant_id, repair=False).file.remove()
            self._chains.pop(tenant_id, None)

    async def flush(self) -> None:
        """Everything recorded so far is on the disk when this returns."""
        await asyncio.to_thread(self._syncer.flush)

    async def close(self) -> None:
        """Flush and end. Idempotent."""
        await asyncio.to_thread(self._syncer.close)

    def _chain(self, tenant: TenantId, *, repair: bool = True) -> _Chain:
        if tenant in self._chains:
            return self._chains[tenant]
        chain = _Chain(self._path(tenant), self._clock())
        self._chains[tenant] = chain
        if repair and (torn := chain.file.torn) is not None:
            detail = f"the last line was unfinished ({torn.size} bytes); it is kept as {torn.kept_as.name}"
            self._append(chain, tenant, AuditAction.AUDIT_REPAIRED, "mvm", None, None, detail)
        return chain

    def _tell_missing(self, chain: _Chain, tenant: TenantId) -> None:
        """An audit with a gap would verify as one without."""
        if chain.missing:
            detail = f"lines that could not be written before this one: {chain.missing} (the agent's log names them)"
            self._append(chain, tenant, AuditAction.AUDIT_REPAIRED, "mvm", None, None, detail)
            chain.missing = 0

    def _path(self, tenant: TenantId) -> Path:
        return self._directory / f"{tenant_id(tenant)}.jsonl"

    def _append(
        self,
        chain: _Chain,
        tenant: TenantId,
        action: AuditAction,
        actor: str,
        pool: PoolId | None,
        instance: InstanceId | None,
        detail: str | None,
    ) -> None:
        fields = {
            "timestamp": format_timestamp(self._clock()),
            "tenant_id": tenant,
            "pool_id": pool,
            "instance_id": instance,
            "action": str(action),
            "actor": printable(redact(actor)[:MAX_DETAIL]),
            "detail": None if detail is None else printable(redact(detail)[:MAX_DETAIL]),
            "previous": chain.head,
        }
        present = {key: value for key, value in fields.items() if value is not None}
        line = json.dumps(present, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        chain.file.append(line)
        chain.head = _digest(line)
        self._syncer.wrote(chain.file.path)


def _contents(chain: _Chain) -> list[tuple[Path, bytes]]:
    """The files of an audit, oldest first; the caller holds the lock, so that no rotation moves them meanwhile."""
    return [(path, path.read_bytes()) for path in chain.file.files()]


def _backwards(files: list[tuple[Path, bytes]]) -> Iterator[dict[str, str]]:
    """Every record that can be read, newest first."""
    for _, content in reversed(files):
        for line in reversed(content.splitlines()):
            try:
                record = json.loads(line)
                AuditAction(record["action"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            yield record


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _verify(files: list[tuple[Path, bytes]], head: str | None) -> Verdict:
    """Check a chain over its files, oldest first; `head` is the digest before them, None when it is not known."""
    count = 0
    for path, content in files:
        lines = content.split(b"\n")
        unfinished = lines.pop()
        for number, line in enumerate(lines, start=1):
            problem = _problem(line, head)
            if problem is not None:
                return Verdict(count, head or NO_LINE, BrokenLine(path, number, problem))
            head = _digest(line)
            count += 1
        if unfinished:
            return Verdict(count, head or NO_LINE, BrokenLine(path, len(lines) + 1, "the line is unfinished"))
    return Verdict(count, head or NO_LINE)


def _problem(line: bytes, head: str | None) -> str | None:
    """What is wrong with a line that follows the one with digest `head` (None: any)."""
    try:
        record = json.loads(line)
        previous, _ = record["previous"], AuditAction(record["action"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "this is not a line of an audit"
    if head is not None and previous != head:
        return "this line or the one before it was changed, or lines between them were removed or put in"
    return None
