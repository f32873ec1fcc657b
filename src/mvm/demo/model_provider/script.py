"""What the stand-in model says: rules given by a test or an operator, and sensible answers without any.

Without a rule it repeats what it is told ("You said: hello"), says so when it gets a picture, and sets a reminder when
asked to ("remind me in 30 seconds to stretch") if the request offers a tool for that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

Json = dict[str, object]

REMINDER_TOOLS = ("automations", "cron")
CATALOG_SEARCH, CATALOG_CALL = "tool_search", "tool_call"
_WISH = re.compile(
    r"remind me in (?P<count>\d{1,5}) ?(?P<unit>s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b(?: to)? (?P<what>.+)",
    re.IGNORECASE | re.DOTALL,
)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
_STAMP = re.compile(r"\A\s*\[[^\]\n]*\d{4}-\d\d-\d\d[^\]\n]*\]\s*")
_INTERNAL = re.compile(r"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>.*?<<<END_OPENCLAW_INTERNAL_CONTEXT>>>\s*", re.DOTALL)
_CONTEXT = re.compile(
    r"^[^\n]*(?:⟦openclaw:ctx⟧|\(untrusted[^\n]*\):)[^\n]*\n(?:```json\n.*?\n```\s*)?", re.MULTILINE | re.DOTALL
)
_MEDIA = re.compile(r"\A\s*(?:\[media attached[^\]\n]*\]\s*)+")
_CRON = re.compile(r"\[cron:(?P<id>\S+)(?: (?P<name>[^\]]*))?\]\s*(?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """Answer with `text` after `delay` seconds, streamed in pieces `pause` seconds apart."""

    text: str
    delay: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class ToolUse:
    """Call a tool of the client's."""

    name: str
    input: Json
    text: str = ""
    delay: float = 0.0


@dataclass(frozen=True)
class Trouble:
    """Fail: answer `status` (429, 529, 401...), or hang (`status` 0), or break off amid the stream (`status` -1)."""

    status: int
    message: str | None = None
    retry_after: int | None = None
    delay: float = 0.0


Step = Reply | ToolUse | Trouble


@dataclass
class Rule:
    """What to do with requests in which the person's words contain `contains`, `times` times (None: always).

    The first request that fits gets the first step, the next the second; the last step stays.
    """

    steps: list[Step]
    contains: str = ""
    times: int | None = None
    model: str | None = None
    used: int = field(default=0, init=False)

    def fits(self, text: str, model: str) -> bool:
        spent = self.times is not None and self.used >= self.times
        return not spent and self.contains in text and self.model in (None, model)

    def take(self) -> Step:
        step = self.steps[min(self.used, len(self.steps) - 1)]
        self.used += 1
        return step

    @classmethod
    def parse(cls, given: Json) -> Rule:
        """From JSON: `contains`, `times`, `model` and `steps`, each `{"reply"|"tool"|"trouble": {...}}`.

        ValueError or TypeError says what is wrong.
        """
        forms: dict[str, type[Reply] | type[ToolUse] | type[Trouble]] = {
            "reply": Reply,
            "tool": ToolUse,
            "trouble": Trouble,
        }
        steps: list[Step] = []
        for step in cast(list[dict[str, Json]], given.get("steps", [])):
            ((name, fields),) = step.items()
            if name not in forms:
                raise ValueError(f"a step is one of {', '.join(forms)}, not {name!r}")
            steps.append(forms[name](**fields))  # type: ignore[arg-type]
        if not steps:
            raise ValueError("a rule has at least one step")
        times, model = given.get("times"), given.get("model")
        return cls(
            steps,
            contains=str(given.get("contains", "")),
            times=None if times is None else int(str(times)),
            model=None if model is None else str(model),
        )


@dataclass(frozen=True)
class Asked:
    """What a request asks: the words that began the turn, its pictures, and the tool calls made in it so far."""

    words: str
    images: list[Json]
    uses: list[Json]
    results: list[Json]

    @property
    def fresh(self) -> bool:
        """Whether this begins a turn: no tool has answered yet."""
        return not self.results


