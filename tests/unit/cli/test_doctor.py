"""`mvm doctor`: each check tries the thing itself and says what to do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.standins.nix.world import NixWorld
from tests.standins.unified_groups import UnifiedGroups
from tests.unit.cli.conftest import ScriptedAgent, Type

from mvm.cli import checks, image_checks
from mvm.cli.checks import Verdict
from mvm.host.locations import Locations, locate
from mvm.image.base import Readiness
from mvm.image.debian import builder
from mvm.image.nix import NixBuilder, program
from mvm.model.errors import Unavailable


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    return locate({"state_dir": str(tmp_path / "s"), "run_dir": "/tmp/mvm-none"}, {}, tmp_path)


def test_the_report_names_every_check_and_where_each_setting_came_from(agent: ScriptedAgent, mvm: Type) -> None:
    typed = mvm("doctor", "--json")
    document = typed.document
    assert typed.status == (0 if document["healthy"] else 1)
    names = {check["name"] for check in document["checks"]}
    assert {"python", "node", "openclaw", "kvm", "loopback", "secrets", "disk", "agent", "cgroups"} <= names
    assert all(check["matters"] for check in document["checks"])
    origins = {setting["name"]: setting["origin"] for setting in document["settings"]}
    assert origins["run_dir"] == "environment MVM_RUN_DIR"
    assert origins["runtime"] == "default"


def test_people_are_told_why_and_what_to_type(agent: ScriptedAgent, mvm: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LOW_DISK_MIB", 10**12)
    typed = mvm("doctor")
    assert "warning  disk" in typed.out
    assert "why: data and sleeping instances are kept there" in typed.out
    assert "do:  free some space" in typed.out


def test_a_line_of_the_report_fits_a_terminal_and_the_settings_are_in_words(
    agent: ScriptedAgent, mvm: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checks.Finding(
        name="x", verdict=Verdict.WARNING, found="found " * 40, matters="so " * 60, remedy="do this; " * 40
    )
    monkeypatch.setattr(checks, "memory", lambda: found)
    typed = mvm("doctor")
    report, settings = typed.out.split("\n\n")
    ours = [line for line in report.splitlines() if line.split()[-1] in ("found", "so", "this;")]
    assert len(ours) >= 6, "each of the three is longer than a line"
    assert max(map(len, ours)) <= 120
    assert "True" not in settings
    assert "False" not in settings
    values = {setting["name"]: setting["value"] for setting in mvm("doctor", "--json").document["settings"]}
    assert (values["production"], values["autostart"], values["listen"]) == (False, False, "off")


def test_processes_are_told_to_be_refused_in_production_mode(locations: Locations) -> None:
    assert "not isolated" in checks.process_runtime(locations).found
    production = replace(locations, production=True)
    unused, asked_for = (checks.process_runtime(replace(production, runtime=name)) for name in ("auto", "process"))
    assert "refused in production mode" in unused.found
    assert (unused.verdict, asked_for.verdict) == (Verdict.NOTE, Verdict.PROBLEM)
    assert "MVM_RUNTIME" in (asked_for.remedy or "")


def test_a_machine_without_kvm_is_told_so(tmp_path: Path) -> None:
    missing = checks.kvm(tmp_path / "kvm")
    assert missing.verdict is Verdict.WARNING
    assert "there is no" in missing.found
    fake = tmp_path / "kvm"
    fake.touch()
    assert checks.kvm(fake).verdict is Verdict.WARNING
    assert "makes no machine" in checks.kvm(fake).found


def test_an_openclaw_that_is_not_installed_is_a_warning(locations: Locations, tmp_path: Path) -> None:
    found = checks.openclaw_installation(replace(locations, programs_dir=tmp_path))
    assert (found.verdict, found.remedy) == (Verdict.WARNING, "make setup")


def test_secrets_on_a_disk_are_a_warning(locations: Locations) -> None:
    assert checks.secrets_memory(replace(locations, secrets_in_memory=True)).verdict is Verdict.OK
    assert checks.secrets_memory(replace(locations, secrets_in_memory=False)).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("controllers", "found", "verdict"),
    [
        ("memory pids cpu", "memory, pids, cpu are bounded", Verdict.OK),
        ("memory pids", "memory, pids bounded, cpu not", Verdict.WARNING),
        ("pids cpu", "no control group can be made here", Verdict.WARNING),
    ],
)
def test_control_groups_are_what_could_really_be_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controllers: str, found: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    groups = UnifiedGroups(tmp_path, monkeypatch)
    groups.enter("/system.slice/ssh.service")
    (groups.mount / "cgroup.controllers").write_text(controllers)
    finding = checks.control_groups(groups.proc)
    assert finding.found.startswith(found)
    assert finding.verdict is verdict


def test_control_groups_that_are_not_mounted_bound_nothing(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("22 1 0:20 / /proc rw - proc proc rw\n")
    assert checks.control_groups(tmp_path).verdict is Verdict.WARNING


def test_the_settings_of_a_broken_configuration_file_are_an_error(
    mvm: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mvm.toml").write_text('runtime = "vmware"\n')
    monkeypatch.chdir(tmp_path)
    typed = mvm("doctor")
    assert typed.status == 2
    assert "mvm.toml:1" in typed.error[0]


async def test_no_agent_is_fine_and_a_socket_nobody_answers_on_is_not(locations: Locations, tmp_path: Path) -> None:
    quiet = replace(locations, run_dir=tmp_path, origins={**locations.origins, "run_dir": "flag"})
    assert (await checks.agent(quiet)).found == "none runs"
    quiet.socket.touch()
    stale = await checks.agent(quiet)
    assert stale.verdict is Verdict.WARNING
    assert "mvm agent serve" in str(stale.remedy)


def test_a_host_that_can_build_images_is_told_so() -> None:
    found = image_checks.image_builder(Readiness(usable=True, reason="all is there"))
    assert (found.verdict, found.found, found.remedy) == (Verdict.OK, "debian: all is there", None)


def test_what_building_images_needs_is_said_with_what_to_type() -> None:
    found = image_checks.image_builder(Readiness(usable=False, reason="missing: lz4", remedy="apt-get install lz4"))
    assert (found.verdict, found.remedy) == (Verdict.WARNING, "apt-get install lz4")


def test_a_host_without_nix_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "search_path", lambda: str(tmp_path))
    found = image_checks.nix_builder(NixBuilder(tmp_path))
    assert (found.verdict, found.found) == (Verdict.OK, "not used: there is no nix on this host")


def test_flakes_in_machines_need_a_runtime_that_has_some_and_an_image(locations: Locations) -> None:
    able = Readiness(usable=True, reason="all is there")
    assert image_checks.nix_machine(replace(locations, runtime="qemu"), able).verdict is Verdict.OK
    without = image_checks.nix_machine(replace(locations, runtime="process"), able)
    assert (without.verdict, without.remedy) == (Verdict.WARNING, "leave runtime out, or say qemu")
    unable = image_checks.nix_machine(locations, Readiness(usable=False, reason="not root", remedy="be root"))
    assert (unable.verdict, unable.remedy) == (Verdict.WARNING, "be root")
    assert "no image for one can be made: not root" in unable.found


def test_nix_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = NixWorld(tmp_path / "nix")
    world.install()
    monkeypatch.setattr(program, "search_path", lambda: f"{world.program.parent}:/usr/bin:/bin")
    assert image_checks.nix_builder(NixBuilder(tmp_path)).verdict is Verdict.OK
    world.failing["ping-store"] = (
        "cannot connect to socket at '/nix/var/nix/daemon-socket/socket': No such file or directory"
    )
    world.save()
    found = image_checks.nix_builder(NixBuilder(tmp_path))
    assert found.verdict is Verdict.WARNING
    assert "daemon-socket" in found.found
    assert "systemctl status nix-daemon" in str(found.remedy)


def test_room_for_an_image_is_looked_for_where_it_would_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(tmp_path) in image_checks.image_space(tmp_path / "not/there/yet").found
    monkeypatch.setattr(builder, "NEEDED_DISK_MIB", 10**12)
    assert "MVM_IMAGE_CACHE" in (image_checks.image_space(tmp_path).remedy or "")


def test_a_mirror_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: builder.DebianBuilder) -> str:
        raise Unavailable("apt-get failed: timed out", hint="can this machine reach its Debian mirror?")

    monkeypatch.setattr(builder.DebianBuilder, "reach", unreachable)
    found = image_checks.kernel_package(tmp_path)
    assert (found.verdict, found.found) == (Verdict.WARNING, "apt-get failed: timed out")
