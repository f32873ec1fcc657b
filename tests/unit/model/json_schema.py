"""As much of JSON Schema as the schemas of manifests use; a keyword that is not known here is an error."""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

_ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "format"}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def complaints(value: Any, schema: Json, root: Json, path: str = "") -> list[str]:
    """Everything that a schema has against a value."""
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword not in _ANNOTATIONS:
            found += _CHECKS[keyword](value, wanted, schema, root, path)
    return found


def _type(value: Any, wanted: str, schema: Json, root: Json, path: str) -> list[str]:
    fits = isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    return [] if fits else [f"{path}: is no {wanted}"]


def _reference(value: Any, wanted: str, schema: Json, root: Json, path: str) -> list[str]:
    return complaints(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, path)


def _properties(value: Any, wanted: Json, schema: Json, root: Json, path: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        c for key, inner in wanted.items() if key in value for c in complaints(value[key], inner, root, f"{path}.{key}")
    ]


def _additional(value: Any, wanted: bool | Json, schema: Json, root: Json, path: str) -> list[str]:
    others = [key for key in value if key not in schema.get("properties", {})] if isinstance(value, dict) else []
    if wanted is False:
        return [f"{path}: unknown key {key}" for key in others]
    assert isinstance(wanted, dict)
    return [c for key in others for c in complaints(value[key], wanted, root, f"{path}.{key}")]


def _items(value: Any, wanted: Json, schema: Json, root: Json, path: str) -> list[str]:
    entries = value if isinstance(value, list) else []
    return [c for index, entry in enumerate(entries) for c in complaints(entry, wanted, root, f"{path}[{index}]")]


def _choices(least: int, most: int) -> Any:
    def check(value: Any, wanted: list[Json], schema: Json, root: Json, path: str) -> list[str]:
        fitting = sum(not complaints(value, choice, root, path) for choice in wanted)
        return [] if least <= fitting <= most else [f"{path}: fits {fitting} of the choices"]

    return check


def _rule(fits: Any) -> Any:
    def check(value: Any, wanted: Any, schema: Json, root: Json, path: str) -> list[str]:
        return [] if fits(value, wanted) else [f"{path}: {wanted}"]

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS: dict[str, Any] = {
    "type": _type,
    "$ref": _reference,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "allOf": lambda value, wanted, schema, root, path: [c for w in wanted for c in complaints(value, w, root, path)],
    "anyOf": _choices(1, 99),
    "oneOf": _choices(1, 1),
    "required": _rule(lambda v, w: not isinstance(v, dict) or set(w) <= v.keys()),
    "enum": _rule(lambda v, w: v in w),
    "const": _rule(lambda v, w: v == w),
    "pattern": _rule(lambda v, w: not isinstance(v, str) or re.search(w, v) is not None),
    "minimum": _rule(lambda v, w: not _is_number(v) or v >= w),
    "maximum": _rule(lambda v, w: not _is_number(v) or v <= w),
    "minLength": _rule(lambda v, w: not isinstance(v, str) or len(v) >= w),
    "maxLength": _rule(lambda v, w: not isinstance(v, str) or len(v) <= w),
    "minItems": _rule(lambda v, w: not isinstance(v, list) or len(v) >= w),
    "maxItems": _rule(lambda v, w: not isinstance(v, list) or len(v) <= w),
}
