"""Looking into an instance: logs, use of resources, a command. All of it is bounded and free of known secrets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
from pathlib import Path
from typing import Any

import structlog

from mvm.guest import logfiles
from mvm.host.catalog import Catalog
from mvm.host.channel_logins import SETTLE_SECONDS, ChannelRefused
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.guests import GuestRefused, Guests
from mvm.host.last_logs import directory_of
from mvm.host.lifecycle import Lifecycle
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, Refused
from mvm.model.ids import InstanceRef
from mvm.model.states import State
from mvm.telemetry.redaction import redact
from mvm.wire import messages

log = structlog.get_logger(__name__)

MAX_LINES = 5000
MAX_LOG_BYTES = 128 * 1024
"""Of each service's log that is read; an answer fits one frame of the API with room to spare."""
MAX_LOGS = 16
"""Logs that are read at once: a guest makes as many files as it likes."""
LAST_LINES = 60
"""How far back `last_words` looks."""
EXEC_MARGIN_SECONDS = 10.0
CONSOLE = "serial"
"""What a machine's kernel and init say, until its services have logs of their own."""
MACHINE = "machine"
"""What a runtime's own program says of the machine that it runs."""
_SERVICE = re.compile(r"[a-z][a-z0-9-]{0,30}")


class Inspection:
    """Reads what instances say; changes nothing."""

    def __init__(
        self,
        catalog: Catalog,
        lifecycle: Lifecycle,
        runtimes: Runtimes,
        guests: Guests,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._runtimes = runtimes
        self._guests = guests
        self._chronicle = chronicle
        self._clock = clock

    async def logs(self, ref: InstanceRef, *, service: str | None, lines: int) -> dict[str, str]:
        """The newest lines of each service's log: from the guest, or from its data when it does not run or answer."""
        if service is not None and not _SERVICE.fullmatch(service):
            raise InvalidInput(f"service {service[:80]!r} is not a name", hint="such as agent, router or openclaw")
        instance, lines = self._catalog.instance(ref), max(1, min(lines, MAX_LINES))
        if instance.state is State.RUNNING or instance.transition is not None:
            try:
                return await self._logs_of_guest(instance, service, lines)
            except MvmError:
                pass  # it does not answer: what it has written is all the more of interest
        found = await asyncio.to_thread(self._logs_on_host, instance, service, lines)
        if not found:
            raise await self._no_log(instance, service)
        return found

    async def _no_log(self, instance: Instance, service: str | None) -> NotFound:
        """There is no such log: which ones there are instead, or why there is none at all."""
        ref = instance.ref
        which = f"service {service!r} of {ref}" if service else str(ref)
        names = set(await asyncio.to_thread(self._logs_on_host, instance, None, 1))
        if service is not None and instance.state is State.RUNNING:
            with contextlib.suppress(MvmError):
                names |= set(await self._logs_of_guest(instance, None, 1))
        asleep = instance.state is State.SLEEPING and self._runtimes.of(instance).capabilities.images
        hint = f"they are in its machine: `mvm instance wake {ref}`" if asleep else "it may not have run yet"
        if names:
            hint = f"there are logs of: {', '.join(sorted(names))}"
        return NotFound(f"there is no log of {which} to be read", hint=hint)

    async def last_words(self, instance: Instance) -> str | None:
        """The line of OpenClaw's log that most likely says why it does not run; None when there is no log."""
        logs = await asyncio.to_thread(self._logs_on_host, instance, None, LAST_LINES)
        return telling_line(logs.get("openclaw") or logs.get("agent") or logs.get(CONSOLE) or logs.get(MACHINE) or "")

    async def require_login(self, instance: Instance) -> None:
        """Raise `ChannelRefused` when a channel has not let a gateway's OpenClaw in since it was started.

        One that has just started is given the moment in which its channels answer.
        """
        if instance.last_wake is None or instance.entered_running_at is None:
            return
        runtime, machine = self._runtimes.of(instance), self._lifecycle.machine(instance)
        try:
            while True:
                runs_for = (self._clock.now() - instance.entered_running_at).total_seconds()
                await self._guests.require_login(runtime, machine, since=instance.last_wake.began_at)
                if not 0 <= runs_for < SETTLE_SECONDS:
                    return
                await asyncio.sleep(SETTLE_SECONDS / 4)
        except ChannelRefused:
            raise
        except MvmError as error:
            log.debug("whether a channel lets it in is not known", instance=str(instance.ref), reason=error.message)

    def _logs_on_host(self, instance: Instance, service: str | None, lines: int) -> dict[str, str]:
        """What the host has of an instance's logs, and what its machine and that one's console said."""
        machine = self._lifecycle.machine(instance)
        found = read_logs(directory_of(machine), service, lines)
        for name in (CONSOLE, MACHINE):
            if service in (None, name) and (text := _tail(machine.state_dir / f"{name}.log")):
                found[name] = redact("\n".join(text.splitlines()[-lines:]))
        return found

    async def _logs_of_guest(self, instance: Instance, service: str | None, lines: int) -> dict[str, str]:
        answer = await self._guests.call(
            self._runtimes.of(instance),
            self._lifecycle.machine(instance),
            messages.Logs(service=service, lines=lines),
        )
        return {log.service: redact(log.text) for log in answer.logs}

    async def stats(self, ref: InstanceRef) -> dict[str, Any]:
        """What an instance uses, by its own word when it runs."""
        instance = self._catalog.instance(ref)
        if instance.state is not State.RUNNING:
            return {"instance": str(ref), "state": instance.state.value}
        answer = await self._guests.call(
            self._runtimes.of(instance), self._lifecycle.machine(instance), messages.Stats()
        )
        figures: dict[str, Any] = {
            "instance": str(ref),
            "state": instance.state.value,
            "uptime_seconds": round(answer.uptime_seconds, 1),
            "cpu_seconds": round(answer.cpu_seconds, 2),
            "memory_used_bytes": answer.memory_used_bytes,
            "memory_total_bytes": answer.memory_total_bytes,
            "disk_used_bytes": answer.disk_used_bytes,
            "disk_total_bytes": answer.disk_total_bytes,
        }
        for one in answer.services:
            figures[f"{one.service}_state"] = one.state
            figures[f"{one.service}_memory_bytes"] = one.memory_bytes
            figures[f"{one.service}_restarts"] = one.restarts
        return figures

    async def execute(
        self, ref: InstanceRef, argv: tuple[str, ...], *, timeout_seconds: int, actor: str
    ) -> dict[str, Any]:
        """Run a program in a running instance whose pool allows it."""
        instance = self._catalog.instance(ref)
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        if not pool.allow_exec:
            raise Refused(
                f"pool '{pool.tenant_id}/{pool.pool_id}' does not allow programs to be run in its instances",
                hint="allow_exec = true in its manifest allows it",
            )
        if instance.state is not State.RUNNING:
            verb = "start" if instance.state in (State.READY, State.STOPPED) else "wake"
            raise Conflict(f"{ref} is {instance.state}", hint=f"`mvm instance {verb} {ref}` lets it run")
        # The arguments are not told: a person may have put a secret there.
        self._chronicle.event(instance, "InstanceExec", actor=actor, detail=Path(argv[0]).name)
        try:
            answer = await self._guests.call(
                self._runtimes.of(instance),
                self._lifecycle.machine(instance),
                messages.Exec(argv=argv, timeout_secs=timeout_seconds),
                timeout=timeout_seconds + EXEC_MARGIN_SECONDS,
            )
        except GuestRefused as refusal:
            raise MvmError(
                f"{ref}: {refusal.words}",
                hint=f"`mvm instance exec {ref} -- ls /usr/bin` shows what there is; for a shell's words: sh -c '...'",
            ) from refusal
        return {
            "status": answer.status,
            "stdout": base64.b64encode(answer.stdout).decode(),
            "stderr": base64.b64encode(answer.stderr).decode(),
            "truncated": answer.truncated,
        }


def telling_line(log: str) -> str | None:
    """The last line that speaks of an error, else the last one; what the supervisor itself wrote does not count."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("mvm ")]
    errors = [line for line in lines if re.search(r"error|fail|invalid|refused", line, re.IGNORECASE)]
    return (errors or lines)[-1][:300] if lines else None


def read_logs(directory: Path, service: str | None, lines: int) -> dict[str, str]:
    """The newest lines of the logs in a directory that a guest writes to: its symbolic links are not followed."""
    names = (
        {path.stem for path in directory.glob("*.log")} if directory.is_dir() and not directory.is_symlink() else set()
    )
    found: dict[str, str] = {}
    for name in logfiles.unrepeated(names) if service is None else sorted(names & {service}):
        if len(found) == MAX_LOGS:
            break
        if _SERVICE.fullmatch(name) and (text := _tail(directory / f"{name}.log")) is not None:
            found[name] = redact("\n".join(text.splitlines()[-lines:]))
    return found


def _tail(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - MAX_LOG_BYTES))
        return file.read(MAX_LOG_BYTES).decode(errors="replace")
