"""Guest port 5200: one line of text, `SLEEP_PREP`, is answered `ACK` or `NAK <reason>` (CONTRACT 9).

It is the request `SleepPrep` of port 52 in other words. The agent serves both; where systemd supervises, this port is a
unit of its own (`mvm-sleep-prep-vsock`) that asks the agent at its port.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from mvm.guest import config as config_files
from mvm.guest.channel import AGENT_PORT, SLEEP_PREP_PORT, open_channel
from mvm.guest.config import ConfigError
from mvm.guest.paths import GuestPaths
from mvm.guest.stopping import told_to_end
from mvm.wire import messages, rpc
from mvm.wire.frames import FrameError
from mvm.wire.messages import SleepPrepAck
from mvm.wire.schema import MessageError

log = logging.getLogger(__name__)

REQUEST = b"SLEEP_PREP"
LINE_SECONDS = 10.0
MARGIN_SECONDS = 5.0
"""What a preparation may take beyond its drain time (CONTRACT 9)."""
MAX_LINE = 64

Prepare = Callable[[], Awaitable[SleepPrepAck]]
"""Prepare a sleep within the pool's drain time. Raises `rpc.Refusal` when there is nobody who could."""


class SleepPrepPort:
    """Serves connections to the port."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one line of a connection, and end it."""
        try:
            async with asyncio.timeout(LINE_SECONDS):
                line = (await reader.readuntil(b"\n"))[:MAX_LINE].strip()
            writer.write((await self._answer(line)).encode() + b"\n")
            async with asyncio.timeout(LINE_SECONDS):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("port %d: %s", SLEEP_PREP_PORT, error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> str:
        if line != REQUEST:
            return "NAK the only request here is SLEEP_PREP"
        try:
            answer = await self._prepare()
        except rpc.Refusal as refusal:
            return f"NAK {_one_line(str(refusal))}"
        return "ACK" if answer.success else f"NAK {_one_line(answer.detail or 'no reason given')}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


async def ask_agent(paths: GuestPaths, environment: Mapping[str, str]) -> SleepPrepAck:
    """Have the agent prepare a sleep. Raises `rpc.Refusal` with its reason, or when it does not answer."""
    try:
        drain = config_files.read(paths.config).config.runtime_policy.drain_timeout_seconds
        reader, writer = await open_channel(environment).connect_own(AGENT_PORT)
    except ConfigError as error:
        raise rpc.Refusal(str(error)) from error
    except OSError as error:
        raise rpc.Refusal(f"the agent does not answer: {error.strerror or error}") from error
    try:
        request = messages.SleepPrep(drain_timeout_secs=drain)
        return await rpc.call(reader, writer, request, timeout=drain + MARGIN_SECONDS)
    except (rpc.CallFailed, FrameError, MessageError) as error:
        raise rpc.Refusal(str(error)) from error
    finally:
        writer.close()


async def serve(environment: Mapping[str, str]) -> None:
    """Serve the port apart from the agent until SIGTERM or SIGINT. Raises `OSError` or `ValueError` when it cannot."""
    stop = told_to_end()
    paths = GuestPaths.from_environment(environment)
    port = SleepPrepPort(lambda: ask_agent(paths, environment))
    server = await open_channel(environment).listen(SLEEP_PREP_PORT, port.serve)
    await stop.wait()
    server.close()
