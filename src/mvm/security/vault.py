"""Encryption at rest: secrets are sealed with a key that lies in a file of its own (CONTRACT 7).

AES-256-GCM with a random nonce. The context (the name of what is sealed) is authenticated with it, so that a record
that is copied to another name cannot be opened there; the key's id is in the record, so that the key can be rotated
while older records are still around. The key file holds one key per line, the current one first:

    <key id> <key, base64> <UTC time it was made>

Whoever has both the key file and the database has the secrets: keep backups of them apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mvm.model.errors import MvmError, Refused
from mvm.telemetry.redaction import SECRETS
from mvm.wire.clock import format_timestamp

KEY_BYTES = 32
NONCE_BYTES = 12
VERSION = "v1"
MAX_KEY_FILE_BYTES = 64 * 1024

_HEADER = "# The key of mvm's secrets: without it those in the database are lost. Back it up apart from the database.\n"


@dataclass(frozen=True, repr=False)
class Key:
    """A key and the id by which sealed records name it: 8 hex digits of its digest, so that a typing error shows."""

    secret: bytes
    made_at: str

    @property
    def key_id(self) -> str:
        return hashlib.sha256(b"mvm key id\0" + self.secret).hexdigest()[:8]

    def line(self) -> str:
        return f"{self.key_id} {base64.b64encode(self.secret).decode()} {self.made_at}\n"


class Vault:
    """Seals and opens short texts. Whatever it opens or seals is kept out of logs from then on."""

    def __init__(self, path: Path, keys: list[Key], entropy: Callable[[int], bytes]) -> None:
        self._path = path
        self._keys = keys
        self._entropy = entropy
        self._ciphers = {key.key_id: AESGCM(key.secret) for key in keys}

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Vault:
        """Read the key file, or make it on first use (mode 0600, never half-written, never over an existing one).

        Raises `Refused` when others may read it, `MvmError` when it is damaged or cannot be read.
        """
        try:
            if not path.exists():
                _create(path, [Key(entropy(KEY_BYTES), format_timestamp(now()))], entropy)
            return cls(path, _read(path), entropy)
        except OSError as error:
            raise MvmError(
                f"the key file {path} cannot be read or made: {error.strerror or error}",
                hint="check the owner and mode of the file and its directory",
            ) from error

    @property
    def key_id(self) -> str:
        """Id of the key that seals from now on."""
        return self._keys[0].key_id

    def seal(self, plaintext: str, *, context: str) -> str:
        """Encrypt text so that it can be opened only with the same context."""
        SECRETS.register(context, [plaintext])
        nonce = self._entropy(NONCE_BYTES)
        sealed = self._ciphers[self.key_id].encrypt(nonce, plaintext.encode(), _bound(self.key_id, context))
        return f"{VERSION}.{self.key_id}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, *, context: str) -> str:
        """Decrypt. Raises `MvmError`, never with any of the text."""
        version, _, rest = sealed.partition(".")
        key_id, _, payload = rest.partition(".")
        if version != VERSION:
            raise MvmError(
                f"{context} is not sealed in a form that this mvm knows", hint="it may be of a newer mvm, or damaged"
            )
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MvmError(
                f"{context} is sealed with the key {key_id[:16]!r}, which is not in {self._path}",
                hint="restore the key file that belongs to this state database, or set the secret anew",
            )
        try:
            data = _decode(payload)
            plaintext = cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _bound(key_id, context)).decode()
        except (InvalidTag, ValueError):
            raise MvmError(
                f"{context} cannot be decrypted: its record is damaged or belongs to another name",
                hint="set the secret anew, or restore the state directory from a backup",
            ) from None
        SECRETS.register(context, [plaintext])
        return plaintext

    def is_current(self, sealed: str) -> bool:
        """False when a record is sealed with an older key and should be sealed again."""
        return sealed.startswith(f"{VERSION}.{self.key_id}.")

    def rotate(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Make a new key for what is sealed from now on; the old ones stay in the file for what was sealed before.

        Raises `MvmError` when the file cannot be written; nothing has changed then.
        """
        keys = [Key(self._entropy(KEY_BYTES), format_timestamp(now())), *self._keys]
        try:
            _replace(self._path, keys, self._entropy)
        except OSError as error:
            raise MvmError(
                f"the key file {self._path} cannot be written: {error.strerror or error}",
                hint="check the owner and mode of its directory, and that the disk is not full",
            ) from error
        self._keys = keys
        self._ciphers[self.key_id] = AESGCM(keys[0].secret)


def _bound(key_id: str, context: str) -> bytes:
    return f"mvm secret {VERSION}\0{key_id}\0{context}".encode()


def _decode(payload: str) -> bytes:
    """Strict base64: a record has one spelling. Raises `ValueError`."""
    data = base64.b64decode(payload, altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(data).decode() != payload:
        raise ValueError
    return data


def _create(path: Path, keys: list[Key], entropy: Callable[[int], bytes]) -> None:
    """Make the file whole or not at all; if somebody else makes it first, theirs stands."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = _write_draft(path, keys, entropy)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    _sync_directory(path.parent)


def _replace(path: Path, keys: list[Key], entropy: Callable[[int], bytes]) -> None:
    draft = _write_draft(path, keys, entropy)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink()
        raise
    _sync_directory(path.parent)


def _write_draft(path: Path, keys: list[Key], entropy: Callable[[int], bytes]) -> Path:
    draft = path.with_name(f".{path.name}.{entropy(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(_HEADER + "".join(key.line() for key in keys))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink()
        raise
    return draft


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> list[Key]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        _check_private(path, os.fstat(descriptor))
        content = file.read(MAX_KEY_FILE_BYTES + 1)
    lines = content.decode(errors="replace").splitlines()
    keys = [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line and line[0] != "#"]
    if not keys or len(content) > MAX_KEY_FILE_BYTES:
        raise _damaged(path, "it holds no key" if not keys else "it is far too long")
    return keys


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(path, "it is not a file")
    if mode := stat.S_IMODE(status.st_mode) & 0o077:
        raise Refused(
            f"the key file {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}, bits {mode:03o})",
            hint=f"chmod 600 {path}; if somebody may have read it, rotate the secrets too",
        )
    if status.st_uid != os.geteuid():
        raise Refused(
            f"the key file {path} belongs to another user (uid {status.st_uid})",
            hint="run mvm as its owner, or give the file to the user whom mvm runs as",
        )


def _parse(path: Path, number: int, line: str) -> Key:
    try:
        key_id, text, made_at = line.split()
        key = Key(base64.b64decode(text, validate=True), made_at)
    except (ValueError, binascii.Error):
        raise _damaged(path, f"line {number} is no key") from None
    if len(key.secret) != KEY_BYTES or key.key_id != key_id:
        raise _damaged(path, f"the key in line {number} is not the one that its id names")
    return key


def _damaged(path: Path, problem: str) -> MvmError:
    return MvmError(
        f"the key file {path} is damaged: {problem}",
        hint="restore it from a backup; a new one cannot open the secrets that are there",
    )
