"""Other programs' firewalls on the way of guests' packets.

A packet passes only when every program's rules let it. Docker drops whatever is forwarded and is not its own, but
leaves the chain DOCKER-USER to others: there guests are let pass, to be judged by mvm's own rules alone. `mvm doctor`
tells of any other program that drops what is forwarded.
"""

from __future__ import annotations

import json
from typing import Any

from mvm.model.errors import MvmError
from mvm.network.apply import nft
from mvm.network.rules import BRIDGES, TABLES

DOCKER = ("ip", "filter", "DOCKER-USER")
_NOTE = "mvm: judged in table inet mvm"


async def open_docker() -> bool:
    """Let guests pass Docker's rules, where there are any. True when something was added."""
    rules = await _rules(DOCKER)
    if rules is None or any(rule.get("comment") == _NOTE for rule in rules):
        return False
    for direction in ("oifname", "iifname"):
        await nft("insert", "rule", *DOCKER, direction, f'"{BRIDGES}"', "counter", "accept", "comment", f'"{_NOTE}"')
    return True


async def close_docker() -> None:
    """Take back what `open_docker` added. Idempotent."""
    for rule in await _rules(DOCKER) or []:
        if rule.get("comment") == _NOTE:
            await nft("delete", "rule", *DOCKER, "handle", str(rule["handle"]))


async def others_forward() -> bool:
    """True when other programs have rules for what this host forwards."""
    return bool(await _forward_chains())


async def foreign_drops() -> tuple[str, ...]:
    """Chains of other programs that drop what they do not know among what is forwarded, but Docker's own."""
    docker = await _rules(DOCKER) is not None
    return tuple(
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in await _forward_chains()
        if chain.get("policy") == "drop" and not (docker and (chain["family"], chain["table"]) == DOCKER[:2])
    )


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
