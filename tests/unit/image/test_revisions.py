"""The store of image revisions."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest
from tests.unit.image.samples import QuickBuilder, inputs

from mvm.image.base import FILES, MANIFEST, Manifest
from mvm.image.revisions import Revisions
from mvm.model.errors import MvmError, NotFound
from mvm.openclaw.install import Progress


@pytest.fixture
def revisions(tmp_path: Path) -> Revisions:
    return Revisions(tmp_path / "images")


def quiet(_progress: Progress) -> None:
    pass


def names(revisions: Revisions) -> list[str]:
    return sorted(path.name for path in revisions.directory.iterdir() if path.name != ".locks")


def test_a_revision_is_named_by_its_inputs_and_whole(revisions: Revisions) -> None:
    wanted = inputs()
    directory = revisions.build(QuickBuilder(), wanted, quiet)
    assert directory == revisions.path(wanted.digest)
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, MANIFEST])
    assert Manifest.read(directory) == revisions.manifest(wanted.digest)
    assert [revision.digest for revision in revisions.all()] == [wanted.digest]


@pytest.mark.parametrize("umask", [0o077, 0o027])
def test_machines_of_other_users_can_read_it_whatever_the_umask(revisions: Revisions, umask: int) -> None:
    before = os.umask(umask)
    try:
        directory = revisions.build(QuickBuilder(), inputs(), quiet)
        directory = revisions.build(QuickBuilder(version="other bytes"), inputs(), quiet, force=True)
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}


def test_the_same_inputs_are_built_once(revisions: Revisions) -> None:
    builder = QuickBuilder()
    for _ in range(3):
        revisions.build(builder, inputs(), quiet)
    assert builder.builds == 1


def test_other_inputs_are_another_revision(revisions: Revisions) -> None:
    builder = QuickBuilder()
    revisions.build(builder, inputs("1"), quiet)
    revisions.build(builder, inputs("2"), quiet)
    revisions.build(builder, inputs("2", profile="python"), quiet)
    assert len(revisions.all()) == 3


def test_who_runs_the_image_does_not_make_it_another(revisions: Revisions) -> None:
    assert inputs(role="gateway").digest == inputs(role="worker").digest


def test_a_forced_build_takes_the_place_of_the_one_there(revisions: Revisions) -> None:
    directory = revisions.build(QuickBuilder(version="1"), inputs(), quiet)
    with (directory / FILES[0]).open() as held:
        revisions.build(QuickBuilder(version="other bytes"), inputs(), quiet, force=True)
        assert held.read() == "1"
    assert (directory / FILES[0]).read_text() == "other bytes"
    assert names(revisions) == [inputs().digest]


def test_a_build_that_fails_leaves_nothing(revisions: Revisions) -> None:
    builder = QuickBuilder()

    def fail() -> None:
        raise MvmError("the disk is upside down")

    builder.before_files = fail
    with pytest.raises(MvmError, match="upside down"):
        revisions.build(builder, inputs(), quiet)
    assert names(revisions) == []
    assert not revisions.has(inputs().digest)


def test_what_a_killed_build_left_is_no_revision_and_goes_with_the_next(revisions: Revisions) -> None:
    left = revisions.directory / f".staging-{inputs().digest}-x"
    left.mkdir(parents=True)
    (left / FILES[0]).write_text("half")
    assert revisions.all() == []
    revisions.build(QuickBuilder(), inputs(), quiet)
    assert names(revisions) == [inputs().digest]


def test_left_overs_are_cleared_but_not_what_is_being_built(revisions: Revisions) -> None:
    dead, alive = (revisions.directory / f".staging-{inputs(v).digest}-x" for v in ("dead", "alive"))
    for path in (dead, alive, revisions.directory / ".removed-x"):
        path.mkdir(parents=True)
    (revisions.directory / ".locks").mkdir()
    with (revisions.directory / ".locks" / inputs("alive").digest).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        revisions.clear_unfinished()
    assert names(revisions) == [alive.name]


def test_who_asks_for_what_is_being_built_waits_for_it(revisions: Revisions) -> None:
    builder, told = QuickBuilder(), threading.Event()
    builder.may_go_on.clear()
    first = threading.Thread(target=lambda: revisions.build(builder, inputs(), quiet))
    first.start()
    assert builder.began.wait(10)

    def waiting(progress: Progress) -> None:
        assert "waiting for another build" in progress.text
        told.set()
        builder.may_go_on.set()

    assert revisions.build(builder, inputs(), waiting).is_dir()
    first.join(10)
    assert told.is_set()
    assert builder.builds == 1


def test_an_unknown_revision_is_not_found(revisions: Revisions) -> None:
    for name in ("", "0" * 32, "../../etc", ".cache"):
        with pytest.raises(NotFound):
            revisions.path(name)


def test_a_broken_manifest_is_named(revisions: Revisions) -> None:
    directory = revisions.build(QuickBuilder(), inputs(), quiet)
    (directory / MANIFEST).write_text("{")
    with pytest.raises(MvmError, match=r"manifest\.json cannot be read"):
        revisions.all()
    (directory / MANIFEST).write_text("{}")
    with pytest.raises(MvmError, match=r"manifest\.json cannot be read: digest: is missing"):
        revisions.all()


def test_removing_is_for_revisions_only(revisions: Revisions) -> None:
    directory = revisions.build(QuickBuilder(), inputs(), quiet)
    (revisions.directory / ".cache").mkdir()
    revisions.remove(".cache")
    revisions.remove("..")
    revisions.remove(directory.name)
    revisions.remove(directory.name)
    assert names(revisions) == [".cache"]
