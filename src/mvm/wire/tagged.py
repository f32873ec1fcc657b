"""Messages as such: externally tagged records, requests that know their answer, closed sets of messages.

A message without fields travels as a string, one with fields as an object with one key (CONTRACT 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from mvm.wire.frames import JsonValue
from mvm.wire.schema import MessageError, Record, Text, type_name

A_co = TypeVar("A_co", bound="Answer", covariant=True)
A = TypeVar("A", bound="Answer")
M = TypeVar("M", bound="Message")

DETAIL = Text(4096)


@dataclass(frozen=True, kw_only=True)
class Message:
    """Anything that travels."""

    tag: ClassVar[str]

    def __init_subclass__(cls, tag: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.tag = tag or cls.__name__


@dataclass(frozen=True, kw_only=True)
class Answer(Message):
    """What answers a request."""


@dataclass(frozen=True, kw_only=True)
class Request(Message, Generic[A_co]):
    """What is asked; `answer` is the class of the answer that it gets when it is not refused."""

    answer: ClassVar[type[Answer]]

    def __init_subclass__(cls, answer: type[Answer], **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.answer = answer


@dataclass(frozen=True, kw_only=True)
class Error(Answer):
    """A refusal or failure; the text is for people and names no internals."""

    message: Annotated[str, DETAIL]


class MessageSet(Generic[M]):
    """A closed set of messages, found by their tags."""

    def __init__(self, *kinds: type[M]) -> None:
        self._bare: dict[str, type[M]] = {}
        self._tagged: dict[str, Record[M]] = {}
        for kind in kinds:
            record = _record(kind)
            if record.is_optional:
                self._bare[kind.tag] = kind
            if record.has_fields:
                self._tagged[kind.tag] = record

    def parse(self, value: JsonValue) -> M:
        """Read a message of this set; raises `MessageError` naming the place."""
        if isinstance(value, str):
            if value in self._bare:
                return self._bare[value]()
            raise MessageError(value[:80], "this message needs fields" if value in self._tagged else self._unknown())
        if not isinstance(value, Mapping):
            raise MessageError("", f"a message is a string or an object with one key, got {type_name(value)}")
        if len(value) != 1:
            raise MessageError("", f"a message is an object with one key, got {len(value)}")
        tag, body = next(iter(value.items()))
        if tag in self._tagged:
            return self._tagged[tag].parse(body, tag)
        raise MessageError(tag[:80], "this message has no fields" if tag in self._bare else self._unknown())

    def _unknown(self) -> str:
        return f"unknown message; the messages are: {', '.join(sorted(self._bare.keys() | self._tagged.keys()))}"


_ANSWERS: dict[type[Request[Any]], MessageSet[Any]] = {}
_RECORDS: dict[type[Message], Record[Any]] = {}


def answers_to(request: type[Request[A]]) -> MessageSet[A | Error]:
    """What may answer a request of this class: its own answer or an `Error`."""
    if request not in _ANSWERS:
        _ANSWERS[request] = MessageSet(request.answer, Error)
    return _ANSWERS[request]


def _record(kind: type[M]) -> Record[M]:
    """The codec of a message class, made on first use because a class body cannot see its own fields."""
    if kind not in _RECORDS:
        _RECORDS[kind] = Record(kind)
    return _RECORDS[kind]


def render(message: Message) -> JsonValue:
    """The JSON of a message: its tag alone when it has nothing to say beyond it, else an object with one key."""
    record = _record(type(message))
    body = record.render(message)
    return {message.tag: body} if body or not record.is_optional else message.tag
