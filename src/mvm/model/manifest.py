"""The two files a person writes, `deploy.toml` and `deployment.toml` (CONTRACT 6), read into a `Deployment`.

Both are strict. Everything that is wrong is said at once, each with file, line, key and what would be right; nothing is
created before all of it is right. This module, and the reading of secret files beside it, is the one place of the model
that opens files: on behalf of the CLI, never of the agent.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mvm.model import ids
from mvm.model.deployment import Deployment, SecretSource, Trouble, check_deployment
from mvm.model.entities import PoolSpec, UserSpec
from mvm.model.errors import InvalidInput
from mvm.model.files import read_limited
from mvm.model.ids import PoolId, TenantId, UserId
from mvm.model.manifest_tables import DeployFile, DeploymentFile, SharedTables, UserTable, deploy_file, overlaid
from mvm.model.roles import Role
from mvm.model.secret_files import read_secrets
from mvm.model.secrets import LOGICAL_NAMES, SecretName
from mvm.model.template import Template
from mvm.model.toml_lines import line_at, lines_of
from mvm.model.validation import (
    Location,
    Problem,
    ValidationProblems,
    describe_location,
    found_in,
    nearest,
    parse_or_report,
)

__all__ = [
    "Deployment",
    "load_deploy_toml",
    "load_deployment_toml",
    "new_deployment",
    "parse_deploy_toml",
    "parse_deployment_toml",
    "read_secrets",
]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 16
S = TypeVar("S", bound=SharedTables)
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def load_deploy_toml(path: Path, name: str, *, template: Template) -> Deployment:
    """Read a deploy.toml for `mvm new <template> <name>`; raises `InvalidInput` with every problem, by line."""
    return parse_deploy_toml(_read(path), name, template=template, path=path)


def load_deployment_toml(path: Path) -> Deployment:
    """Read a deployment.toml for `mvm deploy`; raises `InvalidInput` with every problem, by line."""
    return parse_deployment_toml(_read(path), path=path)


def new_deployment(name: str, *, template: Template) -> Deployment:
    """What `mvm new <template> <name>` makes without a file."""
    return parse_deploy_toml("", name, template=template, path=Path("deploy.toml"))


def parse_deploy_toml(text: str, name: str, *, template: Template, path: Path) -> Deployment:
    """As `load_deploy_toml`, from a text; `path` names the file and is what paths in it are relative to."""
    tenant = ids.tenant_id(name)
    source = _Source(text, path)
    file = source.parse(deploy_file(template.pool_ids()))
    pools, places = _template_pools(file, template)
    return source.deployment(
        file,
        places=places,
        name=tenant,
        template=template.name,
        quotas=overlaid(template.quotas, file.quotas),
        pools=pools,
    )


def parse_deployment_toml(text: str, *, path: Path) -> Deployment:
    """As `load_deployment_toml`, from a text; `path` names the file and is what paths in it are relative to."""
    source = _Source(text, path)
    file = source.parse(DeploymentFile)
    return source.deployment(
        file,
        places=[("pools", index) for index in range(len(file.pools))],
        name=file.tenant.id,
        net_id=file.tenant.net_id,
        subnet=file.tenant.subnet,
        quotas=file.quotas,
        pools=tuple(table.pool() for table in file.pools),
    )


def _read(path: Path) -> str:
    try:
        return read_limited(path, limit=MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: is not UTF-8 text", hint=f"byte {error.start} is not; save it as UTF-8") from None


def _template_pools(file: DeployFile, template: Template) -> tuple[tuple[PoolSpec, ...], list[Location]]:
    """The template's pools with what the file overrides, and where the file says so.

    A deployment that another one's gateway serves gets no gateway pool, unless the file speaks of it: then that
    contradiction is to be reported.
    """
    pools, places = [], []
    for pool in template.pools:
        overrides = file.overrides.of(pool.pool_id)
        if file.gateway.tenant is not None and pool.role is Role.GATEWAY and overrides is None:
            continue
        if file.overrides.flake is not None:
            pool = pool.model_copy(update={"flake": file.overrides.flake})
        pools.append(pool if overrides is None else overrides.applied_to(pool))
        places.append(("overrides", pool.pool_id))
    return tuple(pools), list(places)


class _Source:
    """The text of one manifest: turns places in it into lines, and problems into errors."""

    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        try:
            self._tables = self._tables_of(text)
            self._lines = lines_of(text)
        except RecursionError:
            raise InvalidInput(f"{path}: is nested too deeply", hint="no key needs more than a few levels") from None

    def _tables_of(self, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            line = int(match[1]) if (match := _AT_LINE.search(message)) else text.rstrip().count("\n") + 1
            raise InvalidInput(
                f"{self._path}:{line}: is not valid TOML: {_AT_LINE.sub('', message)}",
                hint='a value is a "string", a number, true, false, a [list] or a { table = "..." }',
            ) from None
        except ValueError:  # of Python's own limit to the digits of a number, which says no line
            raise InvalidInput(f"{self._path}: has a number that is too long", hint="no number is that large") from None

    def place(self, location: Location) -> str:
        """`file:line` of a location."""
        return f"{self._path}:{line_at(self._lines, location)}"

    def describe(self, location: Location) -> str:
        """`file:line: key` of a location."""
        return f"{self.place(location)}: {describe_location(location)}" if location else self.place(location)

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Raise all problems together, if there are any."""
        if problems:
            raise ValidationProblems(str(self._path), problems)

    def parse(self, model: type[S]) -> S:
        """The file's tables as a model; raises `ValidationProblems`."""
        if unusable := list(_not_for_us(self._tables)):
            self.refuse([Problem(self.describe(place), message) for place, message in unusable])
        found = _nameless_secrets(self._tables)
        try:
            file = parse_or_report(model, self._tables)
        except ValidationError as error:
            found += found_in(error, model)
        else:
            if not found:
                return file
        found.sort(key=lambda one: line_at(self._lines, one[0]))
        problems = [Problem(self.describe(place), message, hint) for place, message, hint in found]
        raise ValidationProblems(str(self._path), problems)

    def deployment(self, file: SharedTables, *, places: Sequence[Location], **settings: Any) -> Deployment:
        """The deployment that the file describes; raises `ValidationProblems` where it contradicts itself.

        `places` says where the file speaks of each pool.
        """
        problems: list[Problem] = []
        secrets = tuple(self._secrets(file, problems))
        pools = tuple(pool.model_copy(update={"flake": self._flake(pool.flake)}) for pool in settings["pools"])
        settings |= {
            "pools": pools,
            "users": tuple(self._users(file, settings["name"], pools, problems)),
            "openclaw": file.openclaw,
            "gateway_tenant": file.gateway.tenant,
            "accepts": file.gateway.accepts,
            "secrets": secrets,
        }
        # First without validation: a trouble is to be reported with its line.
        for trouble in check_deployment(Deployment.model_construct(**settings)):
            problems.append(self._problem(trouble, places))
        self.refuse(problems)
        return Deployment(**settings)

    def _problem(self, trouble: Trouble, places: Sequence[Location]) -> Problem:
        match trouble.location:
            case ("pools", int(index), *rest):
                return trouble.at(self.place((*places[index], *rest)))
            case location:
                return trouble.at(self.place(location))

    def _secrets(self, file: SharedTables, problems: list[Problem]) -> Iterator[SecretSource]:
        for name, table in file.secrets.items():
            location = ("secrets", name)
            try:
                if table.scope is not None and table.key is not None:
                    secret = SecretName(table.scope, table.key)
                else:
                    secret = LOGICAL_NAMES[name]
                if table.env is not None and not _VARIABLE.fullmatch(table.env):
                    # Not repeated: it may be the secret itself, written in the wrong place.
                    raise InvalidInput("env is not the name of a variable", hint='write it as { env = "NAME" }')
                if table.file is not None and "\0" in table.file:
                    raise InvalidInput("file has a NUL in it", hint="write the path of a file")
            except InvalidInput as error:
                problems.append(Problem(self.describe(location), error.message, error.hint))
                continue
            yield SecretSource(
                name=name,
                scope=secret.scope,
                key=secret.key,
                file=None if table.file is None else self._absolute(table.file),
                env=table.env,
                place=self.place(location),
            )

    def _absolute(self, written: str) -> str:
        """A path relative to the file's own directory; symbolic links stay as they are."""
        return os.path.abspath(self._path.absolute().parent / os.path.expanduser(written))

    def _flake(self, written: str) -> str:
        """A flake as the agent finds it too: a directory relative to the file becomes absolute."""
        scheme = "path:" if written.startswith("path:") else ""
        place = written.removeprefix("path:")
        relative = place.startswith((".", "~")) or (scheme and not place.startswith("/"))
        return f"{scheme}{self._absolute(place)}" if relative else written

    def _users(
        self, file: SharedTables, name: TenantId, pools: Sequence[PoolSpec], problems: list[Problem]
    ) -> Iterator[UserSpec]:
        """The users that the file names; without any, one called like the deployment and not yet paired."""
        homes = [pool.pool_id for pool in pools if pool.role is Role.CAPABILITY_OPENCLAW]
        if not file.users and homes:
            yield UserSpec(user_id=UserId(name), pool_id=homes[0])
        for index, table in enumerate(file.users):
            if (pool := table.pool or _only(homes)) is not None:
                yield _user(table, pool)
                continue
            problems.append(
                Problem(
                    self.describe(("users", index)),
                    f"user {table.id!r} has no pool to have a worker in",
                    f"write pool = one of {', '.join(homes)}"
                    if homes
                    else f"add a pool of role {Role.CAPABILITY_OPENCLAW}",
                )
            )


