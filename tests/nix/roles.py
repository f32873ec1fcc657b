"""What a role consists of, and what is missing of it: an enum member, a module, an entry in the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvm.model.roles import Role


def problems(roles: Iterable[str], manifest: Mapping[str, Any], directory: Path) -> list[str]:
    """What is missing, in words; `directory` is where the manifest's modules are."""
    wanted, entries = set(roles), manifest["roles"]
    found = [f"role '{role}' has no [roles.{role}] in nix/mvm-profiles.toml" for role in sorted(wanted - set(entries))]
    found += [
        f"[roles.{role}] in nix/mvm-profiles.toml is no member of mvm.model.roles.Role"
        for role in sorted(set(entries) - wanted)
    ]
    modules = {path.relative_to(directory).as_posix() for path in directory.glob("roles/*.nix")}
    for role, entry in sorted(entries.items()):
        if entry["module"] not in modules:
            found.append(f"the module nix/{entry['module']} of role '{role}' is missing")
    named = {entry["module"] for entry in entries.values()}
    found += [f"nix/{module} is the module of no role in nix/mvm-profiles.toml" for module in sorted(modules - named)]
    return found


def drive_problems(manifest: Mapping[str, Any]) -> list[str]:
    """Roles whose entries say something else of their drives than `Role` does."""
    found = []
    for name, entry in manifest["roles"].items():
        role = Role(name)
        for kind, said, known in (
            ("config", entry["requires_config_drive"], role.has_config_drive),
            ("secrets", entry["requires_secrets_drive"], role.has_secrets_drive),
        ):
            if said is not known:
                found.append(f"[roles.{name}] requires_{kind}_drive is {said}, and Role says {known}")
    return found
