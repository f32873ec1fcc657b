"""Names of secrets, who may see which, and what a value may hold (CONTRACT 7). No value is ever part of an error.

A secret is one file on the secrets drive, `/run/secrets/<scope>/<KEY>`. A key of the form of an environment variable
also becomes one in the guest; a key of any other form (`ca.pem`) is a file only, and may have many lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from mvm.model.errors import InvalidInput
from mvm.model.roles import Role

V = TypeVar("V")

WORKERS_SCOPE = "workers"
"""Scope of a gateway's drive that holds the tokens of the workers it may deliver to; written by the host only."""
GATEWAY_TOKEN_VARIABLE = "OPENCLAW_GATEWAY_TOKEN"  # noqa: S105
"""The name by which OpenClaw reads its token."""
ALL_KEYS = "*"
"""In `secret_scopes`: every key of the scope."""
MAX_VALUE_BYTES = 64 * 1024

_SCOPE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, order=True)
class SecretName:
    """Scope and key of a secret; checked when made."""

    scope: str
    key: str

    def __post_init__(self) -> None:
        check_scope(self.scope)
        check_key(self.key)

    @classmethod
    def parse(cls, path: str) -> SecretName:
        """Parse `<scope>/<KEY>`; raises `InvalidInput`."""
        scope, slash, key = path.partition("/")
        if not slash:
            raise InvalidInput(f"secret name {path[:80]!r} is not valid", hint="write 'scope/KEY'")
        return cls(scope, key)

    @property
    def path(self) -> str:
        """`<scope>/<KEY>`, also the path of its file below `/run/secrets`."""
        return f"{self.scope}/{self.key}"

    @property
    def is_variable(self) -> bool:
        """True when it becomes an environment variable of the guest's services."""
        return is_variable(self.key)

    def __str__(self) -> str:
        return self.path


def is_variable(key: str) -> bool:
    """True when a secret of this key becomes an environment variable (any other one is a file only)."""
    return _VARIABLE.fullmatch(key) is not None


def check_scope(scope: str) -> str:
    """Return a valid scope that people may use; raises `InvalidInput`."""
    if scope == WORKERS_SCOPE:
        raise InvalidInput(f"secret scope {scope!r} is mvm's own", hint="it holds the tokens of a gateway's workers")
    if not _SCOPE.fullmatch(scope):
        raise InvalidInput(
            f"secret scope {scope[:80]!r} is not valid",
            hint="a scope has 1 to 63 lowercase letters, digits and inner hyphens, such as 'anthropic'",
        )
    return scope


def check_key(key: str) -> str:
    """Return a valid key that people may use; raises `InvalidInput`."""
    if key == GATEWAY_TOKEN_VARIABLE:
        raise InvalidInput(
            f"secret key {key!r} is mvm's own", hint="write openclaw_token, which is set as that one too"
        )
    if not _KEY.fullmatch(key):
        raise InvalidInput(
            f"secret key {key[:80]!r} is not valid",
            hint="a key has 1 to 128 letters, digits, '_', '-' and '.', such as 'ANTHROPIC_API_KEY', and begins with "
            "none of '-' and '.'",
        )
    return key


LOGICAL_NAMES: Mapping[str, SecretName] = {
    "anthropic_key": SecretName("anthropic", "ANTHROPIC_API_KEY"),
    "openai_key": SecretName("openai", "OPENAI_API_KEY"),
    "telegram_token": SecretName("telegram", "TELEGRAM_BOT_TOKEN"),
    "discord_token": SecretName("discord", "DISCORD_BOT_TOKEN"),
    "openclaw_token": SecretName("openclaw", "OPENCLAW_AUTH_TOKEN"),
}
"""Names that people write for the usual secrets; any other secret is written in the long form."""

OPENCLAW_TOKEN = LOGICAL_NAMES["openclaw_token"]
"""Generated per instance when absent; also set as `GATEWAY_TOKEN_VARIABLE`."""
CHANNEL_SCOPES = frozenset({"telegram", "discord"})


def value_from_text(name: SecretName, text: str) -> str:
    """The value that a file or variable holds: its text without one trailing newline; raises as `check_value` does."""
    value = text.removesuffix("\n").removesuffix("\r")
    check_value(name, value)
    return value


def check_value(name: SecretName, value: str) -> None:
    """Raise `InvalidInput`, never with the value, when it cannot be stored.

    What becomes an environment variable has no NUL and no newline.
    """
    if not value.strip():
        raise InvalidInput(f"secret {name} is empty", hint="give it a value or leave it out")
    if (size := len(value.encode(errors="replace"))) > MAX_VALUE_BYTES:
        raise InvalidInput(f"secret {name} has {size} bytes", hint=f"a secret has at most {MAX_VALUE_BYTES}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"secret {name} is not text", hint="a secret is UTF-8 text")
    if name.is_variable:
        for character, what in (("\0", "a NUL"), ("\n", "more than one line"), ("\r", "a carriage return")):
            if character in value:
                raise InvalidInput(
                    f"secret {name} has {what}, which an environment variable cannot hold",
                    hint="give one line, or use a key that is no variable name (such as 'ca.pem') to get a file only",
                )


def check_values(secrets: Mapping[str, str]) -> None:
    """Check a whole set of `scope/KEY` -> value; raises `InvalidInput`, never with a value.

    A key that two scopes use with different values is refused: in the guest's environment there is one of it.
    """
    seen: dict[str, tuple[SecretName, str]] = {}
    for path in sorted(secrets):
        name = SecretName.parse(path)
        check_value(name, secrets[path])
        first, first_value = seen.setdefault(name.key, (name, secrets[path]))
        if first_value != secrets[path]:
            raise InvalidInput(
                f"key {name.key!r} has different values in the scopes {first.scope!r} and {name.scope!r}",
                hint="give both the same value, or one of them another key",
            )


def check_secret_scopes(scopes: Mapping[str, tuple[str, ...]]) -> None:
    """Check a pool's `secret_scopes` (scope -> keys, `"*"` for all of them); raises `InvalidInput`."""
    for scope, keys in scopes.items():
        check_scope(scope)
        if not keys:
            raise InvalidInput(
                f"scope {scope!r} names no key", hint=f'write {scope} = ["*"] for all of them, or leave the scope out'
            )
        for key in keys:
            if key != ALL_KEYS:
                check_key(key)


def visible_secrets(
    role: Role, secret_scopes: Mapping[str, tuple[str, ...]] | None, secrets: Mapping[str, V]
) -> dict[str, V]:
    """Those of a tenant's secrets (`scope/KEY` -> anything) that an instance may see.

    By role: a gateway gets its channels and openclaw; a person's OpenClaw everything but channels; any other role
    nothing. `secret_scopes` replaces that, for roles that have a secrets drive at all. The scope of worker tokens is
    never among them: those are granted one by one.
    """
    return {path: value for path, value in secrets.items() if _may_see(role, secret_scopes, *path.split("/", 1))}


def _may_see(role: Role, secret_scopes: Mapping[str, tuple[str, ...]] | None, scope: str, key: str = "") -> bool:
    if not role.has_secrets_drive or scope == WORKERS_SCOPE:
        return False
    if secret_scopes is not None:
        keys = secret_scopes.get(scope, ())
        return ALL_KEYS in keys or key in keys
    if role is Role.GATEWAY:
        return scope in CHANNEL_SCOPES or scope == OPENCLAW_TOKEN.scope
    return role is Role.CAPABILITY_OPENCLAW and scope not in CHANNEL_SCOPES
