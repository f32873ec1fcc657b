"""What `mvm doctor` says of Firecracker: its programs, and its production host checklist (`firecracker_host`).

Where nobody wants Firecracker and none is installed, there is one line.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from mvm.cli.checks import Finding, Verdict
from mvm.cli.firecracker_host import CHECKLIST, Host
from mvm.host.locations import Locations
from mvm.model.errors import MvmError
from mvm.network.apply import nft
from mvm.network.rules import TABLES
from mvm.runtime.firecracker import binaries

RUNTIME = "firecracker"
METADATA_RANGE = "169.254.0.0/16"
ListRules = Callable[[], Awaitable[str]]
_ELF = b"\x7fELF"
_INTERPRETER = 3


async def firecracker_checks(
    locations: Locations,
    host: Host | None = None,
    environ: Mapping[str, str] = os.environ,
    list_rules: ListRules | None = None,
) -> list[Finding]:
    """All of them, in the order of the report; a single one where Firecracker is neither wanted nor there."""
    wanted = locations.runtime == RUNTIME or locations.production
    try:
        present = binaries.locate(binaries.FIRECRACKER, locations.programs_dir, environ) is not None
    except MvmError:
        present = True  # named, and not there: `programs` says so
    if not wanted and not present:
        return [
            Finding(
                name="firecracker",
                verdict=Verdict.OK,
                found="not installed, and not asked for",
                matters="it is for production: `mvm setup firecracker` installs it, MVM_RUNTIME=firecracker takes it",
            )
        ]
    host = host or Host()
    return [
        *programs(locations, environ),
        *(check(host) for check in CHECKLIST),
        await metadata_address(list_rules or _rules_in_force),
    ]


# The programs


def programs(locations: Locations, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Firecracker, and the jailer that belongs to it."""
    matters = "it runs each person's OpenClaw in a machine of its own, at the processor's speed"
    try:
        found = binaries.find(locations.programs_dir, environ=environ)
    except MvmError as error:
        yield Finding(
            name="firecracker",
            verdict=Verdict.PROBLEM,
            found=error.message,
            matters=matters,
            remedy=error.hint or "mvm setup firecracker",
        )
        return
    static = is_static(found.firecracker)
    yield Finding(
        name="firecracker",
        verdict=Verdict.OK if static else Verdict.WARNING,
        found=f"{found.version}, {found.firecracker}" + ("" if static else ", which is not a static program"),
        matters=matters if static else "a program that needs shared libraries does not start in its jail",
        remedy=None if static else "mvm setup firecracker, and unset MVM_FIRECRACKER",
    )
    yield jailer(found.jailer, found.no_jailer, production=locations.production)


def jailer(program: Path | None, problem: str, *, production: bool) -> Finding:
    matters = "in its jail a Firecracker that a guest has broken sees nothing and nobody else; production demands it"
    if program is not None:
        return Finding(name="jailer", verdict=Verdict.OK, found=f"of the same version, {program}", matters=matters)
    return Finding(
        name="jailer",
        verdict=Verdict.PROBLEM if production else Verdict.WARNING,
        found=problem,
        matters=matters,
        remedy="mvm setup firecracker",
    )


def is_static(program: Path) -> bool:
    """Whether a program needs no dynamic linker. True for a script, which is somebody's wrapper and their affair."""
    try:
        with program.open("rb") as file:
            head = file.read(64)
            if head[:4] != _ELF or len(head) < 64:
                return True
            order = "little" if head[5] == 1 else "big"
            table, size, count = (int.from_bytes(head[a:b], order) for a, b in ((32, 40), (54, 56), (56, 58)))  # type: ignore[arg-type]
            file.seek(table)
            headers = file.read(size * count)
    except OSError:
        return True
    kinds = [int.from_bytes(headers[n * size : n * size + 4], order) for n in range(count)]  # type: ignore[arg-type]
    return _INTERPRETER not in kinds


async def metadata_address(list_rules: ListRules) -> Finding:
    """Whether the rules that are in force keep machines from it."""
    matters = "a guest that reaches 169.254.169.254 has this host's credentials in its cloud"
    try:
        rules = await list_rules()
    except MvmError:
        return Finding(
            name="metadata address",
            verdict=Verdict.OK,
            found="no network of a tenant is there yet; the rules that come with the first one drop 169.254.0.0/16",
            matters=matters,
        )
    dropped = METADATA_RANGE in rules
    return Finding(
        name="metadata address",
        verdict=Verdict.OK if dropped else Verdict.PROBLEM,
        found="dropped at every TAP; `mvm net verify` proves it from inside"
        if dropped
        else f"mvm's rules are in force and do not name {METADATA_RANGE}",
        matters=matters,
        remedy=None if dropped else "restart the agent, which puts its rules back; then `mvm net verify`",
    )


async def _rules_in_force() -> str:
    family, table = TABLES[0]
    return await nft("list", "table", family, table)
