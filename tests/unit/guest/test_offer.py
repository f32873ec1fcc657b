"""`guest.pyz offer`: files for the host, once."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvm.guest.channel import DIRECTORY_VARIABLE, UnixChannel
from mvm.guest.offer import main, offer
from mvm.wire import transfer


@pytest.fixture
def channel() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mvm-") as name:  # short enough for sockets
        yield Path(name)


async def connect(channel: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as somebody listens."""
    while True:
        try:
            return await UnixChannel(channel).connect_own(transfer.PORT)
        except OSError:
            await asyncio.sleep(0)


async def test_the_first_who_connects_gets_it_and_then_it_ends(channel: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"first")
    (tmp_path / "target").mkdir()
    offering = asyncio.create_task(offer(UnixChannel(channel), tmp_path, ["one", "two"], seconds=20))
    reader, writer = await connect(channel)
    await transfer.receive(reader, tmp_path / "target", ["one", "two"], most=100, on_bytes=lambda *_: None)
    writer.close()
    await offering
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "target").iterdir()] == [("one", b"first")]
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
        await UnixChannel(channel).connect_own(transfer.PORT)


async def test_what_cannot_be_read_ends_it_for_both(channel: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    offering = asyncio.create_task(offer(UnixChannel(channel), tmp_path, ["one"], seconds=20))
    reader, writer = await connect(channel)
    with pytest.raises(OSError, match="not a plain file"):
        await offering
    assert await reader.read() == b""
    writer.close()


async def test_it_is_not_offered_for_ever(channel: Path, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        await offer(UnixChannel(channel), tmp_path, ["one"], seconds=0.01)


def test_what_goes_wrong_is_said(channel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(tmp_path), ["one"], {DIRECTORY_VARIABLE: str(channel / ("x" * 200))}) == 1
    assert "may have 107" in capsys.readouterr().err
