"""Client of OpenClaw's control socket, which mvm's plugin serves: one request per line, one JSON line as its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mvm.wire.clock import parse_timestamp

ANSWER_SECONDS = 10.0
RESTORE_SECONDS = 4.0
CHECKPOINT_MARGIN_SECONDS = 3.0
"""What a checkpoint may take beyond its drain time."""
CATCH_UP_SECONDS = 90.0
"""What a wake under another configuration may take OpenClaw; it notices a changed file after a second by itself."""
MAX_LINE = 64 * 1024


class ControlError(Exception):
    """OpenClaw refused a request or answered nonsense; the text says why."""


class ControlAbsent(ControlError):
    """Nobody answers on the control socket: OpenClaw is not running, or not yet."""


@dataclass(frozen=True, kw_only=True)
class OpenClawStatus:
    """What the plugin says of this OpenClaw."""

    ready: bool
    in_flight: int = 0
    """Turns and tools under way."""
    queued: int = 0
    last_busy_at: datetime | None = None
    next_alarm_at: datetime | None = None
    """The person's own next job or reminder."""
    suspended: bool = False


class ControlSocket:
    """Talks to the plugin, one connection per request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def checkpoint(self, drain_seconds: float) -> datetime | None:
        """Have OpenClaw finish what it does and then hold everything; returns the next alarm.

        Raises `ControlError` (it is busy for longer than `drain_seconds`; it then goes on) or `ControlAbsent`.
        """
        seconds = max(0, int(drain_seconds))
        answer = await self.request(f"CHECKPOINT {seconds}", seconds + CHECKPOINT_MARGIN_SECONDS)
        return _moment(answer, "next_alarm_at")

    async def restore(self) -> None:
        """Let a held OpenClaw go on; fine when it is not held."""
        await self.request("RESTORE", RESTORE_SECONDS)

    async def reload_secrets(self, seconds: float = ANSWER_SECONDS) -> None:
        """Have OpenClaw read its secrets file again."""
        await self.request("RELOAD_SECRETS", seconds)

    async def config_applied(self) -> None:
        """Return when OpenClaw goes by its configuration as it is in the file now."""
        await self.request("CONFIG_APPLIED", CATCH_UP_SECONDS)

    async def forget_randomness(self) -> None:
        """Have OpenClaw throw away the random numbers that it drew in advance, which a copy of it would draw too."""
        await self.request("FORGET_RANDOMNESS")

    async def suppressed_channels(self) -> tuple[str, ...]:
        """Channels that OpenClaw holds back because it started uncleanly too often."""
        names = (await self.request("CHANNELS")).get("suppressed", [])
        return tuple(map(str, names)) if isinstance(names, list) else ()

    async def start_channels(self) -> None:
        """Start the channels that are held back."""
        await self.request("CHANNELS_START", 30.0)

    async def status(self) -> OpenClawStatus:
        """Ask once; fences nothing."""
        return status_of(await self.request("STATUS"))

    async def follow(self) -> AsyncGenerator[OpenClawStatus, None]:
        """The status now and after each change, until the connection ends. Raises `ControlAbsent` or `ControlError`."""
        async with self._connected() as (reader, writer):
            writer.write(b"SUBSCRIBE\n")
            while True:
                yield status_of(_parse(await reader.readline()))

    async def request(self, line: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Send one line and return its answer. Raises `ControlError`, `ControlAbsent` when nobody is there."""
        try:
            async with asyncio.timeout(seconds), self._connected() as (reader, writer):
                writer.write(line.encode() + b"\n")
                return _parse(await reader.readline())
        except TimeoutError:
            raise ControlError(f"OpenClaw did not answer {line.split()[0]} within {seconds:g} s") from None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_LINE)
        except OSError as error:
            raise ControlAbsent(f"OpenClaw's control socket does not answer: {error.strerror or error}") from error
        try:
            yield reader, writer
        except (ConnectionError, BrokenPipeError) as error:
            raise ControlAbsent("OpenClaw's control socket was closed") from error
        except ValueError as error:  # a line beyond the limit
            raise ControlError(f"OpenClaw's answer is no use: {error}") from error
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def status_of(answer: dict[str, Any]) -> OpenClawStatus:
    """Read a STATUS answer; what is missing is as if nothing were going on, what is malformed is an error."""
    return OpenClawStatus(
        ready=answer.get("ready") is True,
        in_flight=_count(answer, "in_flight"),
        queued=_count(answer, "queued"),
        last_busy_at=_moment(answer, "last_busy_at"),
        next_alarm_at=_moment(answer, "next_alarm_at"),
        suspended=answer.get("suspended") is True,
    )


def _parse(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ControlAbsent("OpenClaw's control socket was closed")
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("OpenClaw's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise ControlError("OpenClaw's answer is not an object")
    if answer.get("ok") is not True:
        raise ControlError(str(answer.get("detail") or "OpenClaw refused without a reason")[:500])
    return answer


def _count(answer: dict[str, Any], key: str) -> int:
    value = answer.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ControlError(f"OpenClaw's answer has no usable {key}")
    return value


def _moment(answer: dict[str, Any], key: str) -> datetime | None:
    value = answer.get(key)
    if value is None:
        return None
    try:
        return parse_timestamp(value)
    except (TypeError, ValueError):
        raise ControlError(f"OpenClaw's answer has no usable {key}") from None
