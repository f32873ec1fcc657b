"""Everything that is wrong with a document, found at once and said in words.

Pydantic finds what does not fit a model; this module turns that into `Problem`s (path, what is wrong, what to do) and
raises them together as one `ValidationProblems`. Values from outside are repeated only where they cannot be secrets:
a choice among known words is, any other value is not.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from mvm.model.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

Location = tuple[str | int, ...]
"""Keys and list indices from the root of a document to a value in it."""

MAX_LISTED = 500
"""Problems that a message lists; a hostile document must not make a message of any length."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document."""

    path: str
    """Where: `tenants[0].pools[1].role`, or `deploy.toml:12` for a file; empty for the document as a whole."""
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text} ({self.hint})" if self.hint else text


class ValidationProblems(InvalidInput):
    """A document is not valid; `problems` has every reason, in the order of the document where there is one."""

    def __init__(self, what: str, problems: Sequence[Problem]) -> None:
        self.what = what
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            (only,) = self.problems
            message = f"{only.path}: {only.message}" if only.path else f"{what}: {only.message}"
            super().__init__(message, hint=only.hint)
            return
        lines = [f"  {problem}" for problem in self.problems[:MAX_LISTED]]
        if (left := len(self.problems) - MAX_LISTED) > 0:
            lines.append(f"  ... and {left} more")
        super().__init__(
            f"{what} has {len(self.problems)} problems:\n" + "\n".join(lines),
            hint="nothing was changed; correct them all",
        )


def describe_location(location: Iterable[str | int]) -> str:
    """Write a location as a path: `("tenants", 0, "pools")` is `tenants[0].pools`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part[:80] if part.isprintable() else repr(part[:80])
            text += f".{shown}" if text else shown
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, if any is near."""
    found = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def unknown_key_hint(key: str, known: Sequence[str]) -> str:
    """What to tell somebody who wrote a key that does not exist."""
    if not known:
        return "no key is allowed here"
    guess = nearest(key, known)
    return f"did you mean {guess!r}?" if guess else f"the keys are: {', '.join(sorted(known))}"


def as_field_check(check: Callable[[Any], T]) -> Callable[[Any], T]:
    """Let a function that raises `InvalidInput` check a field of a model, so that its problem is collected."""

    def validate(value: Any) -> T:
        try:
            return check(value)
        except InvalidInput as error:
            raise PydanticCustomError("mvm", "{message}", {"message": error.message, "hint": error.hint}) from error

    return validate


def parse(model: type[M], value: object, *, what: str) -> M:
    """Parse a JSON value strictly; raises `ValidationProblems` with every problem. `what` names the document.

    Strict means: no string for a number, no number for a string, no 1 for true, no unknown key.
    """
    try:
        return parse_or_report(model, value)
    except ValidationError as error:
        raise ValidationProblems(what, problems_of(error, model)) from error


def parse_or_report(model: type[M], value: object) -> M:
    """Parse a JSON value strictly, leaving pydantic's own error to a caller that has more to say."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("the document is not JSON: it holds values that JSON does not have") from error
    # By way of JSON text, because only there strict mode takes a list for a tuple and a string for an enum.
    return model.model_validate_json(text, strict=True)


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Say in words what pydantic found."""
    return [Problem(describe_location(place), message, hint) for place, message, hint in found_in(error, model)]


def found_in(error: ValidationError, model: type[BaseModel]) -> list[tuple[Location, str, str | None]]:
    """Where, what and what to do, of each thing that pydantic found."""
    details = error.errors(include_url=False)
    return [(detail["loc"], *_message(detail, model)) for detail in details if not _follows(detail, details)]


def _follows(detail: ErrorDetails, others: Sequence[ErrorDetails]) -> bool:
    """Whether it is only because of another one: entries that are wrong are not counted as there."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in others
    )


_EXPECTED = {
    "string_type": "expected a string",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a table of keys and values",
    "model_type": "expected a table of keys and values",
    "model_attributes_type": "expected a table of keys and values",
    "datetime_type": "expected a time such as 2026-01-31T12:00:00Z",
    "datetime_parsing": "expected a time such as 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "expected a time such as 2026-01-31T12:00:00Z",
    "none_required": "expected null",
}
_REMEDIES = {
    "expected a string": "write it in quotes",
    "expected a whole number": "write digits, without quotes",
    "expected a number": "write digits, without quotes",
    "expected true or false": "write true or false, without quotes",
    "expected a list": 'write it in brackets, such as ["..."]',
    "expected a table of keys and values": "write its keys and values in braces, or as a table of its own",
}
_LIMITS = {
    "greater_than_equal": ("ge", "is too small: it must be at least {}"),
    "greater_than": ("gt", "is too small: it must be more than {}"),
    "less_than_equal": ("le", "is too large: it may be at most {}"),
    "less_than": ("lt", "is too large: it must be less than {}"),
    "too_short": ("min_length", "has too few entries: at least {} needed"),
    "too_long": ("max_length", "has too many entries: at most {} allowed"),
    "string_too_short": ("min_length", "is too short: at least {} characters needed"),
    "string_too_long": ("max_length", "is too long: at most {} characters allowed"),
}


def _message(detail: ErrorDetails, model: type[BaseModel]) -> tuple[str, str | None]:
    kind, context, location = detail["type"], detail.get("ctx", {}), detail["loc"]
    if (expected := _EXPECTED.get(kind)) is not None:
        # Text that cannot be read as such is of the right kind all the same.
        given = "" if kind.endswith("_parsing") else f", not {_kind_of(detail.get('input'))}"
        return f"{expected}{given}", _REMEDIES.get(expected)
    if kind == "int_parsing_size":
        return "is a number out of all bounds", None
    if kind == "missing":
        return "is missing", "add it: it has no default"
    if kind == "extra_forbidden":
        key = str(location[-1])
        return f"unknown key {key[:80]!r}", unknown_key_hint(key, known_keys(model, location[:-1]))
    if kind in ("enum", "literal_error"):
        return f"is none of: {context['expected']}", None
    if kind in _LIMITS:
        name, text = _LIMITS[kind]
        return "is empty" if text.startswith("is too short") and context[name] == 1 else text.format(
            context[name]
        ), None
    if kind == "string_pattern_mismatch":
        return "has characters, or a length, that it may not have", f"it must match {context['pattern']}"
    if kind == "mvm":
        return str(context["message"]), context.get("hint")
    return "is not what is expected here", None


def _kind_of(value: object) -> str:
    """What kind of value it is; never the value, which may be a secret."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number with a fraction"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case _:
            return "a table"


def known_keys(model: type[BaseModel], location: Location) -> tuple[str, ...]:
    """Keys that the table at `location` of a document of this model may have; empty when it has no fixed ones."""
    here: Any = model
    for part in location:
        here = _inside(here, part)
    found = _as_model(here)
    if found is None:
        return ()
    return tuple(field.alias or name for name, field in found.model_fields.items())


def _inside(annotation: Any, part: str | int) -> Any:
    """Type of what is found under a key or index of a value of this type; None when unknown."""
    if (model := _as_model(annotation)) is not None:
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
        return None
    for choice in _choices(annotation):
        origin, arguments = typing.get_origin(choice), typing.get_args(choice)
        if isinstance(part, int) and origin in (tuple, list):
            return arguments[0]
        if isinstance(part, str) and origin in (dict, Mapping):
            return arguments[1]
    return None


def _as_model(annotation: Any) -> type[BaseModel] | None:
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _choices(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without `Annotated` and unions around them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [choice for argument in typing.get_args(annotation) for choice in _choices(argument)]
    return [annotation]
