"""Files that only a passphrase opens: scrypt for the key, AES-256-GCM in chunks, so that any size can be streamed.

A file is a magic line, a header in JSON, then chunks of `CHUNK` bytes (the last may be shorter), each with its tag. A
chunk's nonce is its number and whether it is the last; the header is authenticated with every chunk. So a file that was
cut, extended, reordered or changed anywhere is noticed (the STREAM construction of Hoang, Reyhanitabar, Rogaway and
Vizár, 2015), and a wrong passphrase is told apart from damage by a check value.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from collections.abc import Callable
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mvm.model.errors import InvalidInput, Refused

MAGIC = b"mvm sealed file\n"
VERSION = 1
CHUNK = 1024 * 1024
MIN_PASSPHRASE = 8
MAX_HEADER = 4096
SCRYPT = {"log2_n": 15, "r": 8, "p": 3}
"""As OWASP's Password Storage Cheat Sheet has it for 32 MiB of memory."""
_LIMITS = {"log2_n": 20, "r": 16, "p": 8}
"""A header that asks for more is refused: it would take memory and time, not make anything safer."""
_TAG = 16
_KEY, _CHECK = 32, 16


class SealedWriter(io.RawIOBase):
    """Encrypts what is written to it into `file`. The file is whole only after `close`; `file` itself stays open."""

    def __init__(
        self, file: BinaryIO, passphrase: str, *, entropy: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """Raises `InvalidInput` for a passphrase that is too short."""
        if len(passphrase) < MIN_PASSPHRASE:
            raise InvalidInput(
                f"the passphrase has fewer than {MIN_PASSPHRASE} characters", hint="whoever guesses it has every secret"
            )
        self._file = file
        salt = entropy(16)
        key, check = _derive(passphrase, salt, **SCRYPT)
        header = {"version": VERSION, "kdf": "scrypt", **SCRYPT, "salt": salt.hex(), "check": check.hex()}
        text = json.dumps(header).encode()
        head = MAGIC + len(text).to_bytes(4) + text
        file.write(head)
        self._cipher = AESGCM(key)
        self._associated = hashlib.sha256(head).digest()
        self._number = 0
        self._buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._buffer += view
        # One byte more than a chunk: only then is it certain that the chunk is not the last.
        while len(self._buffer) > CHUNK:
            self._seal(bytes(self._buffer[:CHUNK]), last=False)
            del self._buffer[:CHUNK]
        return len(view)

    def close(self) -> None:
        """Write the last chunk. A writer that is abandoned instead leaves a file that nobody can open."""
        if not self.closed:
            self._seal(bytes(self._buffer), last=True)
            self._buffer.clear()
        super().close()

    def abandon(self) -> None:
        """Write no last chunk."""
        self._buffer.clear()
        super().close()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, last), chunk, self._associated))
        self._number += 1


class SealedReader(io.RawIOBase):
    """Decrypts a file. Nothing is given out that was not authenticated.

    Raises `Refused` for a wrong passphrase and `InvalidInput` for what is damaged, cut off, newer or no such file.
    """

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        self._file = file
        head, header = read_header(file)
        key, check = _derive(passphrase, bytes.fromhex(header["salt"]), header["log2_n"], header["r"], header["p"])
        if not secrets.compare_digest(check.hex(), header["check"]):
            raise Refused("the passphrase is not the one of this file", hint="nothing was changed; try another one")
        self._cipher = AESGCM(key)
        self._associated = hashlib.sha256(head).digest()
        self._number = 0
        self._ahead = file.read(CHUNK + _TAG)
        self._ended = False
        self._buffer = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: object) -> int:
        view = memoryview(target).cast("B")  # type: ignore[arg-type]
        while not self._buffer and not self._ended:
            self._buffer = memoryview(self._next())
        taken = min(len(view), len(self._buffer))
        view[:taken] = self._buffer[:taken]
        self._buffer = self._buffer[taken:]
        return taken

    def _next(self) -> bytes:
        sealed, self._ahead = self._ahead, self._file.read(CHUNK + _TAG)
        last = not self._ahead
        try:
            chunk = self._cipher.decrypt(_nonce(self._number, last), sealed, self._associated)
        except InvalidTag:
            raise self._damaged(sealed, last) from None
        self._number += 1
        self._ended = last
        return chunk

    def _damaged(self, sealed: bytes, last: bool) -> InvalidInput:
        where = f"in its megabyte {self._number + 1}"
        if last:
            cut = not sealed or len(sealed) < CHUNK + _TAG
            try:
                self._cipher.decrypt(_nonce(self._number, False), sealed, self._associated)
                cut = True
            except InvalidTag:
                pass
            if cut:
                return InvalidInput(f"the file is cut off or damaged at its end, {where}", hint="take another copy")
        return InvalidInput(f"the file is damaged {where}", hint="take another copy")


def read_header(file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """The bytes before the first chunk, and what they say. Raises `InvalidInput`."""
    magic, length = file.read(len(MAGIC)), file.read(4)
    if magic != MAGIC:
        raise InvalidInput("this is no file that mvm sealed", hint="`mvm tenant export` makes them")
    text = file.read(min(int.from_bytes(length), MAX_HEADER))
    try:
        header = json.loads(text)
        version = header["version"]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput("the file is damaged in its header", hint="take another copy") from None
    if version != VERSION:
        raise InvalidInput(
            f"the file is of version {version}, and this mvm knows version {VERSION}", hint="use a newer mvm"
        )
    fits = all(isinstance(header.get(name), int) and 0 < header[name] <= most for name, most in _LIMITS.items())
    try:
        fits = fits and len(bytes.fromhex(header["salt"])) == 16 and len(bytes.fromhex(header["check"])) == _CHECK
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise InvalidInput("the file is damaged in its header", hint="take another copy")
    return magic + length + text, header


def _derive(passphrase: str, salt: bytes, log2_n: int, r: int, p: int) -> tuple[bytes, bytes]:
    """The key, and a value that tells whether the passphrase is right."""
    material = Scrypt(salt=salt, length=_KEY + _CHECK, n=2**log2_n, r=r, p=p).derive(passphrase.encode())
    return material[:_KEY], material[_KEY:]


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])
