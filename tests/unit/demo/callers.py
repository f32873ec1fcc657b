"""What the tests of the stand-ins say and send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mvm.demo.model_provider import DEFAULT_MODEL

Json = dict[str, object]
BotCall = Callable[..., Awaitable[tuple[int, dict[str, object]]]]

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)


ALICE, BOB, STRANGER = 111, 222, 333


def refused(code: int, description: str) -> tuple[int, dict[str, object]]:
    """The Bot API's answer that a call is refused."""
    return code, {"ok": False, "error_code": code, "description": description}


def request_body(*messages: Json, **others: object) -> Json:
    """A request with these messages (a person's "hello" without any)."""
    said = list(messages) or [{"role": "user", "content": "hello"}]
    return {"model": DEFAULT_MODEL, "max_tokens": 1000, "messages": said, **others}
