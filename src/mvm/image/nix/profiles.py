"""`mvm-profiles.toml`: which roles and profiles a flake has images for (CONTRACT 18)."""

from __future__ import annotations

import tomllib
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from mvm.model.errors import InvalidInput
from mvm.model.roles import Role
from mvm.model.validation import parse

NAME = "mvm-profiles.toml"
VERSION = 1
LONGEST = 2**18


class _Table(BaseModel):
    """A table of the manifest; keys that are not known here are the flake's own business."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Meta(_Table):
    version: int


class Profile(_Table):
    module: str


class RoleEntry(_Table):
    module: str
    requires_config_drive: bool = False
    requires_secrets_drive: bool = False


class Profiles(_Table):
    """The manifest of a flake with images."""

    meta: Meta
    profiles: dict[str, Profile] = Field(default_factory=dict)
    roles: dict[str, RoleEntry] = Field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes, flake: str) -> Self:
        """The manifest of a flake, of at most `LONGEST` bytes."""
        what = f"{NAME} of {flake}"
        if len(content) > LONGEST:
            raise InvalidInput(f"{what} is larger than {LONGEST} bytes", hint="it is a short list")
        try:
            document = tomllib.loads(content.decode())
        except (UnicodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidInput(f"{what} cannot be read: {error}", hint="tell who keeps the flake") from error
        manifest = parse(cls, document, what=what)
        if manifest.meta.version != VERSION:
            raise InvalidInput(
                f"{what} is of version {manifest.meta.version}, and this mvm knows {VERSION}",
                hint="use an mvm that knows it, or an older revision of the flake",
            )
        return manifest

    def check(self, flake: str, role: Role, profile: str) -> None:
        """Whether the flake has an image for these, whose instances would get all that they need."""
        for kind, name, known in (("role", str(role), self.roles), ("profile", profile, self.profiles)):
            if name not in known:
                raise InvalidInput(
                    f"{flake} has no {kind} '{name}'",
                    hint=f"its {kind}s are: {', '.join(sorted(known)) or 'none'}",
                )
        wanted = self.roles[role]
        for drive, required, given in (
            ("config", wanted.requires_config_drive, role.has_config_drive),
            ("secrets", wanted.requires_secrets_drive, role.has_secrets_drive),
        ):
            if required and not given:
                raise InvalidInput(
                    f"{flake} requires a {drive} drive for role '{role}', which has none",
                    hint="use another flake, or another role",
                )
