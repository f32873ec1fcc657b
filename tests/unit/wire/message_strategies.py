"""Hypothesis strategies for every message, made from the codecs of its fields."""

from __future__ import annotations

import dataclasses
from datetime import UTC
from typing import Any, get_type_hints

from hypothesis import strategies as st

from mvm.wire import messages, schema
from mvm.wire.tagged import Message

IDENTIFIERS = {
    schema.NAME: st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
    schema.INSTANCE_ID: st.from_regex(r"i-[0-9a-f]{8}", fullmatch=True),
    schema.PEER: st.from_regex(r"(?:telegram|discord):[0-9]{1,20}", fullmatch=True),
}


def values(codec: Any) -> st.SearchStrategy[Any]:
    """Values that a field with this codec may have."""
    match codec:
        case schema.Flag():
            return st.booleans()
        case schema.Integer():
            return st.integers(codec.least, codec.most)
        case schema.Number():
            return st.floats(0, 1e18)
        case schema.Text():
            return st.text(st.characters(codec="utf-8"), max_size=min(codec.limit, 60))
        case schema.Pattern():
            found = IDENTIFIERS.get(codec)
            return found if found is not None else st.from_regex(codec._expression, fullmatch=True)
        case schema.Checked():
            return st.ip_addresses(v=4).map(str)
        case schema.Choice():
            return st.sampled_from(codec._kind)
        case schema.Moment():
            return st.datetimes(timezones=st.just(UTC))
        case schema.Base64():
            return st.binary(max_size=min(codec.limit, 60))
        case schema.Nullable():
            return st.none() | values(codec._inner)
        case schema.ListOf():
            return st.lists(values(codec._item), min_size=codec._least, max_size=3).map(tuple)
        case schema.Record():
            return instances(codec._kind)
        case messages._IntegrationStatus():
            return st.sampled_from(messages.IntegrationPhase) | instances(messages.IntegrationFailure)
    raise AssertionError(f"no strategy for {type(codec).__name__}")


def instances(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Instances of a message class or of a record within one."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: values(hints[field.name].__metadata__[0]) for field in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


def anyone_of(*kinds: type[Message]) -> st.SearchStrategy[Any]:
    """Instances of any of these classes."""
    return st.one_of(*(instances(kind) for kind in kinds))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is an object, a list or a leaf in rendered JSON."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*path, index))
    return found
