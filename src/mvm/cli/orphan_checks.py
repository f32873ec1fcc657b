"""What `mvm doctor` says of what belongs to no instance, and has the agent clear away with `--fix`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvm.cli.checks import Finding, Verdict
from mvm.cli.output import size
from mvm.model.errors import MvmError, Unavailable

if TYPE_CHECKING:
    from mvm.host.client import AgentClient

NAME = "orphans"
MATTERS = "they take memory and disk, and may hold what somebody wrote; only the agent knows what is nobody's"
SHOWN = 5


async def orphans(client: AgentClient, *, fix: bool) -> Finding:
    """What the agent finds that belongs to nobody; with `fix` it has been cleared away."""
    try:
        answer = await client.call("Orphans", {"clear": fix}, timeout=120)
    except Unavailable:
        return Finding(name=NAME, verdict=Verdict.OK, found="not looked for: no agent runs", matters=MATTERS)
    except MvmError as error:
        return Finding(name=NAME, verdict=Verdict.WARNING, found=error.message, matters=MATTERS, remedy=error.hint)
    return judged(answer)


def judged(answer: dict[str, Any]) -> Finding:
    """The line of the report."""
    found = answer["orphans"]
    if not found:
        return Finding(name=NAME, verdict=Verdict.OK, found="none", matters=MATTERS)
    if not answer["cleared"]:
        return Finding(
            name=NAME,
            verdict=Verdict.WARNING,
            found=_listed(found),
            matters=MATTERS,
            remedy="mvm doctor --fix"
            + (f" (data drives are put aside in {answer['aside']}, nothing in them is lost)" if _drives(found) else ""),
        )
    if left := [orphan for orphan in found if orphan["failed"]]:
        return Finding(
            name=NAME,
            verdict=Verdict.WARNING,
            found=f"could not be cleared away: {_listed(left)}",
            matters=MATTERS,
            remedy="; ".join(f"{orphan['name']}: {orphan['failed']}" for orphan in left[:SHOWN]),
        )
    aside = f"; data drives are in {answer['aside']} until `mvm node gc`" if _drives(found) else ""
    return Finding(name=NAME, verdict=Verdict.OK, found=f"cleared away: {_listed(found)}{aside}", matters=MATTERS)


def _drives(orphans: list[dict[str, Any]]) -> bool:
    return any(orphan["kind"] == "data drive" for orphan in orphans)


def _listed(orphans: list[dict[str, Any]]) -> str:
    shown = [f"{o['kind']} {o['name']} ({o['why']}, {size(o['bytes'])})" for o in orphans[:SHOWN]]
    more = len(orphans) - len(shown)
    return "; ".join(shown) + (f" and {more} more" if more else "")
