"""What building needs from its host, and the programs it is made of."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from tests.standins.waiting import until
from tests.unit.image.samples import CONTENTS

from mvm.image.base import BuildRequest, GuestContents
from mvm.image.commands import run
from mvm.image.debian import DebianBuilder, builder, host
from mvm.model.errors import InvalidInput, MvmError, TimedOut, Unavailable


def no_packages_missing() -> tuple[str, ...]:
    return ()


def test_all_that_is_missing_is_named_at_once_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, path: None if program in ("mmdebstrap", "lz4") else program)
    monkeypatch.setattr(host, "BUSYBOX", tmp_path / "busybox")
    with pytest.raises(Unavailable, match="mmdebstrap, lz4, busybox-static") as refused:
        DebianBuilder(tmp_path / "cache").resolve(BuildRequest(contents=CONTENTS), lambda progress: None)
    assert refused.value.hint == "apt-get install --yes mmdebstrap lz4 busybox-static"
    assert not (tmp_path / "cache").exists()


def test_a_host_without_apt_is_told_that_it_is_no_debian() -> None:
    reason, remedy = host.explain(("mmdebstrap", "apt", "dpkg"))
    assert "no Debian" in reason
    assert "Debian host" in remedy


def test_without_root_it_says_who_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder, "missing_packages", no_packages_missing)
    monkeypatch.setattr(builder.os, "geteuid", lambda: 1000)
    readiness = DebianBuilder(tmp_path).probe()
    assert not readiness.usable
    assert "made by root" in readiness.reason
    assert readiness.remedy


def test_an_unknown_profile_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder, "missing_packages", no_packages_missing)
    monkeypatch.setattr(builder.os, "geteuid", lambda: 0)
    with pytest.raises(InvalidInput, match="no profile 'huge'") as refused:
        DebianBuilder(tmp_path).resolve(BuildRequest(contents=CONTENTS, profile="huge"), lambda progress: None)
    assert refused.value.hint == "the profiles are: minimal, python"


def test_a_program_with_libraries_is_not_static(tmp_path: Path) -> None:
    assert not host.is_static(Path("/bin/sh"))
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert not host.is_static(tmp_path / "script")


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(MvmError, match=r"the step failed with status 3: one / two / three \(command: sh -c") as failed:
        run(["sh", "-c", "echo one >&2; echo two >&2; echo; echo three >&2; exit 3"], what="the step", hint="look")
    assert failed.value.hint == "look"


async def test_a_command_is_watched_and_ended_with_what_it_started(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    seen: list[str] = []

    def watch(written: str) -> None:
        seen.append(written)
        if "started" in written:
            raise Enough

    script = f"(sleep 60; touch {tmp_path / 'late'}) & echo $! > {tmp_path / 'pid'}; echo started >&2; wait"
    with pytest.raises(Enough):
        run(["sh", "-c", script], what="the step", hint="", watch=watch)
    child = Path("/proc") / (tmp_path / "pid").read_text().strip()

    def ended() -> bool:
        """The kernel takes its time with what was killed, and whoever inherits it with what has ended."""
        try:
            return "Z" in (child / "stat").read_text().split()[2]
        except OSError:
            return True

    await until(ended, what="the end of what the command had started")
    assert not (tmp_path / "late").exists()


def test_a_command_that_hangs_is_given_up() -> None:
    with pytest.raises(TimedOut, match="the step was given up"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], what="the step", hint="", limit=0.1)


def test_role_builder_has_an_image_of_its_own_without_openclaw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder, "missing_packages", no_packages_missing)
    monkeypatch.setattr(builder.os, "geteuid", lambda: 0)
    debian = DebianBuilder(tmp_path)
    assert [debian.serves(role) for role in ("builder", "worker", "gateway")] == ["builder", "", ""]
    only_mvms = GuestContents(zipapp=tmp_path / "guest.pyz", plugin_dir=tmp_path)
    with pytest.raises(TypeError, match="given nothing to put into an image"):
        debian.resolve(BuildRequest(contents=only_mvms, role="worker"), lambda progress: None)
