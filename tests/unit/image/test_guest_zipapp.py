"""The guest's program: the same bytes every time, and it runs on Python alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from mvm.image.guest_zipapp import build_zipapp
from mvm.model.errors import MvmError

BUILD = """
import sys
from pathlib import Path
from mvm.image.guest_zipapp import build_zipapp
build_zipapp(Path(sys.argv[1]))
"""


def test_two_builds_in_different_processes_are_the_same_bytes(tmp_path: Path) -> None:
    for number in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", BUILD, str(tmp_path / number)],
            env={"PYTHONHASHSEED": number},
            check=True,
            timeout=60,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert build_zipapp(tmp_path / "1") == f"sha256:{hashlib.sha256((tmp_path / '2').read_bytes()).hexdigest()}"


def test_what_is_right_already_is_not_written_again(tmp_path: Path) -> None:
    target = tmp_path / "guest.pyz"
    build_zipapp(target)
    before = target.stat()
    build_zipapp(target)
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    target.write_bytes(b"broken")
    build_zipapp(target)
    assert target.stat().st_size == before.st_size
    assert [path.name for path in tmp_path.iterdir()] == ["guest.pyz"]


def test_it_runs_on_the_standard_library_alone(tmp_path: Path) -> None:
    target = tmp_path / "guest.pyz"
    build_zipapp(target)
    check = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import mvm.guest.agent, mvm.guest.router, mvm.guest.supervisor, mvm.guest.openclaw_ctl;"
        "print(mvm.guest.agent.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", check, str(target)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == str(target / "mvm/guest/agent.pyc"), "the compiled form is what is used"
    usage = subprocess.run(
        [sys.executable, "-I", "-S", str(target)], capture_output=True, text=True, check=False, timeout=60
    )
    assert usage.returncode == 2
    assert "guest.pyz supervise" in usage.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MvmError, match="cannot be written to"):
        build_zipapp(tmp_path / "file/guest.pyz")
