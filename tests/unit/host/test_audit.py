"""The audit: what it records, how it proves that nobody changed it, what it survives."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.standins.waiting import until

from mvm.host import audit, line_files
from mvm.host.audit import NO_LINE, AuditAction, AuditLog
from mvm.model.errors import InvalidInput
from mvm.model.ids import InstanceId, PoolId, TenantId
from mvm.telemetry.redaction import REDACTED, SECRETS

ALICE, BOB = TenantId("alice"), TenantId("bob")
NOW = datetime(2026, 11, 22, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    log = AuditLog(tmp_path / "audit", clock=lambda: NOW)
    yield log
    await log.close()


def records(tmp_path: Path, tenant: TenantId = ALICE) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "audit" / f"{tenant}.jsonl").read_bytes().splitlines()]


def fill(log: AuditLog, count: int, size: int = 10) -> None:
    for number in range(count):
        log.record(ALICE, AuditAction.INSTANCE_WOKEN, "test", detail=f"{number} {'x' * size}")


async def test_a_line_says_who_did_what_to_whom_and_when(log: AuditLog, tmp_path: Path) -> None:
    log.record(ALICE, AuditAction.TENANT_CREATED, "cli:root")
    log.record(
        ALICE,
        AuditAction.INSTANCE_SLEPT,
        "policy",
        pool_id=PoolId("workers"),
        instance_id=InstanceId("i-00000001"),
        detail="idle ü\n\ud800",
    )
    first, second = records(tmp_path)
    assert first == {
        "timestamp": "2026-11-22T12:00:00.250000Z",
        "tenant_id": "alice",
        "action": "TenantCreated",
        "actor": "cli:root",
        "previous": NO_LINE,
    }
    assert second | {"previous": ""} == {
        "timestamp": "2026-11-22T12:00:00.250000Z",
        "tenant_id": "alice",
        "pool_id": "workers",
        "instance_id": "i-00000001",
        "action": "InstanceSlept",
        "actor": "policy",
        "detail": "idle ü\n�",
        "previous": "",
    }
    assert log.verify(ALICE).intact


async def test_tenants_have_files_of_their_own_that_only_the_agent_reads(log: AuditLog, tmp_path: Path) -> None:
    log.record(ALICE, AuditAction.TENANT_CREATED, "test")
    log.record(BOB, AuditAction.TENANT_CREATED, "test")
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == ["alice.jsonl", "bob.jsonl"]
    assert {r["tenant_id"] for r in records(tmp_path)} == {"alice"}
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "audit").iterdir()} == {0o600}


async def test_a_tenant_id_is_never_a_path(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        log.record(TenantId("../alice"), AuditAction.TENANT_CREATED, "test")


async def test_secrets_are_not_recorded(log: AuditLog, tmp_path: Path) -> None:
    SECRETS.register("test-audit", ["correct-horse-battery"])
    try:
        log.record(ALICE, AuditAction.SECRETS_SET, "cli", detail="got correct-horse-battery and 123456789:" + "A" * 35)
    finally:
        SECRETS.forget("test-audit")
    assert records(tmp_path)[0]["detail"] == f"got {REDACTED} and {REDACTED}"


async def test_a_very_long_detail_is_cut(log: AuditLog, tmp_path: Path) -> None:
    log.record(ALICE, AuditAction.TRANSITION_DEFERRED, "policy", detail="\x00" * 1_000_000)
    assert len(records(tmp_path)[0]["detail"]) == audit.MAX_DETAIL


async def test_the_chain_goes_on_after_a_restart(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 3)
    await log.close()
    again = AuditLog(tmp_path / "audit")
    again.record(ALICE, AuditAction.INSTANCE_STOPPED, "test")
    verdict = again.verify(ALICE)
    await again.close()
    assert (verdict.intact, verdict.lines) == (True, 4)


@pytest.mark.parametrize("line", [1, 2, 5])
async def test_a_changed_line_is_found(log: AuditLog, tmp_path: Path, line: int) -> None:
    fill(log, 5)
    path = tmp_path / "audit/alice.jsonl"
    lines = path.read_text().splitlines()
    lines[line - 1] = lines[line - 1].replace('"test"', '"evil"')
    path.write_text("\n".join(lines) + "\n")
    broken = log.verify(ALICE).broken
    if line < 5:
        assert broken is not None
        assert (broken.file, broken.line) == (path, line + 1)  # the next one does not fit it
    else:
        # Nothing follows the last line: only its digest, kept elsewhere, or the next record tells.
        log.record(ALICE, AuditAction.INSTANCE_STOPPED, "test")
        broken = log.verify(ALICE).broken
        assert broken is not None
        assert broken.line == 6


@pytest.mark.parametrize("removed", [0, 1, 3])
async def test_a_removed_line_is_found(log: AuditLog, tmp_path: Path, removed: int) -> None:
    fill(log, 5)
    path = tmp_path / "audit/alice.jsonl"
    lines = path.read_text().splitlines()
    del lines[removed]
    path.write_text("\n".join(lines) + "\n")
    broken = log.verify(ALICE).broken
    assert broken is not None
    assert broken.line == removed + 1


async def test_something_that_is_no_audit_line_is_named(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 2)
    with (tmp_path / "audit/alice.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    verdict = log.verify(ALICE)
    assert verdict.lines == 2
    assert verdict.broken is not None
    assert (verdict.broken.line, verdict.broken.problem) == (3, "this is not a line of an audit")


async def test_an_end_that_was_cut_off_is_missed(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 4)
    head = log.verify(ALICE).head
    path = tmp_path / "audit/alice.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]))
    cut = log.verify(ALICE)
    assert cut.broken == audit.BrokenLine(path, 4, "lines were cut off the end")
    later = AuditLog(tmp_path / "audit", clock=lambda: NOW)
    try:
        assert later.verify(ALICE).intact, "over a restart only the head tells"
        assert later.verify(ALICE).head != head
    finally:
        await later.close()


async def test_the_newest_lines_of_one_instance_are_found(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ROTATE_BYTES", 1000)
    pool, instance = PoolId("workers"), InstanceId("i-00000001")
    for number in range(12):
        about = instance if number % 2 else InstanceId("i-00000002")
        action = AuditAction.INSTANCE_SLEPT if number < 10 else AuditAction.TRANSITION_DEFERRED
        log.record(ALICE, action, "test", pool_id=pool, instance_id=about, detail=str(number))
    assert [line["detail"] for line in log.recent(ALICE, 3, instance_id=instance)] == ["7", "9", "11"]
    slept = log.recent(ALICE, 2, actions={AuditAction.INSTANCE_SLEPT}, pool_id=pool)
    assert [(line["detail"], line["actor"]) for line in slept] == [("8", "test"), ("9", "test")]
    assert log.recent(BOB, 3) == []
    assert not (tmp_path / "audit/bob.jsonl").exists()


async def test_an_unfinished_last_line_is_kept_aside_and_said(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 3)
    await log.close()
    path = tmp_path / "audit/alice.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = AuditLog(tmp_path / "audit", clock=lambda: NOW)
    again.record(ALICE, AuditAction.INSTANCE_STOPPED, "test")
    verdict = again.verify(ALICE)
    await again.close()
    assert (verdict.intact, verdict.lines) == (True, 4)
    repaired = records(tmp_path)[2]
    assert repaired["action"] == "AuditRepaired"
    [aside] = path.parent.glob("alice.jsonl.torn-*")
    assert aside.name in repaired["detail"]
    assert aside.read_bytes() == whole.splitlines()[2][:-19]
    assert records(tmp_path)[3]["action"] == "InstanceStopped"


async def test_lines_that_a_full_disk_did_not_take_are_counted_in_the_chain(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, 2)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr("mvm.host.line_files.os.write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        for _ in range(3):
            with pytest.raises(OSError, match="bytes could be written"):
                log.record(ALICE, AuditAction.INSTANCE_SLEPT, "test")
    fill(log, 1)
    assert [record["action"] for record in records(tmp_path)] == ["InstanceWoken"] * 2 + [
        "AuditRepaired",
        "InstanceWoken",
    ]
    assert records(tmp_path)[2]["detail"].startswith("lines that could not be written before this one: 3")
    assert log.verify(ALICE).intact
    fill(log, 1)
    assert [record["action"] for record in records(tmp_path)].count("AuditRepaired") == 1


async def test_blocks_of_zeros_that_a_power_cut_left_are_kept_aside(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 2)
    await log.close()
    path = tmp_path / "audit/alice.jsonl"
    with path.open("ab") as file:
        file.write(bytes(200_000))
    again = AuditLog(tmp_path / "audit", clock=lambda: NOW)
    verdict = again.verify(ALICE)
    await again.close()
    assert (verdict.intact, verdict.lines) == (True, 3)
    assert path.stat().st_size < 2000


async def test_rotation_keeps_three_files_and_the_chain(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ROTATE_BYTES", 2000)
    fill(log, 100)
    names = sorted(path.name for path in (tmp_path / "audit").iterdir())
    assert names == ["alice.jsonl", "alice.jsonl.1", "alice.jsonl.2", "alice.jsonl.3"]
    assert all((tmp_path / "audit" / name).stat().st_size < 2000 for name in names)
    verdict = log.verify(ALICE)
    assert verdict.intact
    assert 10 < verdict.lines < 100
    (tmp_path / "audit/alice.jsonl.1").unlink()
    broken = log.verify(ALICE).broken
    assert broken is not None
    assert (broken.file.name, broken.line) == ("alice.jsonl", 1)


async def test_rotated_files_that_vanish_are_missed(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ROTATE_BYTES", 2000)
    fill(log, 100)
    for number in (1, 2, 3):
        (tmp_path / f"audit/alice.jsonl.{number}").unlink()
    assert not log.verify(ALICE).intact


async def test_destroy_leaves_nothing_of_that_tenant(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 3)
    log.record(BOB, AuditAction.TENANT_CREATED, "test")
    (tmp_path / "audit/alice.jsonl.1").write_text("old\n")
    (tmp_path / "audit/alice.jsonl.torn-20261122T000000000000").write_text("old")
    log.destroy(ALICE)
    log.destroy(ALICE)
    assert [path.name for path in (tmp_path / "audit").iterdir()] == ["bob.jsonl"]
    log.record(ALICE, AuditAction.TENANT_CREATED, "test")
    assert log.verify(ALICE).lines == 1


async def test_a_disk_that_cannot_sync_is_tried_again_with_the_next_line(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_files, "SYNC_SECONDS", 0.01)
    synced, failed = line_files.sync, threading.Event()
    reached: list[Path] = []

    def sync(path: Path) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, "the disk has gone")
        reached.append(path)
        synced(path)

    monkeypatch.setattr(line_files, "sync", sync)
    fill(log, 1)
    await until(failed.is_set, what="a sync that fails")
    fill(log, 1)
    await until(lambda: reached, what="the next sync")


async def test_an_audit_of_nothing_is_intact(log: AuditLog) -> None:
    verdict = log.verify(ALICE)
    assert (verdict.intact, verdict.lines, verdict.head) == (True, 0, NO_LINE)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=8), cut=st.integers(0, 300), data=st.data())
async def test_whatever_is_recorded_and_wherever_it_is_torn_the_chain_holds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("audit")
    log = AuditLog(directory)
    for text in texts:
        log.record(ALICE, AuditAction.WAKE_REFUSED, text, detail=text)
    await log.close()
    path = directory / "alice.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: max(len(content) - cut, 0)])
    again = AuditLog(directory)
    again.record(ALICE, AuditAction.WAKE_REFUSED, "after")
    verdict = again.verify(ALICE)
    await again.close()
    assert verdict.intact
    whole_lines = content[: max(len(content) - cut, 0)].count(b"\n")
    assert verdict.lines in (whole_lines + 1, whole_lines + 2)
