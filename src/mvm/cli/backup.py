"""`mvm tenant export` and `mvm tenant import`: the file and the passphrase are this command's, the rest the agent's."""

from __future__ import annotations

import base64
import errno
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, emit, sections, size

if TYPE_CHECKING:
    from mvm.host.client import AgentClient

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="PATH", help="The passphrase is this file's first line."),
]
PassphraseEnv = Annotated[
    str | None, typer.Option("--passphrase-env", metavar="VARIABLE", help="The passphrase is in this variable.")
]


def export(
    tenant: options.Tenant,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the backup is written; it must not exist.")],
    passphrase_file: PassphraseFile = None,
    passphrase_env: PassphraseEnv = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Write a tenant into one encrypted file: config, users, pools, secrets and the data of every instance.

    Instances that run are at rest while their data is read, one after the other, and come back at once.
    """
    from mvm.model.errors import Conflict

    tenant_id = options.tenant(tenant)
    if file.exists():
        raise Conflict(f"{file} exists already", hint="name another file: a backup is never written over")
    passphrase = _passphrase(passphrase_file, passphrase_env, twice=True)
    answer = session.run(_export(tenant_id, file, passphrase))
    emit(
        answer,
        lambda: _told(answer, f"tenant {tenant_id} is saved in {file} ({size(answer['size'])})"),
        output,
        as_json,
    )


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup that `mvm tenant export` wrote.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Id of the tenant; default: the one in the backup.")
    ] = None,
    start: Annotated[
        bool, typer.Option(help="Start its gateway at the end; else it stays stopped until `mvm instance start`.")
    ] = True,
    passphrase_file: PassphraseFile = None,
    passphrase_env: PassphraseEnv = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Make a tenant again from a backup. All of it is checked before anything is created.

    The bot of a tenant listens in one place only: destroy the original before its copy is made on the same host, stop
    it before a copy starts on another one.
    """
    tenant_id = options.tenant(name) if name is not None else None
    _look_at(file)
    passphrase = _passphrase(passphrase_file, passphrase_env, twice=False)
    answer = session.run(_import(file, passphrase, session.given(tenant_id=tenant_id, start=start)))
    emit(answer, lambda: _told(answer, f"tenant {answer['tenant_id']} is here again"), output, as_json)


async def _export(tenant_id: str, file: Path, passphrase: str) -> dict[str, Any]:
    """Have the agent make the backup, fetch it, and give it its name when all of it is on the disk."""
    from mvm.cli.progress import shown

    client = await session.agent()
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        # Before anybody is put to rest for it.
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot(file, error) from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            with shown() as on_progress:
                answer = await client.call(
                    "TenantExport", {"tenant_id": tenant_id, "passphrase": passphrase}, on_progress=on_progress
                )
            transfer = answer.pop("transfer")
            try:
                await _fetch(client, transfer, answer["size"], out)
            finally:
                await client.call("TransferEnd", {"transfer": transfer})
        _give_name(unfinished, file)
    except OSError as error:
        raise _cannot(file, error) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return {**answer, "file": str(file)}


async def _fetch(client: AgentClient, transfer: str, total: int, out: BinaryIO) -> None:
    """Write a transfer of `total` bytes; it is on the disk when this returns."""
    offset = 0
    while offset < total:
        piece = await client.call("TransferRead", {"transfer": transfer, "offset": offset})
        offset += out.write(base64.b64decode(piece["data"]))
    out.flush()
    os.fsync(out.fileno())


def _give_name(unfinished: Path, file: Path) -> None:
    """The file gets its name, and never replaces what is there by now. Raises `OSError`."""
    try:
        os.link(unfinished, file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links, such as a memory stick's: the name is taken first.
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        unfinished.replace(file)


async def _import(file: Path, passphrase: str, params: dict[str, Any]) -> dict[str, Any]:
    from mvm.cli.progress import shown

    client = await session.agent()
    begun = await client.call("TransferBegin")
    transfer, piece = begun["transfer"], begun["piece"]
    try:
        with file.open("rb") as source:
            offset = 0
            while chunk := source.read(piece):
                data = base64.b64encode(chunk).decode()
                await client.call("TransferWrite", {"transfer": transfer, "offset": offset, "data": data})
                offset += len(chunk)
    except OSError as error:
        await client.call("TransferEnd", {"transfer": transfer})
        raise _cannot(file, error) from error
    with shown() as on_progress:
        return await client.call(
            "TenantImport", {"transfer": transfer, "passphrase": passphrase, **params}, on_progress=on_progress
        )


def _look_at(file: Path) -> None:
    """Find out what can be found out without the passphrase, before anything is sent."""
    from mvm.model.errors import InvalidInput
    from mvm.security.sealed_files import read_header

    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InvalidInput(f"{file} is not a regular file", hint="write the backup to a file and name that")
        with file.open("rb") as source:
            read_header(source)
    except OSError as error:
        raise _cannot(file, error) from error


def _passphrase(file: Path | None, variable: str | None, *, twice: bool) -> str:
    """The passphrase from a file, a variable or the person; never from the command line."""
    from mvm.model.errors import InvalidInput

    if file is not None and variable is not None:
        raise InvalidInput("the passphrase is given twice", hint="name a file or a variable")
    if file is not None:
        try:
            text = file.read_text().split("\n", 1)[0]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the passphrase cannot be read from {file}: {error}") from None
    elif variable is not None:
        text = os.environ.get(variable, "")
    elif sys.stdin.isatty():
        text = typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=twice, err=True)
    else:
        raise InvalidInput(
            "a backup needs a passphrase, and there is no terminal to ask at",
            hint="add --passphrase-file PATH or --passphrase-env VARIABLE",
        )
    if not text:
        raise InvalidInput("the passphrase is empty", hint="at least 8 characters; keep it apart from the backup")
    return text


def _cannot(file: Path, error: OSError) -> Exception:
    from mvm.model.errors import MvmError, NotFound

    if isinstance(error, FileNotFoundError):
        there = file.parent.is_dir()
        hint = "look at the name" if there else f"there is no directory '{file.parent}'"
        return NotFound(f"{file} cannot be opened: {error.strerror}", hint=hint)
    hint = f"look who may use '{file.parent}', and how much room there is"
    return MvmError(f"{file} cannot be read or written: {error.strerror or error}", hint=hint)


def _told(answer: dict[str, Any], head: str) -> str:
    notes = "\n".join(f"note: {note}" for note in answer["notes"])
    return sections(f"{head}: {answer['instances']} instances", notes)
