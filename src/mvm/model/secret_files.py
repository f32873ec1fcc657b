"""Reading the values of a deployment's secrets, on behalf of the CLI (CONTRACT 6 and 7). No error holds a value."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mvm.model.deployment import Deployment, SecretSource
from mvm.model.errors import InvalidInput
from mvm.model.files import read_with_mode
from mvm.model.secrets import MAX_VALUE_BYTES, check_values, value_from_text
from mvm.model.validation import Problem, ValidationProblems


class SecretValues(NamedTuple):
    """Values by `scope/KEY`, and what a person should know of their sources."""

    values: dict[str, str]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"SecretValues({sorted(self.values)}, warnings={self.warnings})"


def read_secrets(deployment: Deployment, environ: Mapping[str, str]) -> SecretValues:
    """Read every secret from its file or variable; raises `InvalidInput` with everything that is wrong with them.

    A missing, empty or unreadable file, a directory and a variable that is not set are errors; a file that others may
    read is a warning.
    """
    values: dict[str, str] = {}
    problems: list[Problem] = []
    warnings: list[str] = []
    for source in deployment.secrets:
        try:
            values[source.secret.path] = _read(source, environ, warnings)
        except InvalidInput as error:
            problems.append(Problem(_place(source), error.message, error.hint))
    if not problems:
        try:
            check_values(values)
        except InvalidInput as error:
            problems.append(Problem("secrets", error.message, error.hint))
    if problems:
        raise ValidationProblems("secrets", problems)
    return SecretValues(values, tuple(warnings))


def _place(source: SecretSource) -> str:
    return f"{source.place}: secrets.{source.name}" if source.place else f"secrets.{source.name}"


def _read(source: SecretSource, environ: Mapping[str, str], warnings: list[str]) -> str:
    if source.env is not None:
        return _read_variable(source, source.env, environ)
    path = Path(source.file or "")
    content, mode = read_with_mode(path, limit=MAX_VALUE_BYTES)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: is not UTF-8 text", hint="check that it is the right file") from None
    if not text.strip():
        raise InvalidInput(f"{path}: is empty", hint="write the secret into it, or leave the secret out")
    if mode & stat.S_IROTH:
        warnings.append(f"{path} can be read by others on this machine: chmod 600 {path}")
    return value_from_text(source.secret, text)


def _read_variable(source: SecretSource, name: str, environ: Mapping[str, str]) -> str:
    text = environ.get(name)
    if text is None:
        raise InvalidInput(f"the environment variable {name} is not set", hint=f"export {name}, or name a file")
    if not text.strip():
        raise InvalidInput(f"the environment variable {name} is empty", hint="give it a value, or leave the secret out")
    return value_from_text(source.secret, text)
