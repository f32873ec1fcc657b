"""A guest whose services are systemd's units: the same agent, the same answers, done by other means (ADR 30)."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.guest.guest_world import until
from tests.unit.guest.systemd_world import SystemdWorld

from mvm.guest import __main__ as entry
from mvm.guest import units
from mvm.guest.services import Program, parse_environment_file
from mvm.guest.supervisor_socket import OperationRefused
from mvm.guest.systemd import SystemdSupervisor
from mvm.wire import messages
from mvm.wire.messages import IntegrationPhase, WorkStatus

WAKE_UNIT = f"start {units.OPENCLAW_WAKE.service}"
GATEWAY = units.OPENCLAW.service


@pytest.fixture
async def world() -> AsyncIterator[SystemdWorld]:
    world = SystemdWorld()
    try:
        yield world
    finally:
        await world.close()


async def test_openclaw_comes_up_with_the_environment_that_a_step_made(world: SystemdWorld) -> None:
    await world.start()
    secrets = parse_environment_file(world.paths.environment_file.read_text())
    fixed = parse_environment_file(world.paths.fixed_environment_file.read_text())
    assert secrets["OPENCLAW_GATEWAY_TOKEN"] == "token-1"
    assert fixed["OPENCLAW_CONFIG_PATH"] == str(world.paths.openclaw_config.resolve())
    assert "--max-old-space-size=512 " in fixed["NODE_OPTIONS"], "a quarter of the instance's memory"
    assert world.asked().count(f"start {GATEWAY}") == 1
    assert not world.paths.restart_pending.exists()


async def test_a_sleep_and_a_wake_need_no_unit(world: SystemdWorld) -> None:
    await world.start()
    world.forget_asked()
    assert (await world.ask(messages.SleepPrep(drain_timeout_secs=5))).success
    wake = await world.wake()
    assert (wake.success, wake.restarted, wake.detail) == (True, False, None)
    await world.status_is(WorkStatus.IDLE)
    assert [call for call in world.asked() if "stop" in call or WAKE_UNIT in call] == []


async def test_a_changed_environment_has_openclaw_restarted_by_its_unit(world: SystemdWorld) -> None:
    await world.start()
    before = (await world.service("openclaw"))["pid"]
    world.write_secret("telegram", "TELEGRAM_BOT_TOKEN", "new")
    world.forget_asked()
    assert (await world.wake()).restarted
    await until(lambda: WAKE_UNIT in world.asked(), "the unit")
    await until(lambda: not world.paths.restart_pending.exists(), "the restart")
    await world.status_is(WorkStatus.IDLE)
    assert (await world.service("openclaw"))["pid"] not in (before, None)
    calls = world.asked()
    assert calls.index(WAKE_UNIT) < calls.index(f"stop {GATEWAY}") < calls.index(f"start {GATEWAY}")


async def test_the_text_port_is_a_unit_that_asks_the_agent(world: SystemdWorld) -> None:
    await world.start()
    assert await world.line("HELLO") == "NAK the only request here is SLEEP_PREP"
    await world.tell_openclaw(in_flight=1)
    assert await world.line("SLEEP_PREP") == "NAK busy: turn"
    await world.tell_openclaw(in_flight=0)
    await world.status_is(WorkStatus.IDLE)
    assert await world.line("SLEEP_PREP") == "ACK"
    assert not await world.reach_forwarder()


async def test_the_text_port_says_so_when_there_is_no_agent(world: SystemdWorld) -> None:
    await world.start()
    await world.systemctl("stop", units.AGENT.service)
    assert (await world.line("SLEEP_PREP")).startswith("NAK the agent does not answer")


def with_notes(world: SystemdWorld, checkpoint: str) -> None:
    """Configure an integration whose checkpoint is that piece of Python."""
    restore = "import sys; open('restored', 'w').write(sys.stdin.read())"
    world.configure(
        integrations=[
            {
                "name": "notes",
                "checkpoint_cmd": [sys.executable, "-c", checkpoint],
                "restore_cmd": [sys.executable, "-c", restore],
                "critical": True,
            }
        ]
    )


async def test_integrations_are_done_by_their_manager(world: SystemdWorld) -> None:
    with_notes(world, "print('saved', end='')")
    await world.start()
    result = await world.ask(messages.CheckpointIntegrations(integrations=("notes",)))
    assert (result.success, result.failed) == (True, ())
    report = await world.ask(messages.IntegrationStatus())
    assert [(each.name, each.status) for each in report.integrations] == [("notes", IntegrationPhase.PAUSED)]
    assert (await world.wake()).detail is None
    assert (world.paths.integration("notes") / "state/restored").read_text() == "saved"
    report = await world.ask(messages.IntegrationStatus())
    assert report.integrations[0].status is IntegrationPhase.ACTIVE


async def test_a_critical_integration_that_fails_refuses_the_sleep_and_is_told_to_the_host(world: SystemdWorld) -> None:
    with_notes(world, "raise SystemExit(3)")
    await world.start()
    result = await world.ask(messages.CheckpointIntegrations(integrations=("notes",)))
    assert (result.success, result.failed) == (False, ("notes",))
    await until(lambda: world.events, "the event")
    assert (world.events[0].kind, world.events[0].user) == ("IntegrationFailed", "alice")


async def test_without_its_manager_nothing_is_checkpointed_and_the_sleep_refused(world: SystemdWorld) -> None:
    with_notes(world, "pass")
    await world.start()
    await world.systemctl("stop", units.INTEGRATIONS.service)
    result = await world.ask(messages.CheckpointIntegrations(integrations=("notes",)))
    assert (result.success, result.failed) == (False, ("notes",))


async def test_shutdown_stops_openclaw_first_answers_and_restarts_the_machine(world: SystemdWorld) -> None:
    await world.start()
    world.forget_asked()
    assert await world.client.ask({"op": "shutdown", "grace_seconds": 10}, 10) == {"killed": []}
    await until(lambda: "--no-block reboot" in world.asked(), "the end of the machine")
    stops = [call for call in world.asked() if call.startswith("stop")]
    assert stops[0] == f"stop {GATEWAY}"
    assert f"stop {units.AGENT.service}" in stops[1:]


async def test_what_does_not_end_in_time_is_killed_and_named(world: SystemdWorld) -> None:
    world.script(
        "openclaw",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\n"
        "while True: time.sleep(60)\n",
    )
    await world.begin()
    await until(lambda: "deaf" in world.log("openclaw"), "a start of OpenClaw")
    answer = await world.client.ask({"op": "shutdown", "grace_seconds": 1}, 10)
    assert "openclaw" in answer["killed"]


async def test_what_it_cannot_do_is_refused_with_the_reason(world: SystemdWorld) -> None:
    await world.start()
    with pytest.raises(OperationRefused, match="there is no such service; the services are machine, supervisor"):
        await world.client.start("nonsense")
    with pytest.raises(OperationRefused, match=r"mvm-router\.service not found"):
        await world.client.start("router")
    with pytest.raises(OperationRefused, match="unknown operation 'freeze'"):
        await world.client.ask({"op": "freeze"})


async def test_stats_and_logs_name_the_units_that_there_are(world: SystemdWorld) -> None:
    await world.start()
    stats = await world.ask(messages.Stats())
    assert {service.service for service in stats.services} >= {"agent", "openclaw", "supervisor", "integrations"}
    assert "router" not in {service.service for service in stats.services}
    logs = await world.ask(messages.Logs(service="agent"))
    assert "OpenClaw is up" in logs.logs[0].text


@pytest.mark.parametrize(
    ("shown", "state", "last_exit"),
    [
        ("ActiveState=active\nSubState=running\nExecMainCode=0", "running", None),
        ("ActiveState=activating\nSubState=auto-restart\nExecMainCode=1\nExecMainStatus=3", "waiting", "status 3"),
        ("ActiveState=deactivating\nSubState=stop-sigterm", "stopping", None),
        ("ActiveState=failed\nSubState=failed\nExecMainCode=2\nExecMainStatus=9", "stopped", "signal SIGKILL"),
        ("ActiveState=inactive\nSubState=dead", "stopped", None),
    ],
)
async def test_what_systemd_says_of_a_unit_is_what_the_supervisor_would_say(
    world: SystemdWorld, shown: str, state: str, last_exit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = world.systemd / "bin/systemctl"
    program.parent.mkdir()
    block = f"Id={units.AGENT.service}\nLoadState=loaded\nMainPID=0\nNRestarts=2\n{shown}"
    program.write_text(f"#!{sys.executable}\nprint({json.dumps(block)})\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    status = await SystemdSupervisor(world.paths)._status()
    expected = {"state": state, "pid": None, "start_time": None, "restarts": 2, "last_exit": last_exit}
    assert status["services"] == {"agent": expected}


@pytest.mark.parametrize("step", ["environment", "openclaw-wake"])
def test_a_step_without_a_configuration_fails_and_says_so(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MVM_GUEST_ROOT", str(tmp_path))
    assert entry.main([step]) == 1
    assert "config.json cannot be read" in capsys.readouterr().err


def test_every_unit_runs_something_that_the_program_knows() -> None:
    for unit in units.UNITS:
        if unit.program is Program.GUEST:
            assert all(f"{word}" in entry.USAGE for word in unit.arguments), unit.name
