"""Firecracker's own description of its API, where it is there: what requests are held against besides the stand-in.

It is no part of this checkout. It is looked for beside it (`shared/facts/` of the folder that the checkout, or the
directory of worktrees that it lies in, is in); tests that need it are skipped, with the reason, where it is not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NAME = "shared/facts/firecracker-api.swagger.yaml"
CHECKOUT = Path(__file__).resolve().parents[3]
NEEDS_CHANGES_ONLY = {("PATCH", "/machine-config")}
"""A hole in the description: it says there that every field is required."""
Json = Any


@dataclass(frozen=True)
class Description:
    """The description, and what a value breaks of it. Every structure is closed, as Firecracker has it."""

    document: Mapping[str, Json]

    def operation(self, method: str, path: str) -> tuple[str, Mapping[str, Json]] | None:
        """The path with its placeholders, and what is said of that method."""
        parts = path.split("/")
        for described, methods in self.document["paths"].items():
            wanted = described.split("/")
            same = len(wanted) == len(parts) and all(
                want == got or want.startswith("{") for want, got in zip(wanted, parts, strict=True)
            )
            if same and method.lower() in methods:
                return described, methods[method.lower()]
        return None

    def body_of(self, operation: Mapping[str, Json]) -> Json:
        """Schema of a request's body; None when it has none."""
        bodies = [each for each in operation.get("parameters", ()) if each["in"] == "body"]
        return bodies[0]["schema"] if bodies else None

    def resolve(self, schema: Mapping[str, Json]) -> Mapping[str, Json]:
        """A schema without a reference."""
        if "$ref" in schema:
            found: Mapping[str, Json] = self.document["definitions"][schema["$ref"].rpartition("/")[2]]
            return found
        return schema

    def problems(self, method: str, path: str, body: Json) -> list[str]:
        """What is wrong with a request; nothing when it is as described."""
        found = self.operation(method, path)
        where = f"{method} {path}"
        if found is None:
            return [f"{where}: there is no such call"]
        described, operation = found
        schema = self.body_of(operation)
        if schema is None:
            return [] if body is None else [f"{where}: it has no body"]
        if body is None:
            return [f"{where}: it needs a body"]
        partial = (method, path) in NEEDS_CHANGES_ONLY
        wrong = [f"{where}: {each}" for each in self._wrong(schema, body, "body", required=not partial)]
        if "{" in described:
            own = path.rpartition("/")[2]
            if own not in body.values():
                wrong.append(f"{where}: the body does not repeat the id")
        return wrong

    def _wrong(self, schema: Mapping[str, Json], value: Json, where: str, *, required: bool = True) -> Iterator[str]:
        schema = self.resolve(schema)
        kind = schema.get("type", "object")
        kinds = {"object": dict, "string": str, "integer": int, "boolean": bool, "array": list}
        if not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool)):
            yield f"{where} is no {kind}: {value!r}"
            return
        if "enum" in schema and str(value).lower() not in [str(each).lower() for each in schema["enum"]]:
            yield f"{where} is {value!r} and none of {schema['enum']}"
        if kind == "integer" and not schema.get("minimum", 0) <= value <= schema.get("maximum", 2**64):
            yield f"{where} is {value}"
        if kind == "array":
            for number, item in enumerate(value):
                yield from self._wrong(schema["items"], item, f"{where}[{number}]")
        if kind == "object":
            yield from self._wrong_object(schema, value, where, required=required)

    def _wrong_object(self, schema: Mapping[str, Json], value: Json, where: str, *, required: bool) -> Iterator[str]:
        properties = schema.get("properties", {})
        if required:
            yield from (f"{where} lacks {name}" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            if name in properties:
                yield from self._wrong(properties[name], item, f"{where}.{name}")
            elif not schema.get("additionalProperties"):
                yield f"{where} has an unknown field {name}"


class _Loader(yaml.SafeLoader):
    """Takes `Off`, which is a level of logs, for a word."""

    yaml_implicit_resolvers = {k: v for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items() if k not in "oO"}  # noqa: RUF012


@functools.cache
def description() -> Description | None:
    """The description; None where it is not there."""
    for parent in CHECKOUT.parents:
        path = parent / NAME
        if path.is_file():
            return Description(yaml.load(path.read_text(), Loader=_Loader))  # noqa: S506 - a safe one
    return None


def why_missing() -> str:
    """For whoever skips a test because of it."""
    return f"Firecracker's description of its API is not there ({NAME} beside this checkout)"
