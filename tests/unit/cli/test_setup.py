"""`mvm setup firecracker`, as it is typed."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Type
from tests.unit.runtime.test_firecracker_install import NAME, VERSION, release

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the release in it is one for x86_64")


@pytest.fixture
def tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release that is here already."""
    monkeypatch.setenv("MVM_PROGRAMS_DIR", str(tmp_path / "programs"))
    path = tmp_path / NAME
    path.write_bytes(release())
    return path


def test_a_release_is_installed_and_said_where(mvm: Type, tarball: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    words = ("setup", "firecracker", "--version", f"v{VERSION}", "--from", str(tarball), "--sha256", digest.upper())
    first = mvm(*words, "--json").document
    assert first == {
        "version": VERSION,
        "directory": str(tmp_path / "programs/firecracker" / VERSION),
        "sha256": digest,
        "source": str(tarball),
        "installed": True,
    }
    assert mvm(*words, "--json").document == first | {"installed": False}
    typed = mvm(*words)
    assert "they were installed already" in typed.out
    assert "mvm doctor" in typed.out


def test_what_is_wrong_is_said_with_what_to_do(mvm: Type, tarball: Path) -> None:
    typed = mvm("setup", "firecracker", "--from", str(tarball))
    assert typed.status == 1
    assert "nothing says what" in typed.error[0]
    assert "--sha256" in typed.error[1]
    assert mvm("setup", "firecracker", "--sha256", "abc").status == 2
