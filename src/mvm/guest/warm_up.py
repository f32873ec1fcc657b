"""`guest.pyz warm-up`: one turn of this machine's OpenClaw, against a provider in this very machine.

A base is warmed up before it is kept: what OpenClaw loads, compiles and caches at its first turn is then in the memory
that every copy begins with. It asks a model that answers the same two words to everything, and leaves nothing that a
person could meet (warmup.js). At last the keys are deleted that OpenClaw made for itself: each copy makes its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mvm.guest import config as config_files
from mvm.guest.control import ControlAbsent, ControlError, ControlSocket
from mvm.guest.http import HttpError, Request, Response
from mvm.guest.http_server import HttpServer
from mvm.guest.openclaw_state import forget_who_it_is
from mvm.guest.paths import GuestPaths
from mvm.guest.services import OPENCLAW, Role

PROVIDER_PORT = 18799
"""Where the placeholder's configuration says that its model provider is."""
LIMIT_SECONDS = 880.0
"""All of it; an emulated machine takes minutes to start OpenClaw and another one for its first turn."""
POLL_SECONDS = 0.5
MAX_REQUEST = 16 * 1024 * 1024
ANSWER = "Warmed up."


def main(environment: Mapping[str, str]) -> int:
    """Do it; returns the exit status. What went wrong is said on stderr."""
    try:
        paths = GuestPaths.from_environment(environment)
        if paths.owns_machine:
            # What is written here has to be OpenClaw's own, or it could not use it any more.
            OPENCLAW.confinement.take()
        asyncio.run(warm_up(paths, config_files.read(paths.config).config.role))
    except (ControlError, OSError, ValueError, TimeoutError) as error:
        print(f"warm-up: {error or 'it took too long'}", file=sys.stderr)
        return 1
    return 0


async def warm_up(paths: GuestPaths, role: Role, *, port: int = PROVIDER_PORT, seconds: float = LIMIT_SECONDS) -> None:
    """Wait for OpenClaw, and have a worker's take its first turn. Raises `ControlError`, `OSError`, `TimeoutError`."""
    if not role.runs_openclaw:
        return
    control = ControlSocket(paths.control_socket)
    async with asyncio.timeout(seconds):
        await _idle(control)
        if role is Role.CAPABILITY_OPENCLAW:
            provider = HttpServer(_answer, max_body=MAX_REQUEST)
            await provider.start("127.0.0.1", port)
            try:
                await control.request("WARM_UP", seconds)
                await _idle(control)
            finally:
                await provider.close()
        forget_who_it_is(paths.openclaw_state)


async def _idle(control: ControlSocket) -> None:
    """Return when OpenClaw is there and does nothing."""
    while True:
        with suppress(ControlAbsent):
            status = await control.status()
            if status.ready and not status.in_flight and not status.queued:
                return
        await asyncio.sleep(POLL_SECONDS)


async def _answer(request: Request) -> Response:
    """Anthropic's Messages API, as far as one answer needs it."""
    if request.method != "POST" or request.path != "/v1/messages":
        raise HttpError(404, "this provider only answers messages")
    asked = request.json_object()
    events = canned_events(str(asked.get("model", "")))
    if asked.get("stream") is not True:
        return Response.json(200, _message(str(asked.get("model", "")), [{"type": "text", "text": ANSWER}], "end_turn"))
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Response(200, body.encode(), {"content-type": "text/event-stream"})


def canned_events(model: str) -> list[dict[str, Any]]:
    """The events of an answer that is streamed."""
    return [
        {"type": "message_start", "message": _message(model, [], None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ANSWER}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
    ]


def _message(model: str, content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
    return {
        "id": "msg_warm_up",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
