"""Somebody who writes to the bot through the Telegram stand-in of another process."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from mvm.demo.standins import TelegramAddress
from mvm.model.errors import MvmError, TimedOut, Unavailable

_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """A message from the bot: its text, and when Telegram received it (wall clock, seconds)."""

    text: str
    at: float


class Person:
    """One person and the bot; an async context manager."""

    def __init__(self, address: TelegramAddress, person_id: int, name: str) -> None:
        self._address = address
        self._id = person_id
        self._name = name
        self._after = 0
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._address.admin_token}"})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def say(self, text: str) -> None:
        """Write to the bot; `Unavailable` when the stand-in does not answer."""
        body = {"from": self._id, "text": text, "first_name": self._name}
        answer = await self._call("POST", "say", body=body, seconds=_GRACE_SECONDS)
        self._after = int(str(answer["number"]))

    async def hear(self, *, count: int = 1, timeout: float) -> list[Answer]:
        """The bot's messages since the last `say`, once there are `count`; `TimedOut` after `timeout` seconds."""
        query = {"chat": self._id, "count": count, "after": self._after, "timeout": timeout}
        answer = await self._call("GET", "answers", query=query, seconds=timeout + _GRACE_SECONDS)
        found = answer["answers"]
        if not isinstance(found, list):
            raise MvmError("the Telegram stand-in sent no list of answers")
        return [Answer(str(entry["text"]), float(entry["at"])) for entry in found]

    async def _call(
        self,
        method: str,
        name: str,
        *,
        query: dict[str, float] | None = None,
        body: dict[str, object] | None = None,
        seconds: float,
    ) -> dict[str, object]:
        if self._http is None:
            raise AssertionError("used outside its context")
        url = f"{self._address.url}/-/admin/{name}"
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._http.request(method, url, params=query, json=body, timeout=limit) as answer:
                if answer.status == 504:
                    raise TimedOut(f"the bot has not answered in time: {await answer.text()}")
                if answer.status != 200:
                    raise MvmError(f"the Telegram stand-in refused {name}: {await answer.text()}")
                found = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as problem:
            raise Unavailable(
                f"the Telegram stand-in does not answer at {self._address.url}: {problem or 'time is over'}",
                hint="`mvm demo` starts it again",
            ) from problem
        if not isinstance(found, dict):
            raise MvmError(f"the Telegram stand-in sent no object for {name}")
        return found
