"""Talking to an instance's supervisor over its socket: one JSON line asks, one answers (`mvm.guest.supervisor`)."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvm.model.errors import TimedOut, Unavailable

LINE_LIMIT = 256 * 1024
CONNECT_SECONDS = 5.0


async def ask(socket: Path, request: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """The supervisor's answer. Raises `Unavailable` when nobody answers or it says no, `TimedOut` after `seconds`."""
    operation = request["op"]
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_LIMIT)
    except OSError as error:
        raise Unavailable(f"the supervisor does not answer on '{socket}': {error.strerror or error}") from error
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(seconds):
            await writer.drain()
            line = await reader.readline()
    except TimeoutError:
        raise TimedOut(f"the supervisor did not {operation} within {seconds:g} s") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"the supervisor did not answer to {operation}: {error}") from error
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    try:
        answer = json.loads(line)
    except ValueError:
        raise Unavailable(f"the supervisor ended before it answered to {operation}") from None
    if not isinstance(answer, dict) or not answer.get("ok"):
        detail = answer.get("detail") or answer.get("error") if isinstance(answer, dict) else None
        raise Unavailable(f"the supervisor refuses to {operation}: {detail or 'it gives no reason'}")
    return answer
