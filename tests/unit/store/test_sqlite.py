"""The SQLite store: the conformance suite, and what is its own: durability, locking, damaged files."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.store_conformance import StoreConformance, closing, take

from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.store import database
from mvm.store.base import HistoryGone, Store, Write
from mvm.store.sqlite import SqliteStore


class TestSqliteStore(StoreConformance):
    @asynccontextmanager
    async def open_store(self) -> AsyncIterator[Store]:
        with tempfile.TemporaryDirectory() as directory:
            async with closing(await SqliteStore.open(Path(directory) / "state.db")) as store:
                yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def test_documents_and_revisions_survive_a_restart(path: Path) -> None:
    async with closing(await SqliteStore.open(path)) as store:
        await store.put("a", 1)
        last = await store.put("b", {"x": "ü"}, durable=False)
        await store.delete("a")
    async with closing(await SqliteStore.open(path)) as store:
        assert [(d.key, d.value) for d in await store.list("")] == [("b", {"x": "ü"})]
        assert await store.put("c", 1) > last + 1
        async with aclosing(store.watch("", since=last)) as changes:
            assert [(c.key, c.value) for c in await take(changes, 2)] == [("a", None), ("c", 1)]


WRITER = """
import asyncio, sys
from pathlib import Path
from mvm.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    n = 0
    while True:
        await asyncio.gather(*(store.put(f"k/{n}/{i}", n, durable=i % 2 == 0) for i in range(5)))
        print(n, flush=True)
        n += 1

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    async with closing(await SqliteStore.open(path)) as store:
        found = {d.key for d in await store.list("k/")}
    assert {f"k/{n}/{i}" for n in acknowledged for i in range(5)} <= found


async def test_the_file_is_private(path: Path) -> None:
    async with closing(await SqliteStore.open(path)) as store:
        await store.put("a", 1)
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


async def test_a_second_agent_is_kept_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_SECONDS", 0.05)
    async with closing(await SqliteStore.open(path)) as store:
        await store.put("a", 1)
        with pytest.raises(Conflict, match="in use by another process") as refusal:
            await SqliteStore.open(path)
        assert refusal.value.hint is not None
        assert "another mvm agent" in refusal.value.hint
        await store.put("a", 2)


async def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"this is no database, but somebody may need it" * 100)
    before = path.read_bytes()
    with pytest.raises(MvmError, match="damaged") as refusal:
        await SqliteStore.open(path)
    assert "backup" in (refusal.value.hint or "")
    assert path.read_bytes() == before


async def test_damage_in_the_middle_is_found_when_it_is_opened(path: Path) -> None:
    async with closing(await SqliteStore.open(path)) as store:
        await store.put_many([Write(f"k/{n}", "x" * 500) for n in range(200)])
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(8 * 4096))
    with pytest.raises(MvmError, match="damaged"):
        await SqliteStore.open(path)


async def test_a_file_of_a_newer_mvm_is_not_touched(path: Path) -> None:
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(MvmError, match="newer mvm"):
        await SqliteStore.open(path)


async def test_a_database_of_another_program_is_not_touched(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE somebody (elses TEXT)")
    connection.close()
    with pytest.raises(MvmError, match="another program"):
        await SqliteStore.open(path)


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MvmError, match=r"state\.db") as refusal:
        await SqliteStore.open(tmp_path / "file" / "state.db")
    assert "MVM_STATE_DIR" in (refusal.value.hint or "")


async def test_a_full_disk_fails_the_write_and_nothing_else(path: Path) -> None:
    store = await SqliteStore.open(path)
    async with closing(store):
        await store.put("a", 1)
        # SQLite's own limit stands for the disk's: both are SQLITE_FULL.
        pages = await store._read(lambda db: db._connection.execute("PRAGMA page_count").fetchone()[0])
        await store._read(lambda db: db._connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(MvmError, match="disk is full"):
            await store.put("b", "x" * 100_000)
        assert [d.key for d in await store.list("")] == ["a"]
        await store._read(lambda db: db._connection.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert await store.put("b", "x" * 100_000) == 2


async def test_a_conflict_fails_its_own_caller_only(path: Path) -> None:
    async with closing(await SqliteStore.open(path)) as store:
        results = await asyncio.gather(
            *(store.put(f"k/{n}", n, expected=0 if n % 2 else 5) for n in range(50)), return_exceptions=True
        )
        assert [isinstance(result, Conflict) for result in results] == [n % 2 == 0 for n in range(50)]
        assert len(await store.list("k/")) == 25


async def test_after_close_it_says_so(path: Path) -> None:
    store = await SqliteStore.open(path)
    pending = asyncio.create_task(store.put("a", 1))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert await pending == 1
    with pytest.raises(Unavailable, match="closed"):
        await store.get("a")


async def test_old_deletions_are_forgotten_and_a_watch_that_needs_them_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "KEPT_DELETIONS", 10)
    async with closing(await SqliteStore.open(path)) as store:
        since = await store.put("kept", 1)
        await store.put_many([Write(f"k/{n}", n) for n in range(30)])
        deleted = await store.put_many([Write(f"k/{n}", None) for n in range(30)])
    async with closing(await SqliteStore.open(path)) as store:
        with pytest.raises(HistoryGone):
            await anext(store.watch("", since=since))
        async with aclosing(store.watch("", since=deleted[-10] - 1)) as changes:
            assert [c.key for c in await take(changes, 10)] == [f"k/{n}" for n in range(20, 30)]
        async with aclosing(store.watch("")) as changes:
            assert [c.key for c in await take(changes, 1)] == ["kept"]
        assert await store.put("new", 1) > deleted[-1]
