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
_ASKED = re.compile(
    r"remind me in (?P<count>\d{1,5}) ?(?P<unit>s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b(?: to)? (?P<what>.+)",
    re.IGNORECASE | re.DOTALL,
)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
_ENVELOPE = re.compile(r"\A(?:\s*\[[^\]\n]{1,300}\])+\s*")
_UNTRUSTED = re.compile(r"^[^\n]*\(untrusted[^\n]*\):\n```json\n.*?\n```\s*", re.MULTILINE | re.DOTALL)
_SYSTEM_LINE = re.compile(r"^System(?: \(untrusted\))?: [^\n]*\n+", re.MULTILINE)
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
    """What to do with requests whose last text contains `contains`, `times` times (None: always), in `steps` by turn.

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


def last_texts(messages: list[Json]) -> tuple[str, list[Json]]:
    """The text of the last message and its other blocks (images, tool results)."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content, []
    blocks = cast(list[Json], content)
    texts = [str(block["text"]) for block in blocks if block.get("type") == "text"]
    return "\n".join(texts), [block for block in blocks if block.get("type") != "text"]


def person_words(text: str) -> str:
    """What the person typed, without the envelope and the context blocks that OpenClaw puts before it."""
    bare = _SYSTEM_LINE.sub("", _UNTRUSTED.sub("", text))
    return _ENVELOPE.sub("", bare).strip() or text.strip()


def improvise(messages: list[Json], tools: list[Json], now: float) -> Step:
    """The answer where no rule fits. `now` is the wall clock in seconds."""
    text, others = last_texts(messages)
    results = [block for block in others if block.get("type") == "tool_result"]
    if results:
        return Reply(_after_tool(messages, results))
    if fired := _CRON.search(text):
        return Reply(_first_paragraph(fired["text"]))
    words = person_words(text)
    offered = [str(tool.get("name")) for tool in tools]
    tool = next((name for name in REMINDER_TOOLS if name in offered), None)
    if (asked := _ASKED.search(words)) and tool is not None:
        return _reminder(tool, asked, now)
    images = [block for block in others if block.get("type") == "image"]
    if images:
        kinds = ", ".join(str(cast(Json, image["source"]).get("media_type", "a link")) for image in images)
        return Reply(f"You sent {len(images)} picture{'s' if len(images) > 1 else ''} ({kinds}) and said: {words}")
    return Reply(f"You said: {words}")


def _first_paragraph(text: str) -> str:
    return text.strip().split("\n\n")[0].strip() or "It is time."


def _reminder(tool: str, asked: re.Match[str], now: float) -> ToolUse:
    seconds = int(asked["count"]) * _UNIT_SECONDS[asked["unit"][0].lower()]
    what = asked["what"].strip().rstrip(".!")
    at = datetime.fromtimestamp(now, UTC) + timedelta(seconds=seconds)
    job: Json = {
        "name": f"Reminder: {what}"[:60],
        "schedule": {"kind": "at", "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z")},
        "sessionTarget": "isolated",
        "payload": {"kind": "agentTurn", "message": f"Reminder: {what}"},
        "deleteAfterRun": True,
    }
    return ToolUse(tool, {"action": "add", "job": job})


def _after_tool(messages: list[Json], results: list[Json]) -> str:
    failed = [_result_text(result) for result in results if result.get("is_error") is True or _is_error(result)]
    if failed:
        return f"That did not work: {failed[0][:300]}"
    uses = cast(list[Json], messages[-2]["content"]) if isinstance(messages[-2]["content"], list) else []
    for use in uses:
        given = use.get("input")
        if use.get("name") in REMINDER_TOOLS and isinstance(given, dict) and isinstance(given.get("job"), dict):
            return f"Done, I have set it. {given['job'].get('name', 'Reminder')}"
    return f"Done: {_result_text(results[0])[:300]}"


def _is_error(result: Json) -> bool:
    try:
        told = json.loads(_result_text(result))
    except ValueError:
        return False
    return isinstance(told, dict) and told.get("status") == "error"


def _result_text(result: Json) -> str:
    content = result.get("content", "")
    if isinstance(content, str):
        return content
    return "\n".join(str(block.get("text", "")) for block in cast(list[Json], content) if block.get("type") == "text")
