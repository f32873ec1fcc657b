"""QEMU's monitor, by the library `qemu.qmp`: one short connection per piece of work, every wait bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError
from qemu.qmp.protocol import ConnectError

from mvm.model.errors import MvmError, TimedOut, Unavailable

COMMAND_SECONDS = 10.0
CONNECT_SECONDS = 10.0
MIGRATION_SECONDS = 120.0
"""A device state is 60 kB; what takes longer waits for a disk."""
DISCONNECT_SECONDS = 1.0
SHARED_MEMORY = "x-ignore-shared"
"""Migration capability: memory that is a shared file stays in that file."""

# The library logs each refused command and lost connection at levels that would alarm; both are said here as errors.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class MonitorClosed(Unavailable):
    """QEMU hung up: it has ended."""


class Monitor:
    """One open connection."""

    def __init__(self, client: QMPClient, who: str) -> None:
        self._client = client
        self._who = who

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = COMMAND_SECONDS
    ) -> Any:
        """What QEMU answers. Raises `MvmError` when it refuses, `MonitorClosed` when it ends, `TimedOut`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._client.execute(command, dict(arguments) if arguments else None)
        except TimeoutError:
            raise TimedOut(f"the QEMU of {self._who} did not answer to {command} within {seconds:g} s") from None
        except ExecuteError as error:
            raise MvmError(f"the QEMU of {self._who} refuses {command}: {error}") from error
        except (QMPError, OSError) as error:
            raise MonitorClosed(f"the QEMU of {self._who} ended at {command}") from error

    async def status(self) -> str:
        """Its run state: `running`, `paused`, `postmigrate`, `inmigrate`, ..."""
        answer = await self.execute("query-status")
        return str(answer["status"])

    async def waits_for_devices(self) -> bool:
        """True for a QEMU that was started to load what nobody has told it to load yet."""
        if await self.status() != "inmigrate":
            return False
        return not (await self.execute("query-migrate")).get("status")

    async def save_devices(self, descriptor: int) -> None:
        """Write the state of all devices of a stopped guest to an open file; its memory stays in its own file."""
        await self._prepare_migration()
        await self._pass(descriptor)
        with self._migrations() as listener:
            await self.execute("migrate", {"uri": "fd:snapshot"})
            await self._completed(listener)

    async def load_devices(self, descriptor: int) -> None:
        """Load what `save_devices` wrote into a QEMU that waits for it; the guest then stands still."""
        await self._prepare_migration()
        await self._pass(descriptor)
        with self._migrations() as listener:
            await self.execute("migrate-incoming", {"uri": "fd:snapshot"})
            await self._completed(listener)

    async def _prepare_migration(self) -> None:
        wanted = [{"capability": name, "state": True} for name in (SHARED_MEMORY, "events")]
        await self.execute("migrate-set-capabilities", {"capabilities": wanted})

    async def _pass(self, descriptor: int) -> None:
        """Give QEMU an open file under the name `snapshot`."""
        self._client.send_fd_scm(descriptor)
        await self.execute("getfd", {"fdname": "snapshot"})

    def _migrations(self) -> Any:
        return self._client.listener("MIGRATION")

    async def _completed(self, listener: EventListener) -> None:
        """Return when the migration is over. Raises `MvmError` when it failed."""
        closed = asyncio.create_task(self._closed())
        event = asyncio.create_task(self._end_of(listener))
        try:
            async with asyncio.timeout(MIGRATION_SECONDS):
                await asyncio.wait((closed, event), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise TimedOut(f"the QEMU of {self._who} needs more than {MIGRATION_SECONDS:g} s for a snapshot") from None
        finally:
            closed.cancel()
            event.cancel()
            await asyncio.gather(closed, event, return_exceptions=True)
        if event.cancelled():
            raise MonitorClosed(f"the QEMU of {self._who} ended at a snapshot")
        if event.result() != "completed":
            said = await self.execute("query-migrate")
            raise MvmError(f"the snapshot of {self._who} failed: {said.get('error-desc') or event.result()}")

    async def _end_of(self, listener: EventListener) -> str:
        while True:
            event = await listener.get()
            data = event.get("data")
            status = str(data["status"]) if isinstance(data, dict) else ""
            if status in ("completed", "failed", "cancelled"):
                return status

    async def _closed(self) -> None:
        with suppress(QMPError, OSError, EOFError):
            while self._client.runstate.name == "RUNNING":
                await self._client.runstate_changed()


@asynccontextmanager
async def open_monitor(path: Path, *, who: str, seconds: float = CONNECT_SECONDS) -> AsyncIterator[Monitor]:
    """Connect, and hang up at the end of the block. Another connection meanwhile waits for its turn.

    Raises `MonitorClosed` when nobody is there, `TimedOut` when QEMU does not greet within `seconds`.
    """
    client = QMPClient(who)
    try:
        async with asyncio.timeout(seconds):
            await client.connect(str(path))
    except TimeoutError:
        raise TimedOut(f"the QEMU of {who} does not answer on '{path}' within {seconds:g} s") from None
    except ConnectError as error:
        raise MonitorClosed(f"the QEMU of {who} does not answer on '{path}'") from error
    except (QMPError, OSError) as error:
        raise MonitorClosed(f"the QEMU of {who} hung up: {error}") from error
    try:
        yield Monitor(client, who)
    finally:
        with suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(DISCONNECT_SECONDS):
                await client.disconnect()
