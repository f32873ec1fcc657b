"""The sizes of the example manifest are enough for the real OpenClaw, for longer than a moment.

As processes of this host, so that hundreds of messages take minutes; each OpenClaw is held in a control group of
exactly the size of its machine, without the compressed swap that it would have there. In machines:
tests/vm/test_memory.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.e2e.operator import Json, Operator, operator
from tests.standins.mixed_openclaw import mixed_openclaw

pytestmark = [pytest.mark.openclaw, pytest.mark.slow, pytest.mark.timeout(1500)]

TENANT = "crowd"
ALICE = 5001
USERS = {f"user{number:02}": 6001 + number for number in range(20)}
MESSAGES = 200
ROOM = "\n[quotas]\nmax_running = 32\nmax_vcpus = 64\n"
"""For all of them at once."""
MEMORY = Path("/sys/fs/cgroup/memory")


@dataclass
class Held:
    """What an instance's processes may use together, and have used at most."""

    group: Path

    @classmethod
    def of(cls, someone: Operator, instance: Json, *, mib: int) -> Held:
        """Bound an instance at exactly `mib`; skips where control groups do not bound memory."""
        process = someone.service_of(instance, "supervisor")
        lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
        (path,) = [line.split(":")[2] for line in lines if line.split(":")[1] == "memory"] or [""]
        group = MEMORY / path.lstrip("/")
        if not path.strip("/") or not (group / "memory.limit_in_bytes").exists():
            pytest.skip("no control group of version 1 bounds the memory of processes here")
        (group / "memory.limit_in_bytes").write_text(str(mib << 20))
        (group / "memory.max_usage_in_bytes").write_text("0")
        return cls(group)

    def __str__(self) -> str:
        counters = dict(line.split() for line in (self.group / "memory.stat").read_text().splitlines())
        peak = int((self.group / "memory.max_usage_in_bytes").read_text())
        return f"now {int(counters['total_rss']) >> 20} MiB without files, at most {peak >> 20} MiB with them"

    @property
    def kills(self) -> int:
        """Processes that the kernel ended because the group's memory was used up."""
        lines = (self.group / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])


@asynccontextmanager
async def survives(someone: Operator, instance: Json, *, mib: int) -> AsyncIterator[Held]:
    """Whatever happens in the block, the instance's OpenClaw is the same process after it."""
    held = Held.of(someone, instance, mib=mib)
    openclaw: psutil.Process = someone.service_of(instance, "openclaw")
    yield held
    print(f"at the end: {held}")
    assert held.kills == 0
    assert someone.service_of(instance, "openclaw") == openclaw


async def test_a_gateway_of_1024_mib_survives_200_messages_of_20_users(tmp_path: Path) -> None:
    async with operator(MVM_OPENCLAW_DIR=str(mixed_openclaw(tmp_path / "mixed"))) as someone:
        await someone.new(TENANT, USERS, extra=ROOM)
        async with survives(someone, await someone.gateway(TENANT), mib=1024) as held:
            for number in range(MESSAGES // len(USERS)):
                for sender in USERS.values():
                    words = f"message {number} of {sender}"
                    assert await someone.say(sender, words) == [f"You said: {words}"]
                print(f"{len(USERS) * (number + 1)} messages: {held}")


async def test_a_worker_of_2048_mib_survives_a_long_conversation() -> None:
    async with operator() as someone:
        await someone.new(TENANT, {"alice": ALICE})
        await someone.say(ALICE, "hello")
        async with survives(someone, await someone.worker(TENANT), mib=2048) as held:
            for number in range(MESSAGES):
                words = f"message {number}: " + " ".join(["all work and no play"] * 50)
                assert await someone.say(ALICE, words) == [f"You said: {words}"]
                if number % 50 == 49:
                    print(f"{number + 1} messages: {held}")
