"""From the secrets drive to what OpenClaw reads: the environment file, and one JSON object for file SecretRefs.

Values never appear in an error or a log; what is wrong is told by scope and key.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from mvm.guest import users
from mvm.guest.paths import WORKERS_SCOPE, GuestPaths, open_plainly, write_atomically
from mvm.guest.services import render_environment_file

AUTH_TOKEN = "OPENCLAW_AUTH_TOKEN"  # noqa: S105 - a name, not a token
GATEWAY_TOKEN = "OPENCLAW_GATEWAY_TOKEN"  # noqa: S105 - a name, not a token
"""What OpenClaw itself calls the same thing."""
MAX_SECRETS = 512
MAX_VALUE_BYTES = 64 * 1024
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NOT_FOR_ENVIRONMENT = re.compile(r"[\0\r\n]")


@dataclass(frozen=True)
class Collected:
    """What is on the secrets drive for this instance's own programs."""

    values: dict[str, str] = field(repr=False)
    problems: tuple[str, ...]
    """What could not be used, by scope and key."""


def collect(drive: Path) -> Collected:
    """Read every scope but the workers' tokens. A file that cannot be used is a problem, never an error."""
    values: dict[str, str] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    files = sorted(path for path in drive.glob("*/*") if path.parent.name != WORKERS_SCOPE and path.is_file())
    for path in files[:MAX_SECRETS]:
        scope, key = path.parent.name, path.name
        if key.startswith("."):
            continue  # a file that is being written
        try:
            value = _value(path)
        except (OSError, ValueError) as error:
            problems.append(f"{scope}/{key}: {_reason(error)}")
            continue
        if values.setdefault(key, value) != value:
            problems.append(f"{scope}/{key}: another value than {origin[key]}/{key}, which is used")
        origin.setdefault(key, scope)
    if len(files) > MAX_SECRETS:
        problems.append(f"{len(files)} secrets, of which {MAX_SECRETS} are used")
    return Collected(values, tuple(problems))


def _value(path: Path) -> str:
    if not _KEY.fullmatch(path.name):
        raise ValueError("not a name for a secret")
    with path.open("rb") as file:
        data = file.read(MAX_VALUE_BYTES + 1)
    if len(data) > MAX_VALUE_BYTES:
        raise ValueError(f"longer than {MAX_VALUE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    return text.rstrip("\r\n") if is_variable(path.name) else text


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)


def installed(paths: GuestPaths) -> dict[str, str] | None:
    """The secrets that were installed last; None when none were, or what is there is no use."""
    try:
        with open(paths.secrets_file, "rb", opener=open_plainly) as file:
            value = json.loads(file.read(MAX_SECRETS * MAX_VALUE_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        return None
    return value


def changed_keys(before: dict[str, str], after: dict[str, str]) -> frozenset[str]:
    """Names that came, went or have another value."""
    return frozenset(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def is_variable(key: str) -> bool:
    """True when a secret of this name is in the environment; any other one is a file (`ca.pem`) only."""
    return _VARIABLE.fullmatch(key) is not None


def referenced(openclaw_config: Path) -> frozenset[str]:
    """Secrets that OpenClaw's configuration names by SecretRef; none when it cannot be read."""
    found: set[str] = set()

    def look(value: object) -> None:
        if isinstance(value, dict):
            if value.get("source") == "file" and isinstance(value.get("id"), str):
                found.add(value["id"].removeprefix("/"))
            for item in value.values():
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)

    try:
        look(json.loads(openclaw_config.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    return frozenset(found)


def environment_of(
    values: dict[str, str], apart: frozenset[str] = frozenset()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables for OpenClaw's environment, and the names that cannot be variables because of their value.

    Those `apart` are left out: OpenClaw prefers a model provider's variable to the SecretRef in its configuration, and
    would go on using a key that has long been replaced. Its own token it takes from the configuration all the same.
    """
    apart -= {AUTH_TOKEN}
    variables = {key: value for key, value in values.items() if is_variable(key) and key not in apart}
    unfit = tuple(sorted(key for key, value in variables.items() if _NOT_FOR_ENVIRONMENT.search(value)))
    variables = {key: value for key, value in variables.items() if key not in unfit}
    if AUTH_TOKEN in variables:
        variables.setdefault(GATEWAY_TOKEN, variables[AUTH_TOKEN])
    return variables, unfit


def install(paths: GuestPaths, values: dict[str, str], *, apart: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Write both files, each whole, mode 0600. Raises `OSError`.

    Those `apart` are in the one for SecretRefs only. Returns names that are not in the environment for their value.
    """
    variables, unfit = environment_of(values, apart)
    write_atomically(paths.environment_file, render_environment_file(variables).encode())
    # Last: as long as this one is old, the next look sees that something has changed.
    users.write(paths, paths.secrets_file, json.dumps(values, sort_keys=True).encode(), users.OPENCLAW_OWNS)
    return unfit
