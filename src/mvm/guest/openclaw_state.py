"""What OpenClaw's state must not hand down to copies of a machine: keys that stand for one installation, and traces.

OpenClaw makes each of them anew when it starts and finds none. It keeps its state in SQLite files that it has open all
the time; what is deleted here is deleted in transactions like its own. The tables are those of the pinned OpenClaw; one
that another version does not have is left out.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Rows:
    """Rows of one table; all of them where there is no condition."""

    database: str
    """Relative to the state directory."""
    table: str
    condition: str = "1"


KEYS = (
    Rows("state/openclaw.sqlite", "device_identities"),
    Rows("state/openclaw.sqlite", "config_revision_keys"),
    Rows("state/openclaw.sqlite", "audit_identity_keys"),
)
TRACES = (
    Rows("state/openclaw.sqlite", "audit_events"),
    Rows("agents/main/agent/openclaw-agent.sqlite", "session_transcript_archives", "session_key LIKE '%mvm-warm-up'"),
)
FILES = ("config-journal-fingerprint.key",)


def forget_who_it_is(state: Path) -> None:
    """Delete them from a machine that is to be copied. Raises `OSError`, `sqlite3.Error` among its causes."""
    for rows in KEYS + TRACES:
        database = state / rows.database
        if database.exists():
            try:
                _delete(database, rows)
            except sqlite3.Error as error:
                raise OSError(f"{rows.table} in {database}: {error}") from error
    for name in FILES:
        (state / name).unlink(missing_ok=True)


def _delete(database: Path, rows: Rows) -> None:
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection, connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (rows.table,))
        if found.fetchone():
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"DELETE FROM {rows.table} WHERE {rows.condition}")  # noqa: S608 - constants above
