"""Other programs' firewalls on the way of guests' packets.

A packet passes only when every program's rules let it. Docker drops whatever is forwarded and is not its own, but
leaves the chain DOCKER-USER to others: there guests are let pass, to be judged by mvm's own rules alone. `mvm doctor`
tells of any other program that drops what is forwarded.
"""

from __future__ import annotations

import json
from typing import Any

from mvm.model.errors import MvmError
from mvm.network.apply import nft, owner_of_rules
from mvm.network.rules import BRIDGES, TABLES

DOCKER = ("ip", "filter", "DOCKER-USER")
_NOTE = "mvm: judged in table inet mvm"


async def open_docker() -> bool:
    """Let guests pass Docker's rules, where there are any. True when something was added."""
    rules = await _rules(DOCKER)
    if rules is None:
        return False
    there = set().union(*(_passing(rule) for rule in rules if rule.get("comment") == _NOTE))
    missing = [direction for direction in ("oifname", "iifname") if direction not in there]
    for direction in missing:
        await nft("insert", "rule", *DOCKER, direction, f'"{BRIDGES}"', "counter", "accept", "comment", f'"{_NOTE}"')
    return bool(missing)


async def close_docker() -> None:
    """Take back what `open_docker` added. Idempotent."""
    for rule in await _rules(DOCKER) or []:
        if rule.get("comment") == _NOTE:
            await nft("delete", "rule", *DOCKER, "handle", str(rule["handle"]))


async def others_forward() -> bool:
    """True when other programs have rules for what this host forwards."""
    return bool(await _forward_chains())


async def foreign_drops() -> tuple[str, ...]:
    """Chains of other programs that drop what guests send, or what is sent to them, as they drop what they do not know.

    Docker's is none of them before there are guests: the agent opens its door with the first.
    """
    unused = await owner_of_rules() is None and await _rules(DOCKER) is not None
    return tuple(
        [
            f"{chain['family']} {chain['table']} {chain['name']}"
            for chain in await _forward_chains()
            if not (unused and (chain["family"], chain["table"]) == DOCKER[:2]) and await _drops_guests(chain)
        ]
    )


async def _drops_guests(chain: dict[str, Any]) -> bool:
    family, table, name = chain["family"], chain["table"], chain["name"]
    rules = await _rules((family, table, name)) or []
    if chain.get("policy") != "drop" and not (rules and _ends_everything(rules[-1])):
        return False
    passing = [_passing(entry["rule"]) for entry in await _listed("table", family, table) if "rule" in entry]
    return not {"iifname", "oifname"} <= set().union(*passing)


def _ends_everything(rule: dict[str, Any]) -> bool:
    """True for a rule that drops or rejects whatever comes to it; firewalld's last one does, and its policy accepts."""
    does = [statement for statement in rule["expr"] if not statement.keys() & {"counter", "log"}]
    return len(does) == 1 and bool(does[0].keys() & {"drop", "reject"})


def _passing(rule: dict[str, Any]) -> set[str]:
    """Which of what comes from guests (`iifname`) and goes to them (`oifname`) a rule lets pass."""
    matches = [statement["match"] for statement in rule["expr"] if "match" in statement]
    asked = {
        str(match["left"]["meta"]["key"])
        for match in matches
        if match["right"] == BRIDGES and match["op"] == "==" and "meta" in match["left"]
    }
    last = rule["expr"][-1] if asked and len(matches) == 1 else {}
    # firewalld's zone that accepts whatever comes from its interfaces; what answers it passes before that.
    if str((last.get("goto") or {}).get("target", "")).endswith("_trusted"):
        return {"iifname", "oifname"}
    return asked if "accept" in last else set()


async def _forward_chains() -> list[dict[str, Any]]:
    listed = await _listed("chains")
    chains = [entry["chain"] for entry in listed if "chain" in entry]
    return [c for c in chains if c.get("hook") == "forward" and (c["family"], c["table"]) not in TABLES]


async def _rules(chain: tuple[str, str, str]) -> list[dict[str, Any]] | None:
    try:
        listed = await _listed("chain", *chain)
    except MvmError:
        return None
    return [entry["rule"] for entry in listed if "rule" in entry]


async def _listed(*what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await nft("--json", "--handle", "list", *what))["nftables"]
    return found
