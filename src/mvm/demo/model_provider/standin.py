"""The model provider's stand-in: one object that serves the Messages API and plays the model."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from mvm.demo.loopback import LoopbackServer
from mvm.demo.model_provider import admin, messages_api, openai_api
from mvm.demo.model_provider.journal import Journal
from mvm.demo.model_provider.script import Rule, Step, improvise

SERVER_NAME = "mvm-model-standin"
ABOUT = "a stand-in for model providers, part of mvm; there is no model behind it"
DEFAULT_MODEL = "claude-sonnet-4-5"
MODELS = (DEFAULT_MODEL, "claude-opus-5", "claude-opus-4-5", "claude-haiku-4-5", "gpt-6-astra")
_MAX_REQUEST_BYTES = 32 * 1024 * 1024


class ModelStandIn:
    """The Anthropic Messages API (and OpenAI chat completions) on a loopback port; an async context manager.

    Only keys in `keys` are let in; `standin.key` is the first. `rules` are asked in order, before what the stand-in
    says by itself. Every request is in `journal`.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        key: str | None = None,
        admin_token: str | None = None,
        models: tuple[str, ...] = MODELS,
        max_output_tokens: int = 64000,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.key = key or f"sk-ant-api03-{secrets.token_urlsafe(36)}"
        self.keys = {self.key}
        self.models = models
        self.max_output_tokens = max_output_tokens
        self.admin_token = admin_token or secrets.token_urlsafe(24)
        self.now = now
        self.journal = Journal()
        self.rules: list[Rule] = []
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        messages_api.add_routes(app, self)
        openai_api.add_routes(app, self)
        admin.add_routes(app, self)
        self._server = LoopbackServer(app, name=SERVER_NAME, about=ABOUT, port=port)

    @property
    def url(self) -> str:
        """The base URL, as `baseUrl` of a provider takes it."""
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def add_key(self, key: str) -> None:
        self.keys.add(key)

    def revoke(self, key: str | None = None) -> None:
        """Refuse a key (the first one by default) from now on."""
        self.keys.discard(key or self.key)

    def knows(self, key: str) -> bool:
        return any(secrets.compare_digest(key.encode(), known.encode()) for known in self.keys)

    def script(self, *steps: Step, contains: str = "", times: int | None = None, model: str | None = None) -> Rule:
        """Add a rule for requests in which the person's words contain `contains`; see `Rule`."""
        rule = Rule(list(steps), contains, times, model)
        self.rules.append(rule)
        return rule

    def decide(self, words: str, model: str, messages: list[dict[str, object]], tools: list[dict[str, object]]) -> Step:
        """The step that this request gets."""
        for rule in self.rules:
            if rule.fits(words, model):
                return rule.take()
        return improvise(messages, tools, self.now())

    async def wait_for_turns(self, count: int = 1, *, containing: str = "", timeout: float = 30.0) -> None:
        """Return when `count` turns with this text have begun; `TimeoutError` otherwise."""
        await self.journal.wait(lambda: len(self.journal.turns(containing=containing)) >= count, timeout=timeout)

    async def hang(self) -> None:
        """Never return: until the caller goes away or the stand-in stops."""
        await asyncio.Event().wait()
