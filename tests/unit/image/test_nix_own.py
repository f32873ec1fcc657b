"""mvm's own flake as it is handed to nix."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from mvm.image.nix import own
from mvm.image.nix.own import own_flake
from mvm.model.errors import Unavailable


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(own.VARIABLE, raising=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in ("nix/flake.nix", "src/mvm/guest/agent.py", "src/mvm/__pycache__/x.pyc", ".venv/huge", "tests/x.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "src/link").symlink_to("/etc/hostname")
    return root


def archive(address: str) -> Path:
    assert address.startswith("file:///")
    assert address.endswith(".tar?dir=nix")
    return Path(address.removeprefix("file://").removesuffix("?dir=nix"))


def test_the_flake_and_its_sources_are_packed_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    with tarfile.open(archive(own_flake(tmp_path / "cache", checkout))) as packed:
        assert packed.getnames() == ["mvm/nix/flake.nix", "mvm/src/mvm/guest/agent.py"]
        assert {(member.mtime, member.uid, member.mode) for member in packed} == {(0, 0, 0o644)}


def test_the_same_files_are_the_same_flake_and_others_another(checkout: Path, tmp_path: Path) -> None:
    first = own_flake(tmp_path / "cache", checkout)
    os.utime(checkout / "nix/flake.nix", (1, 1))
    assert own_flake(tmp_path / "cache", checkout) == first
    assert own_flake(tmp_path / "another", checkout) != first
    assert archive(own_flake(tmp_path / "another", checkout)).name == archive(first).name
    (checkout / "nix/flake.nix").write_text("changed")
    assert own_flake(tmp_path / "cache", checkout) != first
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_flake_that_is_needed_is_no_garbage(checkout: Path, tmp_path: Path) -> None:
    packed = archive(own_flake(tmp_path / "cache", checkout))
    os.utime(packed, (1, 1))
    own_flake(tmp_path / "cache", checkout)
    assert packed.stat().st_mtime > 1


def test_another_place_of_the_flake_can_be_named(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(own.VARIABLE, "github:somebody/mvm?dir=nix")
    assert own_flake(tmp_path / "cache", checkout) == "github:somebody/mvm?dir=nix"
    assert not (tmp_path / "cache").exists()


def test_an_installation_without_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"has no nix/flake\.nix") as refused:
        own_flake(tmp_path / "cache", tmp_path)
    assert own.VARIABLE in (refused.value.hint or "")
