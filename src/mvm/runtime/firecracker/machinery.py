"""Starting machines in rooms of their own, talking to them, and ending them so that nothing is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from mvm.guest.processes import Identity
from mvm.model.errors import Refused, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime import bounded_log
from mvm.runtime.base import Machine
from mvm.runtime.firecracker import files, jail, launching, lineage
from mvm.runtime.firecracker.binaries import Binaries
from mvm.runtime.firecracker.channel import Channel
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.jail import ControlGroups, Jail
from mvm.runtime.firecracker.room import Room, furnished
from mvm.runtime.firecracker.taps import Taps, tap_name

if TYPE_CHECKING:
    from mvm.runtime.firecracker.client import Client

log = logging.getLogger(__name__)


class Machinery:
    """The Firecrackers of one agent."""

    def __init__(self, *, taps: Taps, jailed: bool) -> None:
        self._taps = taps
        self._jailed = jailed
        self._channels: dict[InstanceId, Channel] = {}
        self._turns: dict[InstanceId, asyncio.Lock] = {}

    @asynccontextmanager
    async def started(
        self, machine: Machine, places: Files, host: Binaries, furnish: Callable[[Room], None]
    ) -> AsyncIterator[tuple[Identity, Client]]:
        """A Firecracker that answers, in a room of its own. When the block fails nothing is left of it."""
        from mvm.runtime.firecracker.client import Client, Ended

        with launching.held(places.data):  # else somebody else's machine would be ended below
            try:
                with furnished(places.room_for(host.firecracker), uid=self.owner(machine), jailed=self._jailed) as room:
                    await asyncio.to_thread(furnish, room)
                    await asyncio.to_thread(self._taps.make, machine, tap_name(machine))
                    await self.channel(machine).begin(room.directory)
                    identity = await self._launch(machine, places, host, room)
                    async with Client(room.directory / files.API_SOCKET, who=str(machine.ref)) as client:
                        await client.wait_until_listening()
                        version, _ = await client.negotiate()
                        if version != host.version:
                            raise Unavailable(f"'{host.firecracker}' is Firecracker {version}, and was {host.version}")
                        yield identity, client
            except Ended as error:
                await asyncio.shield(self.end(machine, places))
                raise Unavailable(
                    f"the Firecracker of {machine.ref} ended: {_last_words(places)}", hint=f"see '{places.log}'"
                ) from error
            except BaseException:
                await asyncio.shield(self.end(machine, places))
                raise

    async def _launch(self, machine: Machine, places: Files, host: Binaries, room: Room) -> Identity:
        if not self._jailed:
            log.warning("%s runs WITHOUT JAILER: a guest that breaks out of its machine is this user", machine.ref)
            identity = launching.launch_bare(places, host.firecracker, room.directory)
            await asyncio.to_thread(
                launching.bound_bare, places, identity, vcpus=machine.vcpus, mem_mib=machine.mem_mib
            )
            return identity
        uid = self.owner(machine)
        assert uid is not None
        assert host.jailer is not None
        made = Jail(
            jailer=host.jailer,
            executable=host.firecracker,
            instance=machine.ref.instance_id,
            uid=uid,
            base=places.jail,
            groups=self.groups,
            vcpus=machine.vcpus,
            mem_mib=machine.mem_mib,
            largest_file_mib=max(machine.data_mib, -(-places.data.stat().st_size >> 20)),
        )
        return await launching.launch_jailed(places, made)

    @asynccontextmanager
    async def api(self, machine: Machine) -> AsyncIterator[tuple[Client, Room]]:
        """The API of a machine that is there, and its room; for one piece of work at a time."""
        from mvm.runtime.firecracker.client import Client

        directory = Files.of(machine).room
        if directory is None:
            raise Unavailable(f"{machine.ref} does not run")
        async with (
            self._turns.setdefault(machine.ref.instance_id, asyncio.Lock()),
            Client(directory / files.API_SOCKET, who=str(machine.ref)) as client,
        ):
            yield client, Room(directory, uid=self.owner(machine), jailed=self._jailed)

    async def end(self, machine: Machine, places: Files) -> None:
        """No process of the machine is left, nor its jail, its TAP and its control groups, nor what it went on from."""
        await launching.end_all(places, self.groups, who=str(machine.ref))
        await asyncio.to_thread(lineage.forget, places)
        await asyncio.to_thread(self._taps.remove, tap_name(machine))
        channel = self._channels.get(machine.ref.instance_id)
        if channel is not None:
            await channel.process_ended()

    def channel(self, machine: Machine) -> Channel:
        """The channel to its guest, which is there over all its processes."""
        found = self._channels.get(machine.ref.instance_id)
        if found is None:
            owner = machine.uid if self._jailed else None
            found = Channel(Files.of(machine), owner=owner, who=str(machine.ref))
            self._channels[machine.ref.instance_id] = found
        return found

    async def forget(self, machine: Machine) -> None:
        """There will be no more of this machine."""
        channel = self._channels.pop(machine.ref.instance_id, None)
        if channel is not None:
            await channel.close()
        self._turns.pop(machine.ref.instance_id, None)

    async def close(self) -> None:
        """Let go of all machines."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    @cached_property
    def groups(self) -> ControlGroups:
        """What control groups there are."""
        return jail.control_groups()

    def owner(self, machine: Machine) -> int | None:
        """The user that the machine's Firecracker runs as; None: the agent's own."""
        if not self._jailed:
            return None
        if machine.uid is None:
            raise Refused(f"{machine.ref} has no user id of its own, and is not jailed without one")
        return machine.uid


def _last_words(places: Files) -> str:
    said = bounded_log.last_words(places.log)
    return said if said != "nothing" else bounded_log.last_words(places.output)
