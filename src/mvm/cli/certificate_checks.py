"""What `mvm doctor` checks of the certificates of the agent's network API."""

from __future__ import annotations

from datetime import UTC, datetime

from mvm.cli.checks import Finding, Verdict
from mvm.host.locations import Locations
from mvm.model.errors import MvmError
from mvm.security.certificates import Authority, expiry


def agent_certificates(locations: Locations, now: datetime | None = None) -> Finding:
    """Whether the agent can listen as it is told to, and whether a certificate needs to be renewed."""
    now = now or datetime.now(UTC)
    name, matters = "agent certificates", "by them the agent and operators on other hosts know each other"
    try:
        found = Authority(locations.state_dir).described()
    except MvmError as error:
        return Finding(name=name, verdict=Verdict.WARNING, found=error.message, matters=matters, remedy=error.hint)
    if not any(each.kind == "agent" for each in found):
        return Finding(
            name=name,
            verdict=Verdict.OK if locations.listen is None else Verdict.PROBLEM,
            found="none, and none are needed: the agent listens on its socket only"
            if locations.listen is None
            else f"none, and the agent shall listen on {locations.listen}",
            matters=matters,
            remedy=None if locations.listen is None else "mvm agent certs init",
        )
    worst = [each for each in found if expiry(each.expires, now) != "valid"]
    if worst:
        return Finding(
            name=name,
            verdict=Verdict.WARNING,
            found=", ".join(f"{each.name} {_when(each.expires, now)}" for each in worst),
            matters=matters,
            remedy="`mvm agent certs status` says what to type for each",
        )
    first = min(found, key=lambda each: each.expires)
    return Finding(name=name, verdict=Verdict.OK, found=f"{first.name} {_when(first.expires, now)}", matters=matters)


def _when(expires: datetime, now: datetime) -> str:
    return f"has expired ({expires:%Y-%m-%d})" if expires <= now else f"is valid until {expires:%Y-%m-%d}"
