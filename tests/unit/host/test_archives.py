"""Data drives in a backup: everything comes back as it was, and nothing gets out of its place."""

from __future__ import annotations

import io
import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard

from mvm.host.archives import MANIFEST, ArchivedInstance, ArchiveWriter, Manifest, read_manifest, unpack
from mvm.model.entities import Tenant, TenantNetwork
from mvm.model.errors import InvalidInput
from mvm.model.ids import InstanceId, PoolId, TenantId, tenant_net_id
from mvm.security import sealed_files
from mvm.security.sealed_files import SealedWriter

PASSPHRASE = "correct horse battery"
ONE = InstanceId("i-00000001")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_files, "SCRYPT", {"log2_n": 4, "r": 1, "p": 1})


def manifest(version: int = 1) -> Manifest:
    return Manifest(
        version=version,
        made_at="2026-11-22T18:00:00Z",
        made_by="0.1.0",
        tenant=Tenant(
            tenant_id=TenantId("alice"),
            network=TenantNetwork(tenant_net_id=tenant_net_id(1), ipv4_subnet="10.240.1.0/24"),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
        pools=(),
        users=(),
        instances=(ArchivedInstance(instance_id=ONE, pool_id=PoolId("w"), runtime="process", drive="directory"),),
        secrets={"anthropic/ANTHROPIC_API_KEY": "sk-secret-value"},
    )


def saved(tmp_path: Path, state_dir: Path, told: Manifest | None = None) -> Path:
    path = tmp_path / "backup"
    writer = ArchiveWriter(path, PASSPHRASE)
    writer.manifest(told or manifest())
    writer.drive(ONE, state_dir)
    writer.finish()
    return path


def made_by_hand(tmp_path: Path, *members: tarfile.TarInfo) -> Path:
    """A backup whose members nobody checked."""
    path, plain = tmp_path / "backup", io.BytesIO()
    text = manifest().model_dump_json().encode()
    first = tarfile.TarInfo(MANIFEST)
    first.size = len(text)
    with tarfile.open(fileobj=plain, mode="w|") as tar:
        tar.addfile(first, io.BytesIO(text))
        for member in members:
            tar.addfile(member)
    with path.open("wb") as file:
        writer = SealedWriter(file, PASSPHRASE)
        writer.write(zstandard.compress(plain.getvalue()))
        writer.close()
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_directory_comes_back_with_modes_links_and_times_and_without_what_is_no_file(tmp_path: Path) -> None:
    data = tmp_path / "before/data"
    (data / "openclaw/empty").mkdir(parents=True)
    notes = data / "openclaw/notes.txt"
    notes.write_text("remember")
    notes.chmod(0o640)
    os.utime(notes, (1_700_000_000, 1_700_000_000))
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "pipe")
    path = saved(tmp_path, data.parent)
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"sk-secret-value" not in path.read_bytes()
    assert read_manifest(path, PASSPHRASE) == manifest()
    (tmp_path / "after").mkdir()
    unpack(path, PASSPHRASE, {ONE: tmp_path / "after"})
    after = tmp_path / "after/data"
    found = after / "openclaw/notes.txt"
    assert (found.read_text(), found.stat().st_mode & 0o777) == ("remember", 0o640)
    assert found.stat().st_mtime == 1_700_000_000
    assert os.readlink(after / "link") == "/etc/passwd"
    assert (after / "openclaw/empty").is_dir()
    assert not (after / "pipe").exists()


def test_an_image_stays_sparse(tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    with (before / "data.img").open("wb") as image:
        image.truncate(64 * 2**20)
        for place in (0, 10 * 2**20, 64 * 2**20 - 4096):
            image.seek(place)
            image.write(os.urandom(4096))
    path = saved(tmp_path, before)
    assert path.stat().st_size < 200_000
    (tmp_path / "after").mkdir()
    unpack(path, PASSPHRASE, {ONE: tmp_path / "after"})
    image_after = tmp_path / "after/data.img"
    assert image_after.read_bytes() == (before / "data.img").read_bytes()
    assert image_after.stat().st_blocks * 512 < 2**20


def test_a_newer_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "before/data").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="version 2"):
        read_manifest(saved(tmp_path, tmp_path / "before", manifest(version=2)), PASSPHRASE)


def test_a_backup_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "before/data").mkdir(parents=True)
    (tmp_path / "before/data/big").write_bytes(os.urandom(3 * 2**20))
    path = saved(tmp_path, tmp_path / "before")
    os.truncate(path, path.stat().st_size - 2**20)
    with pytest.raises(InvalidInput, match="cut off"):
        read_manifest(path, PASSPHRASE)


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("/etc/evil"),
        member(f"{ONE}/data/../../evil"),
        member(f"{ONE}/snapshot/ram"),
        member("i-00000002/data/x"),
        member(f"{ONE}/data", tarfile.SYMTYPE, "/etc"),
        member(f"{ONE}/data/x", tarfile.LNKTYPE, "/etc/passwd"),
        member(f"{ONE}/data/x", tarfile.CHRTYPE),
    ],
    ids=lambda evil: f"{evil.name} {evil.type.decode()}",
)
def test_what_does_not_belong_into_a_backup_is_refused(tmp_path: Path, evil: tarfile.TarInfo) -> None:
    with pytest.raises(InvalidInput, match="does not belong"):
        read_manifest(made_by_hand(tmp_path, evil), PASSPHRASE)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = member(f"{ONE}/data/x", tarfile.SYMTYPE, str(outside))
    path = made_by_hand(tmp_path, link, member(f"{ONE}/data/x/evil"))
    (tmp_path / "after").mkdir()
    with pytest.raises(FileExistsError):
        unpack(path, PASSPHRASE, {ONE: tmp_path / "after"})
    assert list(outside.iterdir()) == []
