"""The agent as the host sees it, with real processes around it: start, status, sleep, wake, refresh."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from tests.unit.guest.agent_world import AgentWorld
from tests.unit.guest.guest_world import LIMIT_SECONDS, until

from mvm.guest import processes
from mvm.wire import messages, rpc
from mvm.wire.messages import IntegrationPhase, WorkStatus


@pytest.fixture
async def world() -> AsyncIterator[AgentWorld]:
    world = AgentWorld()
    try:
        yield world
    finally:
        await world.close()


def marks(world: AgentWorld) -> set[str]:
    return {name for name in ("ready", "idle", "busy") if world.paths.marker(name).exists()}


async def test_it_puts_the_files_in_place_starts_openclaw_and_says_when_it_is_up(world: AgentWorld) -> None:
    world.behave(gate="go")
    await world.begin()
    await until(lambda: world.calls(), "the start of OpenClaw")
    assert (await world.ask(messages.QueryWorkerStatus())).status is WorkStatus.UNKNOWN
    assert marks(world) == set()
    assert (await world.ask(messages.Ping())) == messages.Pong()

    (world.programs / "openclaw/go").touch()
    await world.status_is(WorkStatus.IDLE)
    assert marks(world) == {"ready", "idle"}
    assert json.loads(world.paths.secrets_file.read_text()) == {
        "OPENCLAW_AUTH_TOKEN": "token-1",
        "ANTHROPIC_API_KEY": "key-1",
    }
    assert 'OPENCLAW_GATEWAY_TOKEN="token-1"\n' in world.paths.environment_file.read_text()
    assert [path.stat().st_mode & 0o777 for path in (world.paths.secrets_file, world.paths.environment_file)] == [
        0o600,
        0o600,
    ]
    await until(lambda: any(report.status is WorkStatus.IDLE for report in world.reports), "the report to the host")


async def test_becoming_busy_is_reported_at_once_and_its_end_too(world: AgentWorld) -> None:
    await world.start()
    await until(lambda: world.reports and world.reports[-1].status is WorkStatus.IDLE, "the first report")
    await world.tell_openclaw(in_flight=1, last_busy_at="2026-11-22T18:00:00Z")
    await until(lambda: world.reports[-1].status is WorkStatus.BUSY, "busy")
    assert world.reports[-1].in_flight == 1
    assert marks(world) == {"ready", "busy"}

    await world.tell_openclaw(in_flight=0, next_alarm_at="2026-11-23T06:00:00Z")
    await until(lambda: world.reports[-1].status is WorkStatus.IDLE, "idle again")
    assert world.reports[-1].next_alarm_at is not None
    status = await world.ask(messages.QueryWorkerStatus())
    assert status.last_busy_at is not None


async def test_a_turn_too_short_to_be_seen_is_reported_all_the_same(world: AgentWorld) -> None:
    await world.start()
    await until(lambda: world.reports and world.reports[-1].status is WorkStatus.IDLE, "the first report")
    await asyncio.gather(world.tell_openclaw(in_flight=1), world.tell_openclaw(in_flight=0))
    await until(lambda: any(report.status is WorkStatus.BUSY for report in world.reports), "busy")
    await until(lambda: world.reports[-1].status is WorkStatus.IDLE, "idle again")


async def test_an_open_delivery_is_work(world: AgentWorld) -> None:
    await world.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.forwarder_port)
    await world.status_is(WorkStatus.BUSY)
    assert "forwarder" not in world.log("agent")
    writer.close()
    await writer.wait_closed()
    del reader
    await world.status_is(WorkStatus.IDLE)


async def test_sleep_closes_the_door_holds_openclaw_and_wake_undoes_it(world: AgentWorld) -> None:
    await world.start()
    await world.tell_openclaw(next_alarm_at="2026-11-23T06:00:00Z")
    world.clear_calls()
    ack = await world.ask(messages.SleepPrep(drain_timeout_secs=5))
    assert ack.success, ack.detail
    assert ack.next_alarm_at is not None
    assert [call.split()[0] for call in world.calls()] == ["CHECKPOINT"]
    assert not await world.reach_forwarder()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success, "asked twice, prepared once"

    world.clear_calls()
    wake = await world.wake()
    assert (wake.success, wake.restarted, wake.detail) == (True, False, None)
    assert world.calls() == ["RESTORE"]
    assert await world.reach_forwarder()
    await world.status_is(WorkStatus.IDLE)
    assert (await world.ask(messages.BareWake())).success


async def test_a_turn_under_way_refuses_the_sleep_and_everything_goes_on(world: AgentWorld) -> None:
    await world.start()
    await world.tell_openclaw(in_flight=1)
    ack = await world.ask(messages.SleepPrep(drain_timeout_secs=0))
    assert not ack.success
    assert ack.detail == "busy: turn"
    assert world.calls()[-1] == "RESTORE"
    assert await world.reach_forwarder()


async def test_a_turn_that_ends_in_time_is_drained(world: AgentWorld) -> None:
    await world.start()
    await world.tell_openclaw(in_flight=1)
    prep = asyncio.create_task(world.ask(messages.SleepPrep(drain_timeout_secs=10)))
    await until(lambda: any(call.startswith("CHECKPOINT") for call in world.calls()), "the checkpoint")
    await world.tell_openclaw(in_flight=0)
    assert (await prep).success


async def test_a_wake_in_the_middle_of_going_to_sleep_wins(world: AgentWorld) -> None:
    await world.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.forwarder_port)
    await world.status_is(WorkStatus.BUSY)
    prep = asyncio.create_task(world.ask(messages.SleepPrep(drain_timeout_secs=60)))
    await until(lambda: not _listens(world.forwarder_port), "the closed door")
    assert (await world.wake()).success
    ack = await prep
    assert (ack.success, ack.detail) == (False, "a wake came meanwhile")
    assert await world.reach_forwarder()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    del reader


async def test_the_text_port_is_the_same_procedure(world: AgentWorld) -> None:
    await world.start()
    await world.tell_openclaw(in_flight=1)
    world.configure(runtime_policy={"drain_timeout_seconds": 0})
    assert (await world.ask(messages.Refresh(secrets_epoch=1, config_version=1))).success
    assert await world.line("SLEEP_PREP") == "NAK busy: turn"
    await world.tell_openclaw(in_flight=0)
    assert await world.line("SLEEP_PREP") == "ACK"
    assert not await world.reach_forwarder()
    assert (await world.line("MAKE_COFFEE")).startswith("NAK")


async def test_secrets_that_openclaw_re_reads_reach_it_without_a_restart(world: AgentWorld) -> None:
    await world.start()
    world.clear_calls()
    world.write_secret("anthropic", "ANTHROPIC_API_KEY", "key-2")
    ack = await world.ask(messages.Refresh(secrets_epoch=2, config_version=1))
    assert (ack.success, ack.restarted) == (True, False)
    assert world.calls() == ["RELOAD_SECRETS"]
    world.write_secret("tls", "ca.pem", "one\ntwo\n")
    assert not (await world.ask(messages.Refresh(secrets_epoch=3, config_version=1))).restarted
    assert json.loads(world.paths.secrets_file.read_text())["ANTHROPIC_API_KEY"] == "key-2"
    assert "key-2" in world.paths.environment_file.read_text()


async def test_secrets_changed_while_asleep_are_re_read_before_anybody_is_let_in(world: AgentWorld) -> None:
    await world.start()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    world.write_secret("anthropic", "ANTHROPIC_API_KEY", "key-2")
    world.clear_calls()
    ack = await world.wake(secrets_epoch=2)
    assert (ack.success, ack.restarted) == (True, False)
    assert world.calls()[:2] == ["RESTORE", "RELOAD_SECRETS"]
    assert await world.reach_forwarder()


async def test_a_sleeper_with_another_configuration_lets_nobody_in_before_openclaw_goes_by_it(
    world: AgentWorld,
) -> None:
    await world.start()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    world.write_openclaw_config({"port": world.openclaw_port, "model": "another"})
    world.behave(applied="go")
    ack = await world.wake(config_version=2)
    assert (ack.success, ack.restarted) == (True, False)
    assert (await world.ask(messages.QueryWorkerStatus())).status is WorkStatus.UNKNOWN
    assert not await world.reach_forwarder()
    (world.programs / "openclaw/go").touch()
    await world.status_is(WorkStatus.IDLE)
    assert await world.reach_forwarder()
    assert json.loads(world.paths.openclaw_config.read_text())["model"] == "another"


async def test_another_configuration_with_its_secrets_is_taken_in_while_the_person_is_served(world: AgentWorld) -> None:
    await world.start()
    world.write_openclaw_config({"port": world.openclaw_port, "model": "another"})
    world.write_secret("anthropic", "ANTHROPIC_API_KEY", "key-2")
    world.behave(applied="go")
    world.clear_calls()
    ack = await world.ask(messages.Refresh(secrets_epoch=2, config_version=2))
    assert (ack.success, ack.restarted) == (True, False)
    assert await world.reach_forwarder()
    assert "RELOAD_SECRETS" not in world.calls(), "it would be given up for the configuration that comes"
    (world.programs / "openclaw/go").touch()
    await until(lambda: "RELOAD_SECRETS" in world.calls(), "the secrets being read again")


async def test_a_sleeper_whose_openclaw_does_not_take_its_configuration_in_has_it_restarted(world: AgentWorld) -> None:
    await world.start()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    world.write_openclaw_config({"port": world.openclaw_port, "model": "another"})
    world.behave(applied=None)
    world.clear_calls()
    assert (await world.wake(config_version=2)).success
    await until(lambda: any(call.startswith("start") for call in world.calls()), "the restart")
    await world.status_is(WorkStatus.IDLE)
    assert await world.reach_forwarder()


async def test_openclaw_that_cannot_re_read_its_secrets_is_restarted(world: AgentWorld) -> None:
    await world.start()
    world.behave(reload_fails=True)
    world.write_secret("anthropic", "ANTHROPIC_API_KEY", "key-2")
    world.clear_calls()
    assert (await world.ask(messages.Refresh(secrets_epoch=2, config_version=1))).restarted
    await until(lambda: any(call.startswith("start") for call in world.calls()), "the restart")
    await world.status_is(WorkStatus.IDLE)


async def test_secrets_that_live_in_the_environment_restart_openclaw(world: AgentWorld) -> None:
    await world.start()
    world.clear_calls()
    world.write_secret("other", "OTHER", "value")
    ack = await world.ask(messages.Refresh(secrets_epoch=2, config_version=1))
    assert (ack.success, ack.restarted) == (True, True)
    assert (await world.ask(messages.QueryWorkerStatus())).status is not WorkStatus.IDLE
    await world.status_is(WorkStatus.IDLE)
    kinds = [call.split()[0] for call in world.calls()]
    assert kinds[:3] == ["CHECKPOINT", "SIGTERM", "start"]
    assert world.calls()[2].split()[2] == "value"
    assert await world.reach_forwarder()
    assert not world.paths.restart_pending.exists()


async def test_a_refresh_waits_for_the_turn_under_way_before_it_restarts(world: AgentWorld) -> None:
    await world.start()
    await world.tell_openclaw(in_flight=1)
    world.write_secret("other", "OTHER", "value")
    assert (await world.ask(messages.Refresh(secrets_epoch=2, config_version=1))).restarted
    assert (await world.ask(messages.QueryWorkerStatus())).status is WorkStatus.BUSY
    await until(lambda: any(call.startswith("CHECKPOINT") for call in world.calls()), "the checkpoint")
    assert "SIGTERM" not in world.calls()
    await world.tell_openclaw(in_flight=0)
    await until(lambda: "SIGTERM" in world.calls(), "the restart")
    await world.status_is(WorkStatus.IDLE)


async def test_secrets_changed_while_asleep_are_in_the_environment_after_the_wake(world: AgentWorld) -> None:
    await world.start()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    world.write_secret("other", "OTHER", "value")
    world.clear_calls()
    assert (await world.wake(secrets_epoch=2)).restarted
    assert (await world.ask(messages.QueryWorkerStatus())).status is WorkStatus.UNKNOWN
    await world.status_is(WorkStatus.IDLE)
    assert [call.split()[0] for call in world.calls()][:2] == ["SIGTERM", "start"]
    assert await world.reach_forwarder()


async def test_openclaws_configuration_is_replaced_only_when_it_differs(world: AgentWorld) -> None:
    await world.start()
    before = world.paths.openclaw_config.stat().st_ino
    assert (await world.ask(messages.Refresh(secrets_epoch=1, config_version=1))).success
    assert world.paths.openclaw_config.stat().st_ino == before
    world.write_openclaw_config({"port": world.openclaw_port, "more": True})
    assert not (await world.ask(messages.Refresh(secrets_epoch=1, config_version=2))).restarted
    assert json.loads(world.paths.openclaw_config.read_text())["more"] is True


async def test_a_broken_configuration_is_refused_and_the_former_one_stays(world: AgentWorld) -> None:
    await world.start()
    world.paths.config.write_text('{"role": 5}')
    assert not (await world.ask(messages.Refresh(secrets_epoch=1, config_version=2))).success
    await until(lambda: any(event.kind == "ConfigRejected" for event in world.events), "the event")
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    wake = await world.wake()
    assert wake.success
    assert "instance_id: missing" in (wake.detail or "")
    assert await world.reach_forwarder()


async def test_without_a_configuration_it_says_so_until_there_is_one(world: AgentWorld) -> None:
    world.paths.config.unlink()
    await world.begin()
    assert await world.ask(messages.Ping()) == messages.Pong()
    with pytest.raises(rpc.CallFailed, match=r"config\.json cannot be read"):
        await world.ask(messages.SleepPrep(drain_timeout_secs=1))
    world.configure()
    await world.status_is(WorkStatus.IDLE)


async def test_openclaw_dying_makes_the_guest_unknown_until_it_is_back(world: AgentWorld) -> None:
    await world.start()
    world.behave(gate="go")
    os.kill((await world.service("openclaw"))["pid"], signal.SIGKILL)
    await world.status_is(WorkStatus.UNKNOWN)
    ack = await world.ask(messages.SleepPrep(drain_timeout_secs=1))
    assert not ack.success
    (world.programs / "openclaw/go").touch()
    await world.status_is(WorkStatus.IDLE)


async def test_channels_held_back_after_unclean_starts_are_started_once(world: AgentWorld) -> None:
    world.behave(suppressed=["telegram"])
    await world.start()
    await until(lambda: "CHANNELS_START" in world.calls(), "the repair")
    await until(lambda: any(event.kind == "ChannelsRepaired" for event in world.events), "the event")
    assert world.calls().count("CHANNELS_START") == 1


async def test_an_agent_that_was_killed_finds_openclaw_running_and_lets_it_go_on(world: AgentWorld) -> None:
    await world.start()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    openclaw = (await world.service("openclaw"))["pid"]
    agent = (await world.service("agent"))["pid"]
    world.clear_calls()
    os.kill(agent, signal.SIGKILL)
    await until(lambda: "RESTORE" in world.calls(), "the undoing")
    await world.status_is(WorkStatus.IDLE)
    assert (await world.service("openclaw"))["pid"] == openclaw
    assert await world.reach_forwarder()


async def test_integrations_are_checkpointed_and_restored_and_critical_ones_decide(world: AgentWorld) -> None:
    state = '{"seen": 7}'
    integrations = [
        {
            "name": "notes",
            "checkpoint_cmd": ["/bin/sh", "-c", f"echo '{state}'"],
            "restore_cmd": ["/bin/sh", "-c", "cat > restored"],
        },
        {"name": "flaky", "checkpoint_cmd": ["/bin/sh", "-c", "echo broken >&2; exit 3"]},
        {"name": "slow", "checkpoint_cmd": ["/bin/sh", "-c", "sleep 600 & wait"], "critical": False},
        {"name": "telegram", "checkpoint_cmd": ["openclaw-ctl", "checkpoint", "telegram"], "critical": True},
    ]
    world.configure(integrations=integrations, runtime_policy={"drain_timeout_seconds": 2})
    await world.start()
    names = ("notes", "flaky", "slow", "telegram", "elsewhere")
    result = await world.ask(messages.CheckpointIntegrations(integrations=names))
    assert (result.success, result.failed) == (True, ("flaky", "slow"))
    assert "broken" in (result.detail or "")
    report = await world.ask(messages.IntegrationStatus())
    phases = {integration.name: integration for integration in report.integrations}
    assert phases["notes"].status is IntegrationPhase.PAUSED
    assert phases["notes"].state_size_bytes == len(state) + 1
    assert phases["notes"].last_checkpoint_at is not None
    assert isinstance(phases["flaky"].status, messages.IntegrationFailure)
    assert (world.paths.integration("telegram") / "checkpoint").read_text() == "{}\n", "it has no channel here"

    assert (await world.wake()).success
    assert (world.paths.integration("notes") / "state/restored").read_text() == state + "\n"
    report = await world.ask(messages.IntegrationStatus())
    assert report.integrations[0].status is IntegrationPhase.ACTIVE

    integrations[1]["critical"] = True
    world.configure(integrations=integrations)
    assert (await world.ask(messages.Refresh(secrets_epoch=1, config_version=1))).success
    result = await world.ask(messages.CheckpointIntegrations(integrations=("notes", "flaky")))
    assert (result.success, result.failed) == (False, ("flaky",))


async def test_openclaw_ctl_holds_openclaw_for_a_channel_that_it_has(world: AgentWorld) -> None:
    world.write_openclaw_config({"port": world.openclaw_port, "channels": {"telegram": {"enabled": True}}})
    world.configure(
        integrations=[
            {
                "name": "telegram",
                "checkpoint_cmd": ["openclaw-ctl", "checkpoint", "telegram"],
                "restore_cmd": ["openclaw-ctl", "restore", "telegram"],
                "critical": True,
            }
        ]
    )
    await world.start()
    world.clear_calls()
    assert (await world.ask(messages.CheckpointIntegrations(integrations=("telegram",)))).success
    assert [call.split()[0] for call in world.calls()] == ["CHECKPOINT"]
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    assert (await world.wake()).success
    await world.status_is(WorkStatus.IDLE)
    await world.tell_openclaw(in_flight=1)
    result = await world.ask(messages.CheckpointIntegrations(integrations=("telegram",)))
    assert (result.success, result.failed) == (False, ("telegram",))
    assert "busy: turn" in (result.detail or "")


async def test_commands_run_with_their_limits_and_nothing_of_them_stays(world: AgentWorld) -> None:
    await world.start()
    done = await world.ask(messages.Exec(argv=("/bin/sh", "-c", "cat; echo oops >&2; exit 3"), stdin="hello"))
    assert (done.status, done.stdout, done.stderr, done.truncated) == (3, b"hello", b"oops\n", False)
    flood = await world.ask(messages.Exec(argv=("head", "-c", "1000000", "/dev/zero")))
    assert (len(flood.stdout), flood.truncated) == (messages.MAX_OUTPUT, True)
    late = await world.ask(messages.Exec(argv=("/bin/sh", "-c", "sleep 600 & sleep 600"), timeout_secs=1))
    assert late.status == 124
    assert not [p for p in world.alive() if "sleep" in _command(p.identity.pid)]
    with pytest.raises(rpc.CallFailed, match="cannot be started"):
        await world.ask(messages.Exec(argv=("/nowhere/nothing",)))

    world.configure(allow_exec=False)
    await world.ask(messages.Refresh(secrets_epoch=1, config_version=1))
    with pytest.raises(rpc.CallFailed, match="does not allow"):
        await world.ask(messages.Exec(argv=("true",)))


async def test_logs_and_stats_are_bounded_and_name_the_services(world: AgentWorld) -> None:
    await world.start()
    logs = await world.ask(messages.Logs())
    assert {log.service for log in logs.logs} >= {"agent", "openclaw", "supervisor"}
    world.paths.log("openclaw-own").write_text("the same in more detail\n")
    assert "openclaw-own" not in {log.service for log in (await world.ask(messages.Logs())).logs}
    own = await world.ask(messages.Logs(service="openclaw-own"))
    assert [log.text for log in own.logs] == ["the same in more detail\n"]
    only = await world.ask(messages.Logs(service="openclaw", lines=1))
    assert [(log.service, log.text.count("\n"), log.truncated) for log in only.logs] == [("openclaw", 1, True)]
    with pytest.raises(rpc.CallFailed, match="there is no log of 'nonsense'; there are logs of agent, openclaw"):
        await world.ask(messages.Logs(service="nonsense"))
    stats = await world.ask(messages.Stats())
    services = {service.service: service for service in stats.services}
    assert services["openclaw"].state == "running"
    assert services["openclaw"].memory_bytes > 1024 * 1024
    assert stats.memory_total_bytes == 2048 * 1024 * 1024
    assert stats.memory_used_bytes > services["openclaw"].memory_bytes


async def test_no_secret_is_in_a_log_or_an_argument_list(world: AgentWorld) -> None:
    await world.start()
    world.write_secret("other", "OTHER", "very-secret")
    world.write_secret("third", "OTHER", "another-secret")
    await world.ask(messages.Refresh(secrets_epoch=2, config_version=1))
    await world.status_is(WorkStatus.IDLE)
    logs = "".join(path.read_text() for path in world.paths.logs.glob("*.log"))
    commands = "".join(_command(process.identity.pid) for process in world.alive())
    events = "".join(str(event) for event in world.events)
    for secret in ("very-secret", "another-secret", "token-1", "key-1"):
        assert secret not in logs + commands + events
    assert any(event.kind == "SecretRejected" and "third/OTHER" in (event.detail or "") for event in world.events)


async def test_a_gateway_has_a_router_and_no_forwarder(world: AgentWorld) -> None:
    world.configure(role="gateway")
    await world.start()
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while "router listens" not in world.log("router"):
        assert asyncio.get_running_loop().time() < deadline, world.log("router")
        await asyncio.sleep(0.01)
    assert not await world.reach_forwarder()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    assert (await world.wake()).success


async def test_a_plain_worker_is_ready_without_openclaw(world: AgentWorld) -> None:
    world.configure(role="worker", openclaw=None)
    await world.begin()
    await world.status_is(WorkStatus.READY)
    assert (await world.service("openclaw"))["state"] == "stopped"
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=1))).success
    assert (await world.wake()).success


def _listens(port: int) -> bool:
    """Whether somebody listens on that loopback port, by the kernel's table (connecting would be a delivery)."""
    with open("/proc/net/tcp") as file:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in list(file)[1:])


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""


def test_processes_are_told_apart_by_their_start() -> None:
    own = processes.identity_of(os.getpid())
    assert own is not None
    assert processes.alive(own)
    assert not processes.alive(processes.Identity(own.pid, own.start_time + 1))
    assert not processes.send(processes.Identity(own.pid, own.start_time + 1), signal.SIGTERM)
