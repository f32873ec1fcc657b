#!/usr/bin/env python3
"""Makes the JSON Schemas of what people write, and the references of that and of all commands, anew from the code.

    .venv/bin/python scripts/reference.py

A test fails while what is committed is not what this makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mvm.model import schema as schemas
from mvm.openclaw.template import OPENCLAW

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "src/mvm/model/schemas"
REFERENCE = ROOT / "docs/manifest-reference.md"
COMMANDS = ROOT / "docs/commands.md"

Json = dict[str, Any]

HEAD = """\
# Reference of what you write

Made from the models by `scripts/reference.py`; do not edit it. [The two files](manifests.md) says how they are used.
The same as JSON Schema, for editors: `mvm manifest schema deployment`, `deploy` or `desired`
([how to use it](manifests.md#in-your-editor)). What has no default may be left out, unless it is said to be needed.
"""

# heading, which schema, which of its definitions (None: the document itself)
SECTIONS: tuple[tuple[str, str, str | None], ...] = (
    ("deployment.toml", "deployment", None),
    ("`[tenant]`", "deployment", "TenantTable"),
    ("`[[pools]]`", "deployment", "PoolTable"),
    ("deploy.toml", "deploy", None),
    ("`[overrides]`", "deploy", "Overrides"),
    ("`[overrides.<pool>]`", "deploy", "OverrideTable"),
    ("`[secrets]`: each of them", "deployment", "SecretTable"),
    ("`[openclaw]`", "deployment", "OpenClawSettings"),
    ("`[[users]]`", "deployment", "UserTable"),
    ("`budget` of a user", "deployment", "Budget"),
    ("`[gateway]`", "deployment", "GatewayTable"),
    ("`[quotas]` of a deployment.toml", "deployment", "Quotas"),
    ("`[quotas]` of a deploy.toml", "deploy", "Quotas"),
    ("`runtime_policy` of a pool", "deployment", "RuntimePolicy"),
    ("`integrations` of a pool", "deployment", "Integration"),
    ("`routing_table` of a pool", "deployment", "RoutingTable"),
    ("`routes` of a routing table", "deployment", "Route"),
    ("`match_rule` of a route", "deployment", "MatchRule"),
    ("`target` of a route", "deployment", "Target"),
    ("Desired state (JSON)", "desired", None),
    ("`tenants` of a desired state", "desired", "DesiredTenant"),
    ("`network` of a tenant", "desired", "DesiredNetwork"),
    ("`pools` of a tenant", "desired", "DesiredPool"),
    ("`instance_resources` of a pool", "desired", "Resources"),
    ("`desired_counts` of a pool", "desired", "DesiredCounts"),
    ("`users` of a tenant", "desired", "UserSpec"),
)
PLAIN = frozenset({"Role", "SeccompPolicy", "SnapshotCompression", "ByIp"})
"""Definitions that are shown where they are used."""


def made() -> dict[Path, str]:
    """Every file that is made, with its content."""
    documents = {
        "deployment": schemas.deployment_schema(),
        "deploy": schemas.deploy_schema(OPENCLAW),
        "desired": schemas.desired_schema(),
    }
    files = {
        SCHEMAS / f"{name}.schema.json": json.dumps(document, indent=2) + "\n" for name, document in documents.items()
    }
    return {**files, REFERENCE: reference(documents), COMMANDS: commands()}


def reference(documents: dict[str, Json]) -> str:
    """The reference as Markdown. Fails when a table of the models has no section in it."""
    shown = {definition for _, _, definition in SECTIONS} | PLAIN
    missing = {name for document in documents.values() for name in document["$defs"]} - shown
    if missing:
        raise SystemExit(f"no section of the reference is for {', '.join(sorted(missing))}")
    parts = [HEAD]
    for heading, name, definition in SECTIONS:
        document = documents[name]
        entry = document if definition is None else document["$defs"][definition]
        level = "##" if definition is None else "###"
        text = entry.get("description", "") if definition is not None else ""
        text = "" if text.startswith("`") else text  # only names the table once more
        parts.append("\n".join(filter(None, [f"{level} {heading}\n", text and f"{text}\n", table(entry, document)])))
    return "\n".join(parts)


def table(entry: Json, document: Json) -> str:
    """A line for each key."""
    needed = entry.get("required", [])
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in sorted(entry["properties"].items(), key=lambda item: (item[0] not in needed, item[0] != "role")):
        default = "needed" if key in needed else written(value.get("default"))
        lines.append(f"| `{key}` | {kind(value, document)} | {default} | {value.get('description', '')} |")
    return "\n".join(lines) + "\n"


def written(value: object) -> str:
    """A default as a person would write it."""
    return "" if value in (None, "") else f"`{json.dumps(value)}`"


def kind(value: Json, document: Json) -> str:
    """What a value may be, in words."""
    if "allOf" in value or "$ref" in value:
        reference = value.get("$ref") or value["allOf"][0]["$ref"]
        name = reference.rpartition("/")[2]
        found = document["$defs"][name]
        return kind(found, document) if name in PLAIN - {"ByIp"} else "table"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(kind(choice, document) for choice in value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    match value["type"]:
        case "array":
            return f"list of {plural(kind(value['items'], document))}"
        case "object":
            return "table"
        case "boolean":
            return "true or false"
        case "integer":
            return "number" + bounds(value)
        case other:
            return str(other)


def plural(word: str) -> str:
    return {"table": "tables", "string": "strings", "number": "numbers"}.get(word, word)


def bounds(value: Json) -> str:
    """What a number may be, where that is bounded in a way that matters to a person."""
    least, most = value.get("minimum"), value.get("maximum")
    if most is not None:
        return f", {least} to {most}"
    return f", {least} or more" if least else ""


COMMANDS_HEAD = """\
# All commands

Made from the commands by `scripts/reference.py`; do not edit it. `mvm COMMAND --help` says the same.

Whatever lists or shows takes `-o table`, `-o json`, `-o yaml` and `--json`: then stdout is exactly one document, and
progress, notes and errors go to stderr. What destroys asks first; its `--force` does not ask. Exit status: 0 done,
1 failed, 2 the command or a file is wrong, 3 not found, 4 refused by a quota, policy or permission, 130 interrupted;
`mvm instance exec` ends with the program's own.

Before the command, `mvm` takes `--state-dir DIR` and `--run-dir DIR`, the directories of an agent of your own.
"""
EVERYWHERE = frozenset({"--output", "--json", "--help"})
"""Said once, in the head."""


def commands() -> str:
    """The reference of all commands as Markdown."""
    from typer.main import get_command

    from mvm.cli.root import app

    root: Any = get_command(app)
    parts = [COMMANDS_HEAD]
    for name in root.commands:
        parts.append(f"## {name}\n")
        parts += described(root.commands[name], f"mvm {name}")
    return "\n".join(parts)


def described(command: Any, path: str) -> list[str]:
    """A command, or all of a noun's, with usage, purpose and options."""
    if inner := getattr(command, "commands", None):
        return [part for name in inner for part in described(inner[name], f"{path} {name}")]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not EVERYWHERE & set(p.opts)]
    usage = " ".join([path, *(argument.metavar for argument in arguments)])
    lines = [f"### `{usage}`\n", f"{' '.join((command.help or '').split())}\n"]
    rows = [f"| `{bare(a.metavar)}` | {a.help or ''} |" for a in arguments]
    rows += [f"| `{option_of(o)}` | {o.help or ''} |" for o in options]
    return [*lines, "\n".join(["| | |", "|---|---|", *rows]) + "\n"] if rows else lines


def bare(metavar: str) -> str:
    """An argument's name without the brackets that say that it may be left out."""
    return metavar[1:-1] if metavar.startswith("[") else metavar


def option_of(option: Any) -> str:
    """An option as it is typed."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.metavar or ('NUMBER' if 'int' in str(option.bare_type()) else 'TEXT')}"


def main() -> None:
    for path, content in made().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
