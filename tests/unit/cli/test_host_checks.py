"""What the doctor says of the host: each line is true of what was looked at, and says what to type."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import ScriptedAgent, Type

from mvm.cli import host_checks
from mvm.cli.checks import Finding, Verdict, nearest
from mvm.cli.orphan_checks import judged
from mvm.host.locations import Locations, locate

ROOT = "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    return locate({"state_dir": str(tmp_path / "s"), "run_dir": "/tmp/mvm-none"}, {}, tmp_path)


def mounts(tmp_path: Path, *lines: str) -> Path:
    table = tmp_path / "mountinfo"
    table.write_text("\n".join((ROOT, *lines)) + "\n")
    return table


def test_every_line_says_why_it_matters_and_what_is_not_well_what_to_type(locations: Locations) -> None:
    findings = list(host_checks.host_checks(locations))
    assert [finding.name for finding in findings] == [
        *("kernel", "file system", "swap", "page merging", "SMT", "clock", "certificates", "ports", "PATH")
    ]
    assert [finding.name for finding in findings if not finding.matters or not finding.found] == []
    assert [f.name for f in findings if (f.verdict is not Verdict.OK) != (f.remedy is not None)] == []


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("6.1.0-18-amd64", Verdict.OK),
        ("5.10.1", Verdict.OK),
        ("5.4.0-100-generic", Verdict.WARNING),
        ("nonsense", Verdict.WARNING),
    ],
)
def test_a_kernel_that_is_too_old_is_told(release: str, verdict: Verdict) -> None:
    assert host_checks.kernel(release).verdict is verdict


@pytest.mark.parametrize(
    ("line", "kind", "verdict"),
    [
        ("24 23 0:30 / {here} rw - tmpfs tmpfs rw", "tmpfs", Verdict.WARNING),
        ("24 23 0:30 / {here} rw - nfs4 server:/x rw", "nfs4", Verdict.WARNING),
    ],
)
def test_a_state_directory_where_it_is_not_safe_is_told(tmp_path: Path, line: str, kind: str, verdict: Verdict) -> None:
    table = mounts(tmp_path, line.format(here=tmp_path))
    found = host_checks.file_system(tmp_path / "not/there/yet", table)
    assert (found.verdict, found.found.split()[0]) == (verdict, kind)
    assert "MVM_STATE_DIR" in (found.remedy or "")


def test_the_nearest_and_latest_mount_counts_and_strange_names_are_read(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    written = str(place).replace(" ", "\\040")
    table = mounts(
        tmp_path,
        f"24 23 0:30 / {written} rw - btrfs /dev/sdb rw",
        f"25 23 0:31 / {written} rw - xfs /dev/sdc rw",
        "26 23 0:32 / /somewhere/else rw - tmpfs tmpfs rw",
        "this is no line of such a table",
    )
    assert host_checks.file_system_of(place, table) == "xfs"
    assert host_checks.file_system_of(tmp_path, table) == "ext4"
    assert host_checks.file_system_of(place, tmp_path / "missing") == "unknown"


def test_whether_copies_share_their_blocks_is_found_by_making_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = mounts(tmp_path)
    for shares, verdict in ((True, Verdict.OK), (False, Verdict.NOTE), (None, Verdict.OK)):
        monkeypatch.setattr(host_checks, "shares_blocks", lambda directory, answer=shares: answer)
        assert host_checks.file_system(tmp_path, table).verdict is verdict
    monkeypatch.undo()
    assert host_checks.shares_blocks(tmp_path) in (True, False)
    assert host_checks.shares_blocks(tmp_path / "missing") is None
    assert os.listdir(tmp_path) == [table.name], "nothing of the attempt is left"


def test_swap_on_a_disk_is_noted_and_in_compressed_memory_it_is_fine(tmp_path: Path) -> None:
    table = tmp_path / "swaps"
    head = "Filename Type Size Used Priority\n"
    for lines, verdict in (
        ("", Verdict.OK),
        ("/dev/zram0 p 1 0 1\n", Verdict.OK),
        ("/dev/sda2 p 1 0 1\n", Verdict.NOTE),
    ):
        table.write_text(head + lines)
        assert host_checks.swap(table).verdict is verdict
    assert host_checks.swap(tmp_path / "missing").verdict is Verdict.OK


def test_what_lets_guests_learn_of_each_other_is_noted(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    for check in (host_checks.same_page_merging, host_checks.sibling_threads):
        assert check(switch).verdict is Verdict.OK
        switch.write_text("1\n")
        noted = check(switch)
        assert noted.verdict is Verdict.NOTE
        assert "/sys/" in (noted.remedy or "")
        switch.write_text("0\n")
        assert check(switch).verdict is Verdict.OK
        switch.unlink()


def test_a_clock_that_went_back_behind_the_state_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    written = (tmp_path / "state.db").stat().st_mtime
    kept = host_checks.clock(tmp_path, ask=lambda: (True, 1500), now=lambda: written + 5)
    assert (kept.verdict, "to 2 ms" in kept.found) == (Verdict.OK, True)
    assert host_checks.clock(tmp_path, ask=lambda: (False, 0), now=lambda: written).verdict is Verdict.NOTE
    assert host_checks.clock(tmp_path, ask=lambda: None, now=lambda: written).verdict is Verdict.OK
    behind = host_checks.clock(tmp_path, ask=lambda: (True, 0), now=lambda: written - 3600)
    assert (behind.verdict, "3600 s ahead" in behind.found) == (Verdict.PROBLEM, True)
    assert host_checks.clock(tmp_path / "missing", ask=lambda: None).verdict is Verdict.OK


def test_the_kernel_is_asked_about_the_clock() -> None:
    told = host_checks.synchronised()
    assert told is None or told[1] >= 0


def test_a_bundle_of_certificates_that_is_none_is_a_problem(tmp_path: Path) -> None:
    assert host_checks.certificates({}).verdict is not Verdict.PROBLEM
    bundle = tmp_path / "bundle.pem"
    missing = host_checks.certificates({"SSL_CERT_FILE": str(bundle)})
    assert (missing.verdict, "No such file" in missing.found) == (Verdict.PROBLEM, True)
    bundle.write_text("not a certificate")
    empty = host_checks.certificates({"NODE_EXTRA_CA_CERTS": str(bundle)})
    assert (empty.verdict, "no certificate in it" in empty.found) == (Verdict.PROBLEM, True)


def test_a_port_that_somebody_has_is_named_with_who_has_it(locations: Locations) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = host_checks.ports(replace(locations, metrics_port=port))
    if "metrics_port" in found.found:
        assert (found.verdict, f"(pid {os.getpid()})" in found.found) == (Verdict.WARNING, True)
        assert found.remedy == "choose another metrics_port"
    else:
        assert "process runtime" in found.found, "something on this machine listens there already"


def test_an_agent_of_mvm_s_may_have_its_own_port(locations: Locations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "listener", lambda port: ("mvm (pid 1)", True))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = host_checks.ports(replace(locations, metrics_port=taken.getsockname()[1]))
    assert found.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        (["python", "mvm", "agent", "serve"], True),
        (["mvm", "agent", "serve", "--metrics-port", "9"], True),
        (["mvm", "agent", "status"], False),
        ([], False),
    ],
)
def test_an_agent_is_known_by_its_command_line(command: list[str], is_one: bool) -> None:
    assert host_checks.is_agent(command) is is_one


def test_a_directory_that_may_not_be_looked_into_costs_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, stat = tmp_path / "closed", os.stat
    closed.mkdir()

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if closed in Path(os.fspath(path)).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert host_checks.program_on_path(str(closed)).verdict is Verdict.NOTE
    assert nearest(closed / "state") == closed


def test_another_program_of_the_same_name_is_told(tmp_path: Path) -> None:
    def program(directory: str) -> Path:
        (tmp_path / directory).mkdir()
        path = tmp_path / directory / "mvm"
        path.touch(mode=0o755)
        return path

    own, other = program("own"), program("other")
    linked = tmp_path / "links"
    linked.mkdir()
    (linked / "mvm").symlink_to(own)

    def judge(*directories: Path) -> Finding:
        return host_checks.program_on_path(os.pathsep.join(map(str, directories)), own)

    assert judge(own.parent).verdict is Verdict.OK
    assert judge(linked).verdict is Verdict.OK
    assert judge(tmp_path).verdict is Verdict.NOTE
    first = judge(other.parent, own.parent)
    assert first.verdict is Verdict.WARNING
    assert str(other) in first.found
    assert first.remedy == f'export PATH="{own.parent}:$PATH"'
    later = judge(own.parent, other.parent)
    assert (later.verdict, str(other) in later.found) == (Verdict.OK, True)


ORPHAN = {"kind": "data drive", "name": "/s/instances/i-1", "why": "of i-1", "bytes": 2**20, "failed": None}


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        ({"cleared": False, "orphans": []}, Verdict.OK, "none"),
        ({"cleared": False, "orphans": [ORPHAN]}, Verdict.WARNING, "data drive /s/instances/i-1 (of i-1, 1 MiB)"),
        ({"cleared": False, "orphans": [ORPHAN] * 7}, Verdict.WARNING, "and 2 more"),
        ({"cleared": True, "orphans": [ORPHAN]}, Verdict.OK, "until `mvm node gc`"),
        ({"cleared": True, "orphans": [{**ORPHAN, "failed": "busy"}]}, Verdict.WARNING, "could not be cleared away"),
    ],
)
def test_orphans_are_told_and_cleared_away_only_when_asked_for(
    answer: dict[str, Any], verdict: Verdict, said: str
) -> None:
    finding = judged({"aside": "/s/orphans", **answer})
    assert (finding.verdict, said in finding.found) == (verdict, True)
    assert (finding.remedy is not None) == (verdict is Verdict.WARNING)


@pytest.mark.parametrize("fix", [False, True])
def test_the_doctor_has_the_agent_look_for_orphans(agent: ScriptedAgent, mvm: Type, fix: bool) -> None:
    agent.answers["Orphans"] = {"cleared": fix, "aside": "/s/orphans", "orphans": [ORPHAN]}
    typed = mvm("doctor", "--json", *(["--fix"] if fix else []))
    assert agent.asked("Orphans") == {"clear": fix}
    line = next(check for check in typed.document["checks"] if check["name"] == "orphans")
    assert line["verdict"] == ("ok" if fix else "warning")


def test_without_an_agent_nothing_is_looked_for_and_none_is_started(
    mvm: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVM_NO_AUTOSTART", "1")
    monkeypatch.chdir(tmp_path)
    typed = mvm("--run-dir", "/tmp/mvm-nobody-there", "--state-dir", "s", "doctor", "--json")
    line = next(check for check in typed.document["checks"] if check["name"] == "orphans")
    assert line["found"] == "not looked for: no agent runs"
    assert os.listdir(tmp_path) == []
