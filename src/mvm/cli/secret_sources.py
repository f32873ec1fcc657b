"""Values of secrets from files and variables that a command line names. The values themselves are never on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mvm.model.deployment import Deployment, SecretSource
from mvm.model.errors import InvalidInput
from mvm.model.ids import TenantId
from mvm.model.secret_files import SecretValues, read_secrets
from mvm.model.secrets import LOGICAL_NAMES, SecretName


def read_sources(
    *, files: Sequence[str], variables: Sequence[str], environ: Mapping[str, str] = os.environ
) -> SecretValues:
    """Values by `scope/KEY` for each `NAME=PATH` and `NAME=VARIABLE`; raises `InvalidInput` with all that is wrong."""
    sources = [_source(item, "file") for item in files] + [_source(item, "env") for item in variables]
    if not sources:
        raise InvalidInput("no secret is given", hint="name one with --file NAME=PATH or --env NAME=VARIABLE")
    return read_secrets(Deployment.model_construct(name=TenantId("none"), secrets=tuple(sources)), environ)


def _source(item: str, kind: str) -> SecretSource:
    name, equals, where = item.partition("=")
    if not equals or not where:
        # Not repeated: it may be the secret itself.
        form = "NAME=PATH" if kind == "file" else "NAME=VARIABLE"
        raise InvalidInput(f"a value of --{kind} is not of the form {form}", hint=f"write --{kind} {form}")
    secret = LOGICAL_NAMES.get(name) or _written_out(name)
    where = os.path.abspath(os.path.expanduser(where)) if kind == "file" else where
    return SecretSource(name=name, scope=secret.scope, key=secret.key, place=f"--{kind}", **{kind: where})


def _written_out(name: str) -> SecretName:
    if "/" not in name:
        raise InvalidInput(
            f"no secret has the name {name[:80]!r}", hint=f"write {', '.join(LOGICAL_NAMES)} or scope/KEY"
        )
    return SecretName.parse(name)
