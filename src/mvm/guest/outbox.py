"""The worker's outbox: what this OpenClaw has to say to its person without having been asked (reminders).

OpenClaw posts to a loopback port; the message is on disk before that is answered (202), so OpenClaw may forget it. From
there it travels to the gateway's router, in order, repeated until the gateway has taken it over. While something waits
here the worker counts as busy.
"""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mvm.guest import courier
from mvm.guest.courier import Attempt, Courier, Message, QueueFull, Verdict
from mvm.guest.database import Database, StorageError
from mvm.guest.http import HttpError, Request, Response, TakeOver
from mvm.guest.http_client import call_json
from mvm.guest.http_server import HttpServer
from mvm.guest.tokens import TokenFile

log = logging.getLogger(__name__)

MAX_TEXT = 128 * 1024
FORWARD_SECONDS = 30.0
LANE = ""
_NEVER = (400, 413, 422)
"""Statuses of the gateway that no repetition will change."""
_PLAIN_ID = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True, kw_only=True)
class OutboxSettings:
    """Everything the outbox is told."""

    port: int
    """Loopback port for OpenClaw."""
    database: Path
    token: Path
    """The outbox's own token, made when absent."""
    gateway_url: str
    """Base address of the gateway's outbound port."""
    worker_key: str
    auth_token: Path
    """File with this worker's OPENCLAW_AUTH_TOKEN, by which the gateway knows it."""
    guest_ip: str | None
    """Own address in the tenant's network, by which the gateway knows it too; None: whatever the kernel chooses."""
    longest_delay: float = courier.LONGEST_DELAY


@dataclass(frozen=True)
class Submission:
    """What OpenClaw (or its plugin) handed in."""

    id: str
    text: str


def submission_of(body: dict[str, Any], idempotency_key: str | None) -> Submission | None:
    """Read what was posted; None when it says nothing. Raises `HttpError` 422 for what is neither form.

    Two forms are taken: `{"text", "id"?}` from mvm's plugin, and the finished-run event of OpenClaw's cron webhook
    (`jobId`, `runAtMs`, `status`, `summary`), whose job and run make the id, so that its repetitions are known.
    """
    if isinstance(body.get("jobId"), str):
        derived = f"cron:{body['jobId']}:{body.get('runAtMs', '')}"
        text = body.get("summary") or body.get("message") or ""
        if not text and body.get("status") == "error":
            job = body.get("job")
            name = body.get("jobName") or (job.get("name") if isinstance(job, dict) else None) or "a scheduled task"
            text = f"Something you had scheduled could not be done: {name}."
    elif "text" in body:
        derived = body.get("id") or str(uuid.uuid4())
        text = body["text"]
    else:
        raise HttpError(422, "the body has neither 'text' nor 'jobId'")
    id = idempotency_key or derived
    if not isinstance(text, str) or len(text.encode(errors="replace")) > MAX_TEXT:
        raise HttpError(422, f"the text has to be a string of at most {MAX_TEXT} bytes")
    if not isinstance(id, str):
        raise HttpError(422, "the id has to be a string")
    if not _PLAIN_ID.fullmatch(id):  # it travels in a header
        id = f"sha256-{hashlib.sha256(id.encode(errors='replace')).hexdigest()}"
    return Submission(id, text) if text.strip() else None


class Outbox:
    """Takes messages on loopback and carries them to the gateway."""

    def __init__(
        self,
        settings: OutboxSettings,
        *,
        on_event: Callable[[str, str], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_event(kind, detail)` hears what an operator should; `on_change` is called whenever `pending` changes."""
        self._settings = settings
        self._on_event = on_event
        self._token = TokenFile(settings.token)
        self._auth = TokenFile(settings.auth_token)
        self._database = Database(
            settings.database,
            schema=courier.SCHEMA,
            version=courier.VERSION,
            on_set_aside=lambda text: on_event("OutboxSetAside", text),
        )
        self._courier = Courier(
            self._database,
            self._forward,
            on_given_up=self._given_up,
            on_change=on_change,
            longest_delay=settings.longest_delay,
        )
        self._server = HttpServer(self._handle, max_connections=32)

    @property
    def pending(self) -> int:
        """Messages that the gateway has not taken over yet."""
        return self._courier.pending

    @property
    def port(self) -> int:
        """Loopback port that OpenClaw posts to."""
        return self._server.port

    async def start(self) -> None:
        """Serve, and take up what an earlier run left. Raises `OSError` or `StorageError`."""
        self._token.ensure()
        await self._database.open()
        await self._courier.start()
        await self._courier.forget_old()
        await self._server.start("127.0.0.1", self._settings.port)

    def configure(self, settings: OutboxSettings) -> None:
        """Take over a changed gateway or key; ports and files stay those of the start."""
        self._settings = settings
        self._auth = TokenFile(settings.auth_token)
        self._courier.nudge()

    def nudge(self) -> None:
        """Try again at once what waits (the network is back)."""
        self._courier.nudge()

    async def close(self, grace: float = 3.0) -> None:
        """Take nothing new, let what is on its way end; the rest stays on disk."""
        await self._server.close(grace)
        await self._courier.close(grace)
        await self._database.close()

    async def _handle(self, request: Request) -> Response | TakeOver:
        if not self._token.matches(request.bearer):
            return Response.error(401, "this token is not the outbox's")
        if request.segments != ["v1", "outbound"]:
            return Response.error(404, "there is nothing here")
        if request.method != "POST":
            return Response.error(405, "only POST is possible here")
        submission = submission_of(request.json_object(), request.headers.get("idempotency-key"))
        if submission is None:
            return Response.json(202, {"id": None, "duplicate": False})
        try:
            added = await self._courier.put(LANE, submission.id, {"text": submission.text})
        except QueueFull as error:
            return Response.error(429, str(error))
        except StorageError as error:
            log.error("an outbound message cannot be written down: %s", error)
            return Response.error(503, "the message cannot be written down right now")
        return Response.json(202, {"id": submission.id, "duplicate": not added})

    async def _forward(self, message: Message) -> Attempt:
        url = urlsplit(self._settings.gateway_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            return Attempt(Verdict.LATER, "the configuration names no gateway")
        secure = url.scheme == "https"
        try:
            answer = await call_json(
                url.hostname,
                url.port or (443 if secure else 80),
                "POST",
                f"{url.path.rstrip('/')}/v1/outbound/{self._settings.worker_key}",
                {"id": message.id, "text": message.body["text"]},
                headers={"Authorization": f"Bearer {self._auth.read()}", "Idempotency-Key": message.id},
                seconds=FORWARD_SECONDS,
                source=self._settings.guest_ip,
                tls=ssl.create_default_context() if secure else None,
            )
        except (OSError, HttpError) as error:
            return Attempt(Verdict.LATER, f"the gateway did not answer: {error or type(error).__name__}")
        if 200 <= answer.status < 300:
            return Attempt(Verdict.TAKEN)
        reason = f"the gateway answered {answer.status}"
        return Attempt(Verdict.NEVER if answer.status in _NEVER else Verdict.LATER, reason)

    def _given_up(self, message: Message, reason: str) -> None:
        self._on_event("OutboundFailed", f"a message to this worker's person is given up: {reason}")
