"""What ties a running instance to this agent: its host port, and the watch over its process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from mvm.model.entities import Instance, ProcessIdentity
from mvm.model.ids import InstanceId, InstanceRef
from mvm.runtime.base import HOST_PORT, Handler, Machine, Runtime
from mvm.wire.relaying import RELAY_PORT


@dataclass
class _Attachment:
    servers: list[asyncio.AbstractServer] = field(default_factory=list)
    watcher: asyncio.Task[None] | None = None


class Attachments:
    """Host ports and process watchers of the instances that have a process."""

    def __init__(
        self,
        handler_for: Callable[[InstanceRef], Handler],
        *,
        relay_for: Callable[[InstanceRef], Handler] | None = None,
    ) -> None:
        """Who serves an instance's host port, and its relay port where it has no network of its own."""
        self._handler_for = handler_for
        self._relay_for = relay_for
        self._attached: dict[InstanceId, _Attachment] = {}
        self.ended: asyncio.Queue[InstanceRef] = asyncio.Queue()
        """Instances whose process ended while it was being watched, in the order they were noticed."""

    async def listen(self, instance: Instance, runtime: Runtime, machine: Machine) -> None:
        """Listen on the instance's host port, so that its first words find somebody. Idempotent."""
        attachment = self._attached.setdefault(instance.instance_id, _Attachment())
        if not attachment.servers:
            attachment.servers.append(await runtime.listen(machine, HOST_PORT, self._handler_for(instance.ref)))
            if runtime.capabilities.relayed and self._relay_for is not None:
                attachment.servers.append(await runtime.listen(machine, RELAY_PORT, self._relay_for(instance.ref)))

    def watch(self, instance: Instance, runtime: Runtime, machine: Machine) -> None:
        """Notice the end of the instance's process. Replaces an earlier watch."""
        assert instance.process is not None
        attachment = self._attached.setdefault(instance.instance_id, _Attachment())
        if attachment.watcher is not None:
            attachment.watcher.cancel()
        attachment.watcher = asyncio.create_task(
            self._wait_for_end(instance.ref, runtime, instance.process), name=f"watch {instance.ref}"
        )

    async def _wait_for_end(self, ref: InstanceRef, runtime: Runtime, process: ProcessIdentity) -> None:
        await runtime.wait(process)
        self.ended.put_nowait(ref)

    async def detach(self, instance: InstanceId) -> None:
        """Stop watching and listening: what happens to the process now is intended. Idempotent."""
        attachment = self._attached.pop(instance, None)
        if attachment is None:
            return
        if attachment.watcher is not None:
            attachment.watcher.cancel()
            await asyncio.gather(attachment.watcher, return_exceptions=True)
        for server in attachment.servers:
            server.close()

    async def close(self) -> None:
        """Let go of every instance; they go on running."""
        for instance in list(self._attached):
            await self.detach(instance)
