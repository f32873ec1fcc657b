"""Messages from a worker to its person that nobody asked for (reminders), on their way through the gateway.

A worker's outbox posts to `http://<guest_ip>:<outbound port>/v1/outbound/<worker key>`; the router knows it by token
*and* its address, writes the message down, and only then takes it over (202). From there it is the router's: handed to
OpenClaw's plugin, again and again, until it was sent.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mvm.guest.courier import Attempt, Courier, Message, QueueFull, Verdict
from mvm.guest.database import Database, StorageError
from mvm.guest.http import HttpError, Request, Response, TakeOver
from mvm.guest.http_client import call_json
from mvm.guest.router_host import Events, HostRefused, HostUnreachable
from mvm.guest.router_table import RouterTable, Worker
from mvm.guest.router_wake import Wakes
from mvm.guest.tokens import TokenFile

log = logging.getLogger(__name__)

PLUGIN_PATH = "/mvm/outbound"
PLUGIN_SECONDS = 60.0
MAX_TEXT = 128 * 1024
MAX_QUEUED_PER_WORKER = 100
"""More of one worker's messages wait in its own outbox: no worker can fill everybody's gateway."""
_PLAIN_ID = re.compile(r"[!-~]{1,200}")
_NEVER = (400, 413, 422)
"""Statuses of the plugin that no repetition will change."""


class OutboundDesk:
    """Takes messages from workers and carries them to OpenClaw's plugin."""

    def __init__(
        self,
        *,
        database: Database,
        table: RouterTable,
        wakes: Wakes,
        events: Events,
        worker_tokens: Path,
        router_token: TokenFile,
        openclaw_port: int,
        longest_delay: float = 60.0,
    ) -> None:
        """`worker_tokens` is the directory with one token file per granted worker."""
        self._table = table
        self._wakes = wakes
        self._events = events
        self._tokens = worker_tokens
        self._router_token = router_token
        self._openclaw_port = openclaw_port
        self._courier = Courier(
            database,
            self._hand_over,
            on_given_up=self._given_up,
            max_per_lane=MAX_QUEUED_PER_WORKER,
            longest_delay=longest_delay,
        )

    @property
    def pending(self) -> int:
        """Messages that OpenClaw has not sent yet."""
        return self._courier.pending

    async def start(self) -> None:
        """Take up what an earlier run left."""
        await self._courier.start()

    async def close(self, grace: float) -> None:
        """Let what is being handed over end, keep the rest on disk."""
        await self._courier.close(grace)

    async def forget_old(self) -> None:
        """Forget the ids of messages sent long ago."""
        await self._courier.forget_old()

    def nudge(self) -> None:
        """Try again at once (the users changed)."""
        self._courier.nudge()

    async def handle(self, request: Request) -> Response | TakeOver:
        """Serve a worker's outbox."""
        segments = request.segments
        if len(segments) != 3 or segments[:2] != ["v1", "outbound"]:
            return Response.error(404, "there is nothing here")
        if request.method != "POST":
            return Response.error(405, "only POST is possible here")
        worker = self._table.for_key(segments[2])
        # A worker that is not served here and a wrong token look the same from outside, and take the same time.
        token = TokenFile(self._tokens / worker.key) if worker else self._router_token
        if not token.matches(request.bearer) or worker is None:
            return Response.error(401, "this token is not valid for this worker")
        if not await self._comes_from(worker, request.peer):
            log.error("a message for %s came from %s, which is not its address", worker.key, request.peer)
            self._events.report(
                "OutboundRefused", f"{request.peer} used the token of {worker.key}", user=worker.user_id
            )
            return Response.error(401, "this token is not valid for this worker")
        text, id = _message_of(request)
        try:
            added = await self._courier.put(worker.key, id, _entry(worker, text))
        except QueueFull as error:
            return Response.error(429, str(error))
        except StorageError as error:
            log.error("an outbound message cannot be written down: %s", error)
            return Response.error(503, "the gateway cannot write the message down right now")
        return Response.json(202, {"id": id, "duplicate": not added})

    async def _comes_from(self, worker: Worker, source: str) -> bool:
        if self._wakes.known_address(worker) == source:
            return True
        try:
            return await self._wakes.address(worker) == source
        except HostRefused:
            return False
        except HostUnreachable as error:
            raise HttpError(503, "the gateway cannot check the sender right now") from error

    async def _hand_over(self, message: Message) -> Attempt:
        worker = self._table.for_key(message.lane)
        if worker is None:
            return Attempt(Verdict.LATER, "this worker is not served here any more")
        if worker.reply_peer is None:
            return Attempt(Verdict.LATER, "this user has not been paired with anyone yet")
        if not _is_for(worker, message.body):
            return Attempt(Verdict.NEVER, "it was for somebody else, whose worker had the same name")
        channel, _, sender = worker.reply_peer.partition(":")
        body = {
            "id": f"{message.lane}:{message.id}",
            "channel": channel,
            # A bare number is a channel at Discord, not somebody to write to.
            "to": f"user:{sender}" if channel == "discord" else sender,
            "text": message.body["text"],
        }
        try:
            answer = await call_json(
                "127.0.0.1",
                self._openclaw_port,
                "POST",
                PLUGIN_PATH,
                body,
                headers={"Authorization": f"Bearer {self._router_token.read()}", "Idempotency-Key": body["id"]},
                seconds=PLUGIN_SECONDS,
            )
        except (OSError, HttpError) as error:
            return Attempt(Verdict.LATER, f"OpenClaw did not answer: {error or type(error).__name__}")
        if answer.status == 200:
            return Attempt(Verdict.TAKEN)
        reason = f"OpenClaw answered {answer.status}: {answer.body[:400].decode(errors='replace')}"
        return Attempt(Verdict.NEVER if answer.status in _NEVER else Verdict.LATER, reason)

    def _given_up(self, message: Message, reason: str) -> None:
        worker = self._table.for_key(message.lane)
        self._events.report(
            "OutboundFailed",
            f"a message from {message.lane} to its person is given up: {reason}",
            user=None if worker is None else worker.user_id,
        )


def _message_of(request: Request) -> tuple[str, str]:
    """Text and id of the message; raises `HttpError` 422 for one that can never be sent."""
    body = request.json_object()
    text = body.get("text")
    if not isinstance(text, str) or not text.strip() or len(text.encode(errors="replace")) > MAX_TEXT:
        raise HttpError(422, f"the message needs a text of 1 to {MAX_TEXT} bytes")
    id = request.headers.get("idempotency-key") or body.get("id")
    if not isinstance(id, str) or not _PLAIN_ID.fullmatch(id):  # it travels on in a header, and is in logs
        raise HttpError(422, "the message needs an Idempotency-Key of 1 to 200 plain characters")
    return text, id


def _entry(worker: Worker, text: str) -> dict[str, Any]:
    """What is written down: also for whom it is, because names come into other hands."""
    return {"text": text, "instance_id": worker.instance_id, "peers": list(worker.peers)}


def _is_for(worker: Worker, entry: dict[str, Any]) -> bool:
    """Whether its person of now may read it: the worker is the one that wrote it, or the person is the same."""
    return worker.instance_id == entry["instance_id"] or worker.reply_peer in entry["peers"]