def _only(pools: Sequence[PoolId]) -> PoolId | None:
    return pools[0] if len(pools) == 1 else None


def _user(table: UserTable, pool: PoolId) -> UserSpec:
    return UserSpec(user_id=table.id, pool_id=pool, telegram=table.telegram, discord=table.discord, budget=table.budget)


def _nameless_secrets(tables: dict[str, Any]) -> list[tuple[Location, str, str | None]]:
    """Secrets that have neither a known name nor the long form."""
    found: list[tuple[Location, str, str | None]] = []
    secrets = tables.get("secrets")
    for name, table in secrets.items() if isinstance(secrets, dict) else ():
        if name in LOGICAL_NAMES or (isinstance(table, dict) and {"scope", "key"} & table.keys()):
            continue
        long_form = 'any other secret is written as { file = "...", scope = "x", key = "Y" }'
        guess = nearest(name, LOGICAL_NAMES)
        hint = f"did you mean {guess!r}?" if guess else f"the names are {', '.join(LOGICAL_NAMES)}"
        found.append((("secrets", name), "unknown secret", f"{hint}; {long_form}"))
    return found


def _not_for_us(value: Any, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Values that TOML has and no key of ours takes: dates, times, fractions, depths."""
    match value:
        case dict() | list() if len(location) > MAX_DEPTH:
            yield location, "this is nested too deeply"
        case dict():
            for key, inner in value.items():
                yield from _not_for_us(inner, (*location, key))
        case list():
            for index, inner in enumerate(value):
                yield from _not_for_us(inner, (*location, index))
        case date() | time():
            yield location, "a date or time is not expected here"
        case float():
            yield location, "a number with a fraction is not expected here"
