"""How guest and host name the ends of a connection that the host carries from one instance to another.

The caller's guest opens host port 54 and sends a line with the address and port that it means. The host opens that port
of the other guest and sends a line with the caller's address and that guest's own. From then on the bytes are theirs. A
refused connection is closed without a word.
"""

from __future__ import annotations

import asyncio
import ipaddress

RELAY_PORT = 54
"""Host port of the relay."""
DELIVERY = (18793, 18789)
"""Port at which a gateway's guest takes deliveries to be carried, and the worker's real one."""
OUTBOUND = (18794, 18790)
"""Port at which a worker's guest takes reports to be carried, and the gateway's real one."""
LINE_SECONDS = 10.0
MAX_LINE = 64


class LineError(ValueError):
    """The line that begins a connection is not what it has to be."""


def target_line(address: str, port: int) -> bytes:
    """Whom a caller means."""
    return f"{address} {port}\n".encode()


def caller_line(caller: str, own: str) -> bytes:
    """Who calls, and at which address of the guest that is told."""
    return f"{caller} {own}\n".encode()


async def read_target(reader: asyncio.StreamReader) -> tuple[str, int]:
    """The target that a caller names. Raises `LineError`, or `TimeoutError` when nothing comes."""
    address, _, port = (await _line(reader)).partition(" ")
    if not port.isascii() or not port.isdigit():
        raise LineError("the line names no port")
    return _address(address), int(port)


async def read_caller(reader: asyncio.StreamReader) -> tuple[str, str]:
    """The caller's address and the guest's own. Raises `LineError`, or `TimeoutError` when nothing comes."""
    caller, _, own = (await _line(reader)).partition(" ")
    return _address(caller), _address(own)


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        async with asyncio.timeout(LINE_SECONDS):
            line = await reader.readuntil(b"\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise LineError("the connection begins with no line") from None
    if len(line) > MAX_LINE or not line.isascii():
        raise LineError("the line is too long or not plain")
    return line.decode().rstrip("\n")


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise LineError("the line names no address") from None
