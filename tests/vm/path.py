"""The way of a message through virtual machines, as it is with the stand-in for OpenClaw and with the real one."""

from __future__ import annotations

from tests.vm.machines import ALICE, TENANT, Machines


async def answered(machines: Machines, text: str) -> None:
    """Alice writes and gets the model's answer; when it is another one, what both ends have logged is shown."""
    answers = await machines.say(ALICE, text)
    if answers != [f"You said: {text}"]:
        print(await machines.operator.mvm("events", "--tenant", TENANT))
        for instance in (await machines.worker(), await machines.gateway()):
            address = machines.operator.address(instance)
            print(await machines.operator.mvm("instance", "logs", address, "--service", "openclaw", "--lines", "60"))
    assert answers == [f"You said: {text}"]


async def the_whole_path(machines: Machines) -> None:
    """What a user gets, from the first word to a wake from memory."""
    operator = machines.operator
    await answered(machines, "hello")
    worker = await machines.worker()
    assert worker["runtime"] == "qemu"
    assert not [event["detail"] for event in await machines.events("BaseFailed")]
    assert not [event["detail"] for event in await machines.events("CloneFailed")]
    assert {"base", "restore"} <= set(await machines.stages(worker)), "the first worker is a copy of the base"

    await machines.sleep()
    assert machines.machine(worker) is None, "a sleeper has no process"
    await answered(machines, "are you awake")
    stages = await machines.stages(worker)
    assert {"queue", "network", "drives", "restore", "agent", "guest", "service"} <= set(stages)
    assert "boot" not in stages
    assert not await machines.events("SnapshotRejected")

    kernel = (await machines.inside(worker, "uname", "-n")).strip()
    assert kernel == worker["instance_id"]
    stats = await operator.ask("instance", "stats", operator.address(worker))
    assert stats["memory_total_bytes"] > 200 << 20
    assert "started" in await operator.mvm("instance", "logs", operator.address(worker), "--service", "openclaw")
