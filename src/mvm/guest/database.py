"""Small SQLite files in the guest that must survive anything: power loss, `kill -9`, their own corruption.

Work runs on one thread per file, so that an fsync never holds up the event loop, and each piece of work is one durable
transaction (WAL, `synchronous=FULL`): when `run` returns, it is on disk. A file that is found corrupt is set aside, not
deleted, and a new one begun: a guest that refuses to start helps nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_ASIDE = 2
"""How many corrupt files are kept for a look at them."""
BUSY_SECONDS = 10.0
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StorageError(Exception):
    """The file cannot be written or read (disk full, permissions); nothing of this piece of work has happened."""


class Database:
    """One SQLite file. `schema` is a script that may run again on a file that has it; `version` its number."""

    def __init__(self, path: Path, *, schema: str, version: int, on_set_aside: Callable[[str], None]) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._on_set_aside = on_set_aside
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.stem)  # ends with the object
        self._connection: sqlite3.Connection | None = None
        self._aside: list[str] = []

    async def open(self) -> None:
        """Open or create the file; nothing happens when it is open. Raises `StorageError`."""
        await self._on_thread(self._open_once)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in one transaction; it is on disk when this returns. Raises `StorageError`; nothing happened then.

        Cancelling the caller does not undo work that has begun.
        """
        return await self._on_thread(lambda: self._run(work))

    async def close(self) -> None:
        """Finish what runs and close the file; it can be opened again."""
        await self._on_thread(self._close)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{self._path.name}: {error}") from error
        finally:
            while self._aside:
                self._on_set_aside(self._aside.pop(0))

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._open_once()
        try:
            return self._transaction(work)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            self._set_aside(str(error))
            self._open()
            return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # the first error is the one to show
                connection.execute("ROLLBACK")
            raise
        return result

    def _open_once(self) -> None:
        if self._connection is None:
            self._open()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._connection = self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            self._set_aside(str(error))
            self._connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            checked = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if checked != "ok" or found > self._version:
                reason = str(checked) if checked != "ok" else f"it has version {found}, written by a newer mvm"
                error = sqlite3.DatabaseError(reason)
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema}; PRAGMA user_version={self._version}; COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, reason: str) -> None:
        self._close()
        suffix = f".corrupt-{time.time_ns():020d}"
        kept = self._path.with_name(self._path.name + suffix)
        os.replace(self._path, kept)
        for extra in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.replace(f"{self._path}{extra}", f"{kept}{extra}")
        aside = sorted(self._path.parent.glob(f"{self._path.name}.corrupt-*"))
        for old in [path for path in aside if not path.name.endswith(("-wal", "-shm"))][:-KEPT_ASIDE]:
            for extra in ("", "-wal", "-shm"):
                Path(f"{old}{extra}").unlink(missing_ok=True)
        text = f"{self._path.name} was damaged ({reason}); it is kept as {kept.name} and a new one was begun"
        log.error("%s", text)
        self._aside.append(text)  # told from the event loop, where the listener lives

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(sqlite3.Error):  # closing a damaged file may fail; it is no longer used
                connection.close()


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _CORRUPT