def read_asked(messages: list[Json]) -> Asked:
    """The turn that these messages end with.

    It begins with the last words of a person that are left when the context which OpenClaw adds is taken away; after
    them come only tool calls of the model, the tools' results, and more context.
    """
    words = ""
    turn: list[Json] = []
    for message in reversed(messages):
        turn = _blocks(message) + turn
        said = [person_words(str(block["text"])) for block in _blocks(message) if block.get("type") == "text"]
        answered = message["role"] == "assistant" and not any(b.get("type") == "tool_use" for b in _blocks(message))
        if answered:
            break
        if message["role"] == "user" and any(said):
            words = next(text for text in reversed(said) if text)
            break
    return Asked(
        words,
        [block for block in turn if block.get("type") == "image"],
        [block for block in turn if block.get("type") == "tool_use"],
        [block for block in turn if block.get("type") == "tool_result"],
    )


def _blocks(message: Json) -> list[Json]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else cast(list[Json], content)


def person_words(text: str) -> str:
    """What the person typed, without the time stamp and the context that OpenClaw puts around it."""
    bare = _STAMP.sub("", _INTERNAL.sub("", text))
    return _MEDIA.sub("", _STAMP.sub("", _CONTEXT.sub("", bare))).strip()


def improvise(messages: list[Json], tools: list[Json], now: float) -> Step:
    """The answer where no rule fits. `now` is the wall clock in seconds."""
    asked = read_asked(messages)
    offered = [str(tool.get("name")) for tool in tools]
    if fired := _CRON.search(asked.words):
        return Reply(_first_line(fired["text"]))
    if wish := _WISH.search(asked.words):
        return _remind(asked, wish, offered, now)
    if asked.results:
        return Reply(_tell_result(asked.results[-1]))
    if asked.images:
        kinds = ", ".join(str(cast(Json, image["source"]).get("media_type", "a link")) for image in asked.images)
        count = len(asked.images)
        return Reply(f"You sent {count} picture{'s' if count > 1 else ''} ({kinds}) and said: {asked.words}")
    return Reply(f"You said: {asked.words}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip() or "It is time."


def _remind(asked: Asked, wish: re.Match[str], offered: list[str], now: float) -> Step:
    """Set a reminder with the tool for that, directly or through OpenClaw's tool catalog, then say so."""
    seconds = int(wish["count"]) * _UNIT_SECONDS[wish["unit"][0].lower()]
    what = wish["what"].strip().splitlines()[0].rstrip(".!")
    at = datetime.fromtimestamp(now, UTC) + timedelta(seconds=seconds)
    job: Json = {
        "name": f"Reminder: {what}"[:60],
        "schedule": {"kind": "at", "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z")},
        "sessionTarget": "isolated",
        "payload": {"kind": "agentTurn", "message": f"Reminder: {what}"},
        "deleteAfterRun": True,
    }
    call: Json = {"action": "add", "job": job}
    if asked.results and _is_error(asked.results[-1]):
        return Reply(_tell_result(asked.results[-1]))
    last = asked.uses[-1]["name"] if asked.uses else None
    direct = next((tool for tool in REMINDER_TOOLS if tool in offered), None)
    if last is None and direct is not None:
        return ToolUse(direct, call)
    if last is None and CATALOG_SEARCH in offered:
        return ToolUse(CATALOG_SEARCH, {"query": "automations: schedule a reminder (cron job)"})
    if last == CATALOG_SEARCH:
        found = next((tool for tool in REMINDER_TOOLS if f'"{tool}"' in _result_text(asked.results[-1])), None)
        if found is not None:
            return ToolUse(CATALOG_CALL, {"id": found, "args": call})
    if last is None or last == CATALOG_SEARCH:
        return Reply("I have no tool for reminders here.")
    return Reply(f"Done. I will remind you in {wish['count']} {wish['unit']}: {what}")


def _tell_result(result: Json) -> str:
    failed = result.get("is_error") is True or _is_error(result)
    return f"{'That did not work' if failed else 'Done'}: {_result_text(result)[:300]}"


def _is_error(result: Json) -> bool:
    try:
        told = json.loads(_result_text(result))
    except ValueError:
        return False
    return isinstance(told, dict) and (told.get("status") == "error" or told.get("ok") is False)


def _result_text(result: Json) -> str:
    content = result.get("content", "")
    if isinstance(content, str):
        return content
    return "\n".join(str(block.get("text", "")) for block in cast(list[Json], content) if block.get("type") == "text")
