"""Bearer tokens kept in files: read anew when the file changes, compared in constant time, made when absent."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from mvm.guest import users
from mvm.guest.paths import GuestPaths, write_atomically
from mvm.guest.users import Access

MAX_TOKEN_BYTES = 4096


class TokenFile:
    """One token in one file. A missing, empty or oversized file matches nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def read(self) -> str:
        """The token, "" when there is none; a token that was rotated is seen at once."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp != self._seen:
                raw = self._path.read_bytes()
                token = raw.decode().rstrip("\r\n") if len(raw) <= MAX_TOKEN_BYTES else ""
                self._token, self._seen = token, stamp
        except (OSError, UnicodeDecodeError):
            self._token, self._seen = "", None
        return self._token

    def matches(self, given: str | None) -> bool:
        """True when `given` is this token; takes the same time wherever they differ."""
        token = self.read()
        return bool(token) and given is not None and hmac.compare_digest(token.encode(), given.encode())

    def ensure(self) -> None:
        """Make a token unless there is one. Safe when two processes do it at once: both end up with the same."""
        if self.read():
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            write_atomically(fresh, _token())
            with suppress(FileExistsError):
                os.link(fresh, self._path)  # unlike a rename, never replaces a token that somebody else just made
            if not self.read():
                os.replace(fresh, self._path)
        finally:
            fresh.unlink(missing_ok=True)

    def renew(self, access: Access) -> None:
        """Replace the token by another; whoever has `access` reads it, and nobody else. Raises `OSError`."""
        write_atomically(self._path, _token(), mode=access.mode, owner=access.numbers)


def renew_all(paths: GuestPaths) -> None:
    """Make the tokens anew by which services of this machine know each other. Raises `OSError`."""
    for path, access in (
        (paths.router_token, users.OPENCLAW_AND_ROUTER_READ),
        (paths.outbox_token, users.OPENCLAW_READS),
    ):
        TokenFile(path).renew(access)


def _token() -> bytes:
    return secrets.token_urlsafe(32).encode()
