"""What a document store promises, whatever is behind it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mvm.model.errors import Conflict, InvalidInput

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

# `Store.list` hides the builtin inside the class.
Documents: TypeAlias = list["Document"]
Revisions: TypeAlias = list[int]

MAX_KEY_LENGTH = 512
MAX_VALUE_BYTES = 1024 * 1024 - 1
"""Of a document's JSON in UTF-8: NATS takes messages of less than 1 MiB."""

_KEY = re.compile(r"[-/_=.A-Za-z0-9]+")


@dataclass(frozen=True)
class Document:
    """A document as it was when it was read. Revisions grow over the whole store, one per change."""

    key: str
    value: JsonValue
    revision: int


@dataclass(frozen=True)
class Change:
    """A document was written, or deleted (`value` is None)."""

    key: str
    value: JsonValue
    revision: int


@dataclass(frozen=True)
class Write:
    """One write of `put_many`; a value of None deletes. `expected` as in `Store.put`."""

    key: str
    value: JsonValue
    expected: int | None = None


class RevisionConflict(Conflict):
    """The document is not at the revision that the writer expected."""

    def __init__(self, key: str, expected: int, found: int) -> None:
        super().__init__(
            f"document {key!r} changed meanwhile: expected {_at(expected)}, found {_at(found)}",
            hint="read it again and repeat the change",
        )
        self.key, self.expected, self.found = key, expected, found


class HistoryGone(Conflict):
    """A watch asks for changes from so long ago that deletions since then are forgotten; list the documents anew."""


def _at(revision: int) -> str:
    return f"revision {revision}" if revision else "no document"


class Store(Protocol):
    """Documents with revisions. Every call is atomic; what a call wrote, every later call sees.

    Keys are 1 to 512 of the characters `-/_=.A-Za-z0-9` and neither begin nor end with a dot; values are JSON other
    than null, of less than 1 MiB. Anything else is `InvalidInput`. A call that is cancelled may still take effect.
    """

    async def get(self, key: str) -> Document | None:
        """The document of that key, or None."""
        ...

    async def put(self, key: str, value: JsonValue, *, expected: int | None = None, durable: bool = True) -> int:
        """Write a document and return its new revision.

        `expected`: None overwrites whatever is there, 0 only creates, n only replaces revision n; else raises
        `RevisionConflict` and changes nothing. With `durable` the document survives a power cut when this returns;
        without, it survives the death of the process, and any later durable write makes it durable too.
        """
        ...

    async def put_many(self, writes: Sequence[Write], *, durable: bool = True) -> Revisions:
        """Do all writes or none, and return their revisions in order (0 for deleting what was not there).

        Raises `RevisionConflict` for the first whose expectation fails; a key may be named once only.
        """
        ...

    async def delete(self, key: str, *, expected: int | None = None) -> bool:
        """Delete a document, durably; False when there was none. `expected` as in `put`."""
        ...

    async def list(self, prefix: str) -> Documents:
        """All documents whose key begins with `prefix`, sorted by key, as of one moment."""
        ...

    def watch(self, prefix: str, *, since: int = 0) -> AsyncGenerator[Change, None]:
        """Changes of documents whose key begins with `prefix`, in the order of their revisions, until it is closed
        (`contextlib.aclosing`).

        First the latest change of each key after revision `since` (with 0: every document that exists), then each
        change as it is made. Nothing is skipped or told twice, but of several changes to one key that a slow watcher
        missed it may be told only the last. Raises `HistoryGone` when `since` is too old; ends when the store is
        closed.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the store. Idempotent."""
        ...


def check_key(key: str) -> str:
    """Return a valid key; raises `InvalidInput` naming the rule that is broken."""
    if not key or len(key) > MAX_KEY_LENGTH:
        problem = f"it has {len(key)} characters and may have 1 to {MAX_KEY_LENGTH}"
    elif not _KEY.fullmatch(key):
        problem = "only letters, digits and - / _ = . are allowed"
    elif key[0] == "." or key[-1] == ".":
        problem = "it may not begin or end with a dot"
    else:
        return key
    raise InvalidInput(f"store key {key[:80]!r} is not valid: {problem}")


def check_prefix(prefix: str) -> str:
    """Return a valid prefix (which may be empty)."""
    if prefix and not _KEY.fullmatch(prefix):
        raise InvalidInput(f"store prefix {prefix[:80]!r} is not valid: only letters, digits and - / _ = . are allowed")
    return prefix


def render_value(key: str, value: JsonValue) -> str:
    """The JSON text of a document; raises `InvalidInput` for what is not JSON, null, or too large."""
    if value is None:
        raise InvalidInput(f"document {key!r} cannot be null", hint="delete it instead")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"document {key!r} is not JSON: {error}") from None
    if size > MAX_VALUE_BYTES:
        raise InvalidInput(f"document {key!r} has {size} bytes and may have {MAX_VALUE_BYTES}")
    return text
