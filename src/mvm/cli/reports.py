"""How the report of a reconcile pass is shown to people, and what it means for the exit status."""

from __future__ import annotations

from typing import Any

from mvm.cli.output import columns, sections

Json = dict[str, Any]


def report_text(answer: Json, *, name: str) -> str:
    """What was done (or would be), what was put off and left alone, what failed."""
    actions = [(action["action"], action["object"], action["reason"]) for action in answer["actions"]]
    if answer.get("dry_run"):
        head = columns(("would", "object", "because"), actions, empty=f"{name} is as it should be: nothing to do")
    else:
        head = columns(("did", "object", "because"), actions, empty=f"{name} is as it should be: nothing was changed")
    return sections(
        head,
        columns(("put off", "because"), _pairs(answer.get("deferred", []), "reason")),
        columns(("left alone", "because"), _pairs(answer.get("left_alone", []), "reason")),
        columns(("failed", "because"), _pairs(answer.get("errors", []), "message")),
    )


def _pairs(entries: list[Json], key: str) -> list[tuple[str, str]]:
    return [(entry["object"], entry[key]) for entry in entries]


def raise_first_error(answer: Json) -> None:
    """Raise the first failure of a report, so that the command ends with its status; nothing when there is none."""
    from mvm.model.errors import error_for_code

    if errors := answer.get("errors"):
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise error_for_code(first["code"], f"{first['object']}: {first['message']}{more}", first["hint"])
