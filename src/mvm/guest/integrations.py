"""Integrations: what has to be saved before the guest sleeps and brought back after it wakes.

Each has a checkpoint command, whose output is kept as `/data/integrations/<name>/checkpoint`, and a restore command,
which gets that as its input; both run in `/data/integrations/<name>/state`. One that does not run here succeeds with an
empty state. One that is critical decides whether the guest may sleep.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mvm.guest import commands, users
from mvm.guest.config import Integration
from mvm.guest.paths import GuestPaths, real, write_atomically
from mvm.guest.services import OPENCLAW, Programs
from mvm.wire.messages import CheckpointResult, IntegrationFailure, IntegrationPhase, IntegrationState

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 16 * 1024 * 1024
MAX_FILES = 100_000
MAX_STDERR = 500
CONTROL_COMMAND = "openclaw-ctl"
"""First word of a command that this zipapp itself answers (`mvm.guest.openclaw_ctl`)."""


class IntegrationError(Exception):
    """A checkpoint or restore that failed; the text says how."""


class SavesIntegrations(Protocol):
    """Whoever does for the agent what `Integrations` does."""

    def configure(self, integrations: Sequence[Integration]) -> None: ...

    async def checkpoint(self, names: Sequence[str], seconds: float) -> CheckpointResult: ...

    async def restore(self, seconds: float, *, patience: float) -> dict[str, str]: ...

    async def status(self) -> tuple[IntegrationState, ...]: ...

    async def close(self) -> None: ...


class Integrations:
    """The integrations of one guest and what state each is in."""

    def __init__(self, paths: GuestPaths, programs: Programs, on_event: Callable[[str, str], None]) -> None:
        """`on_event(kind, detail)` hears of each failure."""
        self._paths = paths
        self._programs = programs
        self._on_event = on_event
        self._restoring: asyncio.Task[dict[str, str]] | None = None
        self._known: dict[str, Integration] = {}
        self._phase: dict[str, IntegrationPhase | IntegrationFailure] = {}

    def configure(self, integrations: Sequence[Integration]) -> None:
        """Take over the integrations of a changed configuration."""
        self._known = {integration.name: integration for integration in integrations}

    async def checkpoint(self, names: Sequence[str], seconds: float) -> CheckpointResult:
        """Checkpoint the named integrations at the same time, each within `seconds`.

        `success` is false when a critical one failed; `failed` names every one that did.
        """
        if self._restoring is not None:
            await asyncio.wait([self._restoring])
        wanted = [self._known[name] for name in dict.fromkeys(names) if name in self._known]
        reasons = await self._each(wanted, self._checkpoint, seconds)
        failed = tuple(sorted(reasons))
        return CheckpointResult(
            success=not any(self._known[name].critical for name in failed),
            failed=failed,
            detail=describe(reasons),
        )

    async def restore(self, seconds: float, *, patience: float) -> dict[str, str]:
        """Restore what was checkpointed and is not active again, each within `seconds`; failures with their reasons.

        What takes longer than `patience` goes on by itself; its state is `pending` until then.
        """
        if self._restoring is None or self._restoring.done():
            wanted = [integration for integration in self._known.values() if self._paused(integration.name).exists()]
            if not wanted:
                return {}
            self._restoring = asyncio.create_task(self._each(wanted, self._restore, seconds), name="restore")
        done, _ = await asyncio.wait([self._restoring], timeout=patience)
        return self._restoring.result() if done else {}

    async def close(self) -> None:
        """End what is still being restored."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)

    async def status(self) -> tuple[IntegrationState, ...]:
        """State of every integration that is configured."""
        return await asyncio.to_thread(lambda: tuple(self._state(name) for name in self._known))

    async def _each(
        self,
        wanted: Sequence[Integration],
        step: Callable[[Integration, float], Awaitable[None]],
        seconds: float,
    ) -> dict[str, str]:
        reasons: dict[str, str] = {}

        async def one(integration: Integration) -> None:
            name = integration.name
            self._phase[name] = IntegrationPhase.PENDING
            try:
                await step(integration, seconds)
            except (IntegrationError, OSError) as error:
                reasons[name] = str(error)
                self._phase[name] = IntegrationFailure(error=str(error))
                log.warning("integration %s: %s", name, error)
                self._on_event("IntegrationFailed", f"{name}: {error}")
            except BaseException:
                self._phase.pop(name, None)
                raise
            else:
                self._phase.pop(name, None)

        await asyncio.gather(*(one(integration) for integration in wanted))
        return reasons

    async def _checkpoint(self, integration: Integration, seconds: float) -> None:
        name = integration.name
        self._make_directories(name)
        state = b""
        if integration.checkpoint_cmd:
            state = await self._run(integration, integration.checkpoint_cmd, b"", seconds)
        write_atomically(self._checkpoint_file(name), state)
        self._paused(name).touch(mode=0o600)

    async def _restore(self, integration: Integration, seconds: float) -> None:
        name = integration.name
        if integration.restore_cmd:
            try:
                state = self._checkpoint_file(name).read_bytes()
            except FileNotFoundError:
                state = b""
            self._make_directories(name)
            await self._run(integration, integration.restore_cmd, state, seconds)
        self._paused(name).unlink(missing_ok=True)

    async def _run(self, integration: Integration, argv: Sequence[str], stdin: bytes, seconds: float) -> bytes:
        if argv[0] == CONTROL_COMMAND:
            argv = self._programs.guest(*argv)
        directory = real(self._state_directory(integration.name))
        try:
            outcome = await commands.run(
                argv,
                environment={
                    **commands.own_environment(),
                    "HOME": real(self._paths.home),
                    "MVM_INTEGRATION": integration.name,
                    "MVM_INTEGRATION_STATE": directory,
                },
                directory=directory,
                stdin=stdin,
                seconds=seconds,
                keep_bytes=MAX_CHECKPOINT_BYTES,
                confinement=OPENCLAW.confinement if self._paths.owns_machine else None,
            )
        except commands.CommandError as error:
            raise IntegrationError(str(error)) from error
        if outcome.timed_out:
            raise IntegrationError(f"{argv[0]!r} did not end within {seconds:g} s")
        if outcome.status != 0:
            said = outcome.stderr[-MAX_STDERR:].decode(errors="replace").strip()
            raise IntegrationError(f"{argv[0]!r} ended with status {outcome.status}{': ' + said if said else ''}")
        if outcome.truncated:
            raise IntegrationError(f"the checkpoint is larger than {MAX_CHECKPOINT_BYTES} bytes")
        return outcome.stdout

    def _state(self, name: str) -> IntegrationState:
        phase = self._phase.get(name)
        if phase is None:
            phase = IntegrationPhase.PAUSED if self._paused(name).exists() else IntegrationPhase.ACTIVE
        checkpoint = self._checkpoint_file(name)
        try:
            at = datetime.fromtimestamp(int(checkpoint.stat().st_mtime), UTC)
        except OSError:
            at = None
        size = size_of(self._state_directory(name)) + size_of(checkpoint)
        return IntegrationState(name=name, status=phase, last_checkpoint_at=at, state_size_bytes=size)

    def _make_directories(self, name: str) -> None:
        """In a machine of its own an integration's commands run as OpenClaw does, whose only `state` is."""
        state = self._state_directory(name)
        state.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        if self._paths.owns_machine:
            users.Access(mode=0o700, owner=users.OPENCLAW, group=users.OPENCLAW).give(state)

    def _state_directory(self, name: str) -> Path:
        return self._paths.integration(name) / "state"

    def _checkpoint_file(self, name: str) -> Path:
        return self._paths.integration(name) / "checkpoint"

    def _paused(self, name: str) -> Path:
        """Exists from a checkpoint to the restore after it, also across a reboot."""
        return self._paths.integration(name) / "paused"


def describe(reasons: Mapping[str, str]) -> str | None:
    """Failures as one line; None when there are none."""
    return "; ".join(f"{name}: {reasons[name]}" for name in sorted(reasons)) or None


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files under a directory (at most `MAX_FILES` of them are counted)."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    total = count = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
            count += 1
            if count >= MAX_FILES:
                return total
    return total
