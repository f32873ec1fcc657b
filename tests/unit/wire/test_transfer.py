"""Files on their way out of a guest."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from mvm.wire import transfer
from mvm.wire.transfer import NothingCame, TransferError

CONTENT = os.urandom(700_000)
NAMES = ("vmlinux", "rootfs.erofs", "manifest.json")


class Sink:
    """Stands for a writer: what was written is kept."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        pass


async def sent(directory: Path, *names: str) -> bytes:
    sink = Sink()
    await transfer.send(sink, directory, names)  # type: ignore[arg-type]
    return bytes(sink.written)


async def receive(stream: bytes, target: Path, *names: str, most: int = 10**6) -> list[tuple[int, int]]:
    """Take a stream in; returns what was told of it."""
    target.mkdir()
    reader = asyncio.StreamReader()
    reader.feed_data(stream)
    reader.feed_eof()
    told: list[tuple[int, int]] = []
    await transfer.receive(reader, target, names, most=most, on_bytes=lambda done, size: told.append((done, size)))
    return told


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "real").write_bytes(CONTENT)
    (directory / "rootfs.erofs").symlink_to("real")
    (directory / "manifest.json").write_bytes(b"")
    return directory


async def test_a_connection_that_ends_before_it_begins_offers_nothing(tmp_path: Path) -> None:
    with pytest.raises(NothingCame):
        await receive(b"", tmp_path / "target", *NAMES)


async def test_what_is_there_arrives_as_it_is(source: Path, tmp_path: Path) -> None:
    told = await receive(await sent(source, *NAMES), tmp_path / "target", *NAMES)
    found = {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()}
    assert found == {"rootfs.erofs": CONTENT, "manifest.json": b""}
    assert not (tmp_path / "target/rootfs.erofs").is_symlink()
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted({done for done, _ in told})


async def test_only_plain_files_are_sent(source: Path) -> None:
    (source / "vmlinux").mkdir()
    with pytest.raises(OSError, match="not a plain file"):
        await sent(source, "vmlinux")


def header(name: str, size: object) -> bytes:
    return f'{{"name": "{name}", "size": {size}}}\n'.encode()


DIGEST = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"{", "it ended"),
        (b"{}\n", "something else came"),
        (header("../../etc/shadow", 3), "something else came"),
        (b'{"name": "vmlinux", "size": 3, "more": 1}\n', "something else came"),
        (header("vmlinux", -1), "is said to have -1 bytes"),
        (header("vmlinux", '"3"'), "is said to have 3 bytes"),
        (header("vmlinux", "true"), "is said to have True bytes"),
        (header("vmlinux", 2000), "is said to have 2000 bytes, and 1000 are left"),
        (header("vmlinux", 3) + b"ab", "it ended 1 bytes before the end of vmlinux"),
        (header("vmlinux", 3) + b"abd" + f'{{"sha256": "{DIGEST}"}}\n'.encode(), "is not what was sent"),
        (header("vmlinux", 3) + b"abc", "it ended"),
        (b"x" * 100_000, "of another form"),
        (b"[" * 2000 + b"\n", "of another form"),
        (b"[]\n", "of another form"),
    ],
)
async def test_anything_else_ends_it(stream: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=words):
        await receive(stream, tmp_path / "target", "vmlinux", most=1000)
    assert {path.name for path in (tmp_path / "target").iterdir()} <= {"vmlinux"}


async def test_the_limit_is_for_all_files_together(source: Path, tmp_path: Path) -> None:
    (source / "vmlinux").write_bytes(b"x" * 10)
    stream = await sent(source, "vmlinux", "real")
    with pytest.raises(TransferError, match=f"and {len(CONTENT) - 1} are left"):
        await receive(stream, tmp_path / "target", "vmlinux", "real", most=len(CONTENT) + 9)


async def test_who_sends_nothing_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.05)
    with pytest.raises(TransferError, match="nothing came"):
        await transfer.receive(asyncio.StreamReader(), tmp_path, NAMES, most=1, on_bytes=lambda *_: None)
