"""The vault: nobody opens a record without its key, under another name, or after it was changed."""

from __future__ import annotations

import base64
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm.model.errors import MvmError, Refused
from mvm.security.vault import Vault
from mvm.telemetry.redaction import REDACTED, SECRETS, redact

NAME = "secrets/alice/telegram/TELEGRAM_BOT_TOKEN"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "secrets.key"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    yield Vault.load(path)
    SECRETS.forget(NAME)


def test_the_key_file_is_made_on_first_use_for_its_owner_only(vault: Vault, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["secrets.key"]
    assert Vault.load(path).key_id == vault.key_id


def test_what_was_sealed_opens_under_its_name_also_after_a_restart(vault: Vault, path: Path) -> None:
    sealed = vault.seal("s3cret value", context=NAME)
    assert "s3cret" not in sealed
    assert "s3cret" not in base64.urlsafe_b64decode(sealed.split(".")[2]).decode(errors="replace")
    assert Vault.load(path).open(sealed, context=NAME) == "s3cret value"


def test_sealing_twice_gives_different_records(vault: Vault) -> None:
    assert len({vault.seal("the same", context=NAME) for _ in range(50)}) == 50


def test_a_record_does_not_open_under_another_name(vault: Vault) -> None:
    sealed = vault.seal("s3cret value", context=NAME)
    with pytest.raises(MvmError, match="belongs to another name") as refusal:
        vault.open(sealed, context="secrets/bob/telegram/TELEGRAM_BOT_TOKEN")
    assert "s3cret" not in str(refusal.value)


def test_every_changed_character_is_noticed(vault: Vault) -> None:
    sealed = vault.seal("s3cret", context=NAME)
    for index, letter in enumerate(sealed):
        changed = sealed[:index] + ("A" if letter != "A" else "B") + sealed[index + 1 :]
        with pytest.raises(MvmError):
            vault.open(changed, context=NAME)


@pytest.mark.parametrize(
    "garbage", ["", ".", "v1", "v1..", "v2.00000000.AAAA", "v1.zz.!!", "\ud800", "v1." + "x" * 9999]
)
def test_what_is_no_record_is_refused(vault: Vault, garbage: str) -> None:
    with pytest.raises(MvmError) as refusal:
        vault.open(garbage, context=NAME)
    assert refusal.value.hint


def test_a_record_of_another_key_says_so(vault: Vault, path: Path) -> None:
    sealed = vault.seal("s3cret", context=NAME)
    path.unlink()
    with pytest.raises(MvmError, match="is not in") as refusal:
        Vault.load(path).open(sealed, context=NAME)
    assert "restore the key file" in (refusal.value.hint or "")


def test_after_a_rotation_old_records_open_and_new_ones_use_the_new_key(vault: Vault, path: Path) -> None:
    old_id = vault.key_id
    sealed = vault.seal("s3cret", context=NAME)
    vault.rotate()
    assert vault.key_id != old_id
    assert not vault.is_current(sealed)
    assert vault.open(sealed, context=NAME) == "s3cret"
    assert vault.is_current(vault.seal("s3cret", context=NAME))
    again = Vault.load(path)
    assert again.key_id == vault.key_id
    assert again.open(sealed, context=NAME) == "s3cret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secrets.key"]


def test_a_rotation_that_cannot_be_written_changes_nothing(vault: Vault, path: Path) -> None:
    before = vault.key_id
    content = path.read_bytes()
    path.unlink()
    path.mkdir()  # nothing can be renamed over a directory
    with pytest.raises(MvmError, match="cannot be written"):
        vault.rotate()
    assert vault.key_id == before
    assert list(path.parent.iterdir()) == [path]
    path.rmdir()
    path.write_bytes(content)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777, 0o610])
def test_a_key_file_that_others_may_touch_is_refused(vault: Vault, path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(Refused, match="open to others") as refusal:
        Vault.load(path)
    assert f"chmod 600 {path}" in (refusal.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_file_of_another_user_is_refused(vault: Vault, path: Path) -> None:
    os.chown(path, 12345, -1)
    with pytest.raises(Refused, match="another user"):
        Vault.load(path)


@pytest.mark.parametrize(
    "content",
    ["", "# only a comment\n", "deadbeef\n", "deadbeef AAAA 2026-11-22T00:00:00Z\n", "\x00" * 100, "x y z\n" * 50_000],
)
def test_a_damaged_key_file_is_never_replaced(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(MvmError, match="damaged") as refusal:
        Vault.load(path)
    assert "backup" in (refusal.value.hint or "")
    assert path.read_text() == content


def test_a_mistyped_key_is_noticed(vault: Vault, path: Path) -> None:
    text = path.read_text()
    _, key, _ = text.splitlines()[-1].split()
    path.write_text(text.replace(key, base64.b64encode(bytes(32)).decode()))
    with pytest.raises(MvmError, match="not the one that its id names"):
        Vault.load(path)


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MvmError, match="cannot be read or made"):
        Vault.load(tmp_path / "file" / "secrets.key")


def test_of_many_first_uses_at_once_one_key_stands(path: Path) -> None:
    path.parent.mkdir()
    ids: list[str] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        ids.append(Vault.load(path).key_id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert list(path.parent.iterdir()) == [path]


def test_what_was_sealed_or_opened_does_not_reach_the_log(vault: Vault, path: Path) -> None:
    sealed = vault.seal("hunter2-hunter2", context=NAME)
    assert redact("the password is hunter2-hunter2!") == f"the password is {REDACTED}!"
    SECRETS.forget(NAME)
    Vault.load(path).open(sealed, context=NAME)
    assert redact("hunter2-hunter2") == REDACTED


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=500), context=st.text("abc/-_", max_size=40))
def test_whatever_is_sealed_is_opened(tmp_path_factory: pytest.TempPathFactory, text: str, context: str) -> None:
    vault = Vault.load(tmp_path_factory.getbasetemp() / "property.key")
    try:
        assert vault.open(vault.seal(text, context=context), context=context) == text
    finally:
        SECRETS.forget(context)
