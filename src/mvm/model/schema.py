"""JSON Schemas of what people write, made from the models: for editors, and for the reference in the documentation.

What cannot be said in a schema (that a subnet is free, that two users differ) is found by the models only. The files
are made by `scripts/reference.py` and shipped in `mvm/model/schemas`; `mvm manifest schema` prints them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from mvm.model.desired import DesiredState
from mvm.model.entities import OPENCLAW_POLICY, PoolSpec, RuntimePolicy
from mvm.model.ids import PoolId
from mvm.model.manifest_tables import DeploymentFile, deploy_file
from mvm.model.roles import Role
from mvm.model.secrets import LOGICAL_NAMES
from mvm.model.template import Template

Json = dict[str, Any]


def deployment_schema() -> Json:
    """Of a deployment.toml."""
    schema = _schema(DeploymentFile, "deployment.toml of mvm")
    _pool_defaults(schema["$defs"]["PoolTable"])
    return _finished(schema)


def deploy_schema(template: Template) -> Json:
    """Of a deploy.toml for a template, whose pools and quotas are what the file changes."""
    model = deploy_file(template.pool_ids())
    schema = _schema(model, f"deploy.toml of mvm, for `mvm new {template.name}`")
    for name, value in template.quotas.model_dump().items():
        schema["$defs"]["Quotas"]["properties"][name]["default"] = value
    for pool in template.pools:
        entry = schema["$defs"]["Overrides"]["properties"][pool.pool_id]
        entry["description"] = (
            f"Pool of role {pool.role}: {pool.vcpus} vCPUs and {pool.mem_mib} MiB each, unless changed here."
        )
    return _finished(schema)


def desired_schema() -> Json:
    """Of a desired state, as `mvm agent reconcile --desired` takes it."""
    return _finished(_schema(DesiredState, "desired state of a host of mvm"))


class _Generator(GenerateJsonSchema):
    """Leaves out the titles, which only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schema(model: type[BaseModel], title: str) -> Json:
    schema = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    schema["title"] = title
    for name, found in _models(model).items():
        entry = schema if found is model else schema["$defs"].get(name)
        if entry is not None:
            entry.pop("title" if entry is not schema else "", None)
            _describe(entry, found)
    return schema


def _describe(entry: Json, model: type[BaseModel]) -> None:
    """Give each property the docstring below its field."""
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        if name in docs:
            entry["properties"][field.alias or name]["description"] = docs[name]


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field of a model and of its bases, as one line."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls.__module__.startswith("pydantic"):
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError):
            continue  # made at run time, for a template
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[field.target.id] = " ".join(text.split())
    return found


def _models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """A model and all that it is made of, by name."""
    found: dict[str, type[BaseModel]] = {}
    waiting = [model]
    while waiting:
        here = waiting.pop()
        if found.setdefault(here.__name__, here) is here:
            inner = (part for field in here.model_fields.values() for part in _parts(field.annotation))
            waiting += [part for part in inner if part.__name__ not in found]
    return found


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that a type is made of."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _parts(argument)


def _pool_defaults(table: Json) -> None:
    """What a pool has that does not say: the models of the file say only that nothing was said."""
    spec = PoolSpec(pool_id=PoolId("any")).model_dump(mode="json")
    for name, entry in table["properties"].items():
        if spec.get(name) is not None and name not in ("pool_id", "runtime_policy"):
            entry["default"] = spec[name]
        elif name.startswith("desired_"):
            entry["default"] = 0


def _finished(schema: Json) -> Json:
    """The last changes, the same for all of them."""
    definitions = schema.get("$defs", {})
    if (policy := definitions.get("RuntimePolicy")) is not None:
        for name, value in OPENCLAW_POLICY.model_dump().items():
            if value != RuntimePolicy.model_fields[name].default:
                policy["properties"][name]["description"] += f" Of role {Role.CAPABILITY_OPENCLAW}: {value}."
    if (secrets := schema["properties"].get("secrets")) is not None:
        secrets["properties"] = {
            name: {"$ref": "#/$defs/SecretTable", "description": f"Becomes {secret.path}."}
            for name, secret in LOGICAL_NAMES.items()
        }
        secrets["additionalProperties"] = {
            "allOf": [{"$ref": "#/$defs/SecretTable"}, {"required": ["scope", "key"]}],
        }
    finished = _tidied(schema)
    assert isinstance(finished, dict)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **finished}


def _tidied(value: Any) -> Any:
    """Without null, which TOML does not have, and with what stands beside a reference where old readers see it."""
    if isinstance(value, list):
        return [_tidied(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    # A default that is a table or empty says nothing: what is in it has its own.
    unsaid = {
        key for key, entry in value.items() if key == "default" and (entry in (None, []) or isinstance(entry, dict))
    }
    found = {key: _tidied(entry) for key, entry in value.items() if key not in unsaid}
    choices = [choice for choice in found.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1 and isinstance(choices[0], dict):
        found = {**choices[0], **{key: entry for key, entry in found.items() if key != "anyOf"}}
    elif choices:
        found["anyOf"] = choices
    if isinstance(reference := found.get("$ref"), str) and len(found) > 1:
        del found["$ref"]
        found = {"allOf": [{"$ref": reference}], **found}
    return found
