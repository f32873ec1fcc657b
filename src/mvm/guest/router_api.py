"""What the gateway's OpenClaw plugin asks of the router, over loopback HTTP.

The router decides and remembers; the plugin talks to OpenClaw. Whatever is answered to a delivery is on disk before,
so the plugin and the router may each die at any point. In errors, `error` is a sentence that may be shown to the
person who wrote, `reason` is for the operator.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from mvm.guest.database import StorageError
from mvm.guest.http import HttpError, Request, Response, TakeOver
from mvm.guest.journal import Delivery, DeliveryJournal, UnknownDelivery
from mvm.guest.router_host import Events
from mvm.guest.router_lobby import Lobby
from mvm.guest.router_table import RouterTable, Worker
from mvm.guest.router_wake import NOTICE_REFUSED, WakeFailed, Wakes
from mvm.guest.router_ws import WorkerPipe
from mvm.guest.tokens import TokenFile
from mvm.guest.trace import trace_of, valid_trace

log = logging.getLogger(__name__)

MAX_KEY = 512
MAX_CONVERSATION = 512
MAX_NOTICE = 4096
MAX_REASON = 1000
NO_ANSWER = "Your message could not be answered. Please try again."
NOT_WRITTEN = "Your message could not be taken just now. Please send it again in a minute."

_PEER = re.compile(r"[a-z][a-z0-9-]{0,31}:[^\s:][^\s]{0,127}")


class RouterApi:
    """Handler of the router's loopback server."""

    def __init__(
        self,
        *,
        token: TokenFile,
        table: RouterTable,
        journal: DeliveryJournal,
        wakes: Wakes,
        workers: WorkerPipe,
        lobby: Lobby,
        events: Events,
    ) -> None:
        self._token = token
        self._table = table
        self._journal = journal
        self._wakes = wakes
        self._workers = workers
        self._lobby = lobby
        self._events = events

    async def handle(self, request: Request) -> Response | TakeOver:
        """Serve one request of the plugin."""
        segments = request.segments
        if segments == ["v1", "healthz"] and request.method == "GET":
            return Response.json(200, {"ok": True, "in_flight": self._workers.in_flight})
        # GatewayClient cannot set headers; the token may come in the query, on loopback only.
        if not self._token.matches(request.bearer or request.query("token")):
            return Response.error(401, "this token is not the router's")
        try:
            return await self._route(request, segments)
        except StorageError as error:
            log.error("the journal cannot be used: %s", error)
            self._events.report("JournalFailed", str(error))
            return Response.error(503, NOT_WRITTEN, reason=f"the journal cannot be used: {error}", retry=True)
        except UnknownDelivery as error:
            return Response.error(404, NO_ANSWER, reason=f"there is no delivery {error}", retry=False)

    async def _route(self, request: Request, segments: list[str]) -> Response | TakeOver:
        match request.method, segments:
            case "POST", ["v1", "deliveries"]:
                return await self._begin(request.json_object())
            case "POST", ["v1", "deliveries", key, "answered"]:
                payload = request.json_object().get("payload")
                if not isinstance(payload, dict):
                    raise HttpError(400, "payload is missing")
                await self._journal.answered(key, payload)
                return Response(204)
            case "POST", ["v1", "deliveries", key, "sent"]:
                delivery = await self._journal.sent(key)
                trace = trace_of(key)
                log.info("trace %s: the answer of %s is sent", trace, delivery.worker)
                self._events.report("AnswerSent", key, user=delivery.user, worker=delivery.worker, trace=trace)
                return Response(204)
            case "POST", ["v1", "deliveries", key, "failed"]:
                return await self._failed(key, request.json_object())
            case "POST", ["v1", "workers", key, "wake"]:
                return await self._wake(key, request.json_object().get("trace"))
            case "GET", ["v1", "workers", key, "ws"] if request.wants_upgrade:
                worker = self._granted(key)
                return self._not_granted(key) if worker is None else await self._workers.serve(worker, request)
        return Response.error(404, "there is nothing here", reason=f"{request.method} {request.path} is not served")

    async def _begin(self, body: dict[str, Any]) -> Response:
        key = _text(body, "key", MAX_KEY)
        peer = _text(body, "peer", 160)
        conversation = _text(body, "conversation", MAX_CONVERSATION)
        if not _PEER.fullmatch(peer):
            raise HttpError(400, "peer is not of the form 'channel:sender'")
        worker = self._table.for_peer(peer)
        if worker is None:
            known = await self._journal.find(key)
            if known is not None and known.peer == peer and known.state.finished:
                return _delivery_answer(known)
            return Response.json(200, {"state": "unknown_sender", "notice": await self._stranger(peer, body)})
        delivery = await self._journal.accept(
            key=key, peer=peer, conversation=conversation, user=worker.user_id, worker=worker.key
        )
        if delivery.peer != peer:
            raise HttpError(409, "this key belongs to a message of somebody else")
        log.info("trace %s: a message for %s, attempt %d", trace_of(key), worker.key, delivery.attempts)
        return _delivery_answer(delivery)

    async def _stranger(self, peer: str, body: dict[str, Any]) -> str | None:
        name = body.get("display_name")
        return await self._lobby.notice(peer, name[:256] if isinstance(name, str) and name else None)

    async def _failed(self, key: str, body: dict[str, Any]) -> Response:
        reason = str(body.get("reason") or "no reason was given")[:MAX_REASON]
        notice = body.get("notice")
        text = notice[:MAX_NOTICE] if isinstance(notice, str) and notice.strip() else NO_ANSWER
        delivery = await self._journal.failed(key, reason=reason, notice=text)
        trace = trace_of(key)
        log.warning("trace %s: given up: %s", trace, reason)
        self._events.report(
            "DeliveryFailed", f"{key}: {reason}", user=delivery.user, worker=delivery.worker, trace=trace
        )
        return Response(204)

    async def _wake(self, key: str, trace: object) -> Response:
        worker = self._granted(key)
        if worker is None:
            return self._not_granted(key)
        try:
            await self._wakes.wake(worker, trace=valid_trace(trace))
        except WakeFailed as failure:
            self._events.report("WakeFailed", f"{key}: {failure.reason}", user=worker.user_id, worker=worker.key)
            return Response.error(503, failure.notice, reason=failure.reason, retry=failure.retry)
        return Response.json(200, {"state": "running"})

    def _granted(self, key: str) -> Worker | None:
        worker = self._table.for_key(key)
        return worker if worker is not None and worker.granted else None

    def _not_granted(self, key: str) -> Response:
        reason = f"no route of this gateway leads to the worker {key[:130]}"
        return Response.error(404, NOTICE_REFUSED, reason=reason, retry=False)


def _delivery_answer(delivery: Delivery) -> Response:
    answer: dict[str, Any] = {
        "state": "answered" if delivery.state.finished else delivery.state.value,
        "user": delivery.user,
        "worker": delivery.worker,
        "attempt": delivery.attempts,
    }
    if delivery.state.finished:
        answer["payload"] = delivery.payload
        answer["sent"] = delivery.state.value == "sent"
    return Response.json(200, answer)


def _text(body: dict[str, Any], name: str, limit: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise HttpError(400, f"{name} is missing or longer than {limit} characters")
    return value
