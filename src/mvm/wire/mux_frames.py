"""Frames of the multiplexer: `MV`, kind, 0, connection, argument, length, checksum (20 bytes), then the payload.

Numbers are big-endian; the checksum (CRC-32 of everything else in the frame) tells a frame that was cut off, and went
on with something else, from a whole one. Whoever reads either is in step, and then every byte belongs to a frame, or
hunts for the one frame that can bring it into step again; both are linear in what is read, whatever is sent.
"""

from __future__ import annotations

import re
import struct
import zlib
from enum import IntEnum

MAX_PAYLOAD = 16 * 1024
NONCE_BYTES = 16

_MAGIC = b"MV"
_HEAD = struct.Struct(">2sBxIII")
_CHECKSUM = struct.Struct(">I")
HEADER_BYTES = _HEAD.size + _CHECKSUM.size

PADDING = bytes(HEADER_BYTES + MAX_PAYLOAD)
"""Completes whatever frame the reader may be in the middle of, wrongly, so that it begins to hunt; between frames it
means nothing."""
_ZEROS = re.compile(rb"\0*+")


class Kind(IntEnum):
    """What a frame says."""

    HELLO = 1
    """Host: a new session begins, everything before is void. Payload: a nonce."""
    ACK = 2
    """Guest: so it is. Payload: the same nonce."""
    LOST = 3
    """Guest: I am not in a session (any more); say hello."""
    OPEN = 4
    """A new connection to the port in the argument."""
    OK = 5
    """The connection was accepted."""
    DATA = 6
    CREDIT = 7
    """As many more bytes as the argument says may be sent."""
    FIN = 8
    """No more data comes; the other direction stays open."""
    CLOSE = 9
    """Nothing more comes and nothing is read any more; the connection is forgotten."""
    RST = 10
    """The connection failed or was refused, and is forgotten."""


Frame = tuple[int, int, int, bytes]
"""Kind, connection, argument, payload."""


class Desynchronised(Exception):
    """What was read is no frame, or one that must not come here; nothing after it can be trusted."""


def encode(kind: Kind, connection: int = 0, argument: int = 0, payload: bytes = b"") -> bytes:
    """One frame; the payload has at most `MAX_PAYLOAD` bytes."""
    head = _HEAD.pack(_MAGIC, kind, connection, argument, len(payload))
    return head + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


_HELLO_BEGINNING = _HEAD.pack(_MAGIC, Kind.HELLO, 0, 0, NONCE_BYTES)
_HELLO_BYTES = HEADER_BYTES + NONCE_BYTES


class Inbox:
    """Bytes as they arrive, taken out as frames."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._data += data

    def __len__(self) -> int:
        """Bytes that are kept."""
        return len(self._data) - self._at

    def clear(self) -> None:
        self._data = b""
        self._at = 0

    def frame(self) -> Frame | None:
        """The next frame, None when there is no whole one yet. Raises `Desynchronised`, with nothing taken out."""
        padding = _ZEROS.match(self._data, self._at)
        assert padding is not None
        self._at = padding.end()
        start = self._at + HEADER_BYTES
        if start > len(self._data):
            self._drop_taken()
            return None
        magic, kind, connection, argument, length = _HEAD.unpack_from(self._data, self._at)
        if magic != _MAGIC or length > MAX_PAYLOAD:
            raise Desynchronised("something is no frame")
        end = start + length
        if end > len(self._data):
            self._drop_taken()
            return None
        payload = self._data[start:end]
        head = self._data[self._at : start - _CHECKSUM.size]
        (checksum,) = _CHECKSUM.unpack_from(self._data, start - _CHECKSUM.size)
        if zlib.crc32(payload, zlib.crc32(head)) != checksum:
            raise Desynchronised("a frame is damaged")
        self._at = end
        return kind, connection, argument, payload

    def _drop_taken(self) -> None:
        self._data = self._data[self._at :]
        self._at = 0

    def skip_past(self, frame: bytes) -> bool:
        """Drop everything up to the end of exactly this frame; False when it has not come yet."""
        found = self._data.find(frame, self._at)
        if found < 0:
            self._at = max(self._at, len(self._data) - len(frame) + 1)
            self._drop_taken()
            return False
        self._at = found + len(frame)
        return True

    def skip_past_hello(self) -> bytes | None:
        """Drop everything up to the end of the next HELLO; returns its nonce, None when none has come yet."""
        while True:
            found = self._data.find(_HELLO_BEGINNING, self._at)
            if found < 0:
                self._at = max(self._at, len(self._data) - len(_HELLO_BEGINNING) + 1)
                self._drop_taken()
                return None
            self._at = found
            if len(self._data) - found < _HELLO_BYTES:
                self._drop_taken()
                return None
            nonce = self._data[found + HEADER_BYTES : found + _HELLO_BYTES]
            if self._data[found : found + _HELLO_BYTES] == encode(Kind.HELLO, payload=nonce):
                self._at = found + _HELLO_BYTES
                return nonce
            self._at = found + 1
