"""The SQLite file behind `SqliteStore`: opening it safely, and the statements. Used by one thread only.

One table holds the latest change of each key in the order of revisions, deletions included (`value` NULL), so that a
watch can replay; the newest `KEPT_DELETIONS` deletions are kept. The file is locked for as long as it is open: a second
agent cannot write beside the first.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mvm.model.errors import Conflict, MvmError
from mvm.store.base import HistoryGone, RevisionConflict

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6D766D31
"""`mvm1`: tells a state file from any other SQLite file."""
KEPT_DELETIONS = 10_000
LOCK_TIMEOUT_SECONDS = 2.0

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE documents (revision INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value TEXT);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('forgotten', 0);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""  # noqa: S608 - two numbers of our own


@dataclass(frozen=True)
class RawWrite:
    """A checked write; `text` is the document's JSON, None deletes."""

    key: str
    text: str | None
    expected: int | None


@dataclass(frozen=True)
class RawChange:
    """A row: the latest change of a key."""

    key: str
    text: str | None
    revision: int


class Database:
    """An open state file. Raises `MvmError` with a hint for every way in which the file can be bad."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explained():
            self._connection = self._open()
        self._synchronous = ""
        self._deletions = 0
        self.revision = int(self._one("SELECT coalesce(max(revision), 0) FROM documents"))
        self._forget_old_deletions()

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=LOCK_TIMEOUT_SECONDS, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not tables:
            connection.executescript(_SCHEMA)
            return
        if application != APPLICATION_ID:
            raise MvmError(
                f"{self._path} is a database of another program", hint="point MVM_STATE_DIR at mvm's own directory"
            )
        if version > SCHEMA_VERSION:
            raise MvmError(
                f"{self._path} was written by a newer mvm (format {version}, this one knows {SCHEMA_VERSION})",
                hint="use the newer mvm, or restore the state directory from before the upgrade",
            )
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {found}")

    def get(self, key: str) -> RawChange | None:
        with self._explained():
            row = self._connection.execute(
                "SELECT key, value, revision FROM documents WHERE key = ? AND value IS NOT NULL", (key,)
            ).fetchone()
        return None if row is None else RawChange(*row)

    def find(self, prefix: str) -> list[RawChange]:
        with self._explained():
            rows = self._connection.execute(
                "SELECT key, value, revision FROM documents"
                " WHERE key >= ? AND key < ? AND value IS NOT NULL ORDER BY key",
                (prefix, prefix + "\x7f"),
            )
            return [RawChange(*row) for row in rows]

    def changes(self, prefix: str, since: int) -> list[RawChange]:
        """Latest change of each key after `since`, oldest first; with 0 only documents that exist."""
        with self._explained():
            if 0 < since < self._one("SELECT value FROM counters WHERE name = 'forgotten'"):
                raise HistoryGone(
                    f"the changes since revision {since} are no longer known", hint="read everything again, then watch"
                )
            rows = self._connection.execute(
                "SELECT key, value, revision FROM documents WHERE revision > ? AND key >= ? AND key < ?"
                " AND (value IS NOT NULL OR ? > 0) ORDER BY revision",
                (since, prefix, prefix + "\x7f", since),
            )
            return [RawChange(*row) for row in rows]

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[None]:
        """Commit what is applied inside, with an fsync when `durable`; undo all of it on any error."""
        synchronous = "FULL" if durable else "NORMAL"
        before = self.revision
        with self._explained():
            if synchronous != self._synchronous:
                self._connection.execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self.revision = before
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def apply(self, writes: Sequence[RawWrite]) -> list[RawChange | None]:
        """Inside `transaction`: check every expectation, then write; None where there was nothing to delete.

        Raises `RevisionConflict` before anything is written, so that the transaction can go on with others' writes.
        """
        exists = [self._check_expected(write) for write in writes]
        return [
            None if write.text is None and not there else self._write(write)
            for write, there in zip(writes, exists, strict=True)
        ]

    def _check_expected(self, write: RawWrite) -> bool:
        row = self._connection.execute(
            "SELECT revision FROM documents WHERE key = ? AND value IS NOT NULL", (write.key,)
        ).fetchone()
        found = 0 if row is None else int(row[0])
        if write.expected is not None and write.expected != found:
            raise RevisionConflict(write.key, write.expected, found)
        return bool(found)

    def _write(self, write: RawWrite) -> RawChange:
        self.revision += 1
        self._connection.execute(
            "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (self.revision, write.key, write.text)
        )
        if write.text is None:
            self._deletions += 1
        return RawChange(write.key, write.text, self.revision)

    def tidy(self) -> None:
        """Forget old deletions now and then; called when nobody waits."""
        if self._deletions >= KEPT_DELETIONS:
            self._forget_old_deletions()

    def _forget_old_deletions(self) -> None:
        with self.transaction(durable=False):
            row = self._connection.execute(
                "SELECT revision FROM documents WHERE value IS NULL ORDER BY revision DESC LIMIT 1 OFFSET ?",
                (KEPT_DELETIONS,),
            ).fetchone()
            if row is not None:
                self._connection.execute("DELETE FROM documents WHERE value IS NULL AND revision <= ?", row)
                self._connection.execute("UPDATE counters SET value = ? WHERE name = 'forgotten'", row)
        self._deletions = 0

    def close(self) -> None:
        with self._explained():
            self._connection.close()

    def _one(self, statement: str) -> int:
        with self._explained():
            return int(self._connection.execute(statement).fetchone()[0])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what a person can do about an error of SQLite or the file system."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error
        except OSError as error:
            raise MvmError(
                f"the state database {self._path} cannot be opened: {error.strerror or error}",
                hint="check the owner and mode of the directory, or set MVM_STATE_DIR to one that you may write",
            ) from error

    def _explain(self, error: sqlite3.Error) -> MvmError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        what = f"the state database {self._path}"
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return Conflict(
                    f"{what} is in use by another process",
                    hint="another mvm agent runs on this state directory; stop it or set MVM_STATE_DIR",
                )
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return MvmError(
                    f"{what} is damaged: {error}",
                    hint="restore the state directory from a backup; mvm never deletes a damaged database by itself",
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return MvmError(
                    f"{what} cannot be written: {error}",
                    hint="check the owner and mode of the directory and that its file system is writable",
                )
            case sqlite3.SQLITE_FULL:
                return MvmError(f"{what} cannot be written: the disk is full", hint="free some space and try again")
            case _:
                return MvmError(f"{what} failed: {error}", hint="look at the kernel log for disk errors")
