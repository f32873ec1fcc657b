"""`mvm agent certs`: by what the agent and its operators on other hosts know each other.

These commands work on the files in the state directory, whether or not an agent runs; a running one looks at them at
its next connection.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, age, columns, emit

if TYPE_CHECKING:
    from mvm.security.certificates import Authority

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Certificates of the agent's network API.",
)

Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address", metavar="ADDRESS", help="An address or name that operators call this host by; repeatable."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Who it is for: the actor in audit and events.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where client.pem is written; key included.")]


@app.command("init")
def init(addresses: Addresses = None, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Make what is missing: this agent's own authority, and its certificate. What is there stays."""
    authority = _authority()
    made = authority.init(addresses or ())
    _show(authority, {"made": made}, output, as_json)


@app.command("rotate")
def rotate(
    addresses: Addresses = None,
    ca: Annotated[
        bool, typer.Option("--ca", help="The authority too: every client needs another certificate.")
    ] = False,
    force: options.Force = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Give the agent a new certificate, with the addresses of the one before unless others are given."""
    authority = _authority()
    if ca:
        options.confirm("make a new authority, after which no client's certificate is valid", force=force)
    ended = authority.rotate(addresses or (), authority=ca)
    _show(authority, {"ended": ended}, output, as_json)


@app.command("issue")
def issue(name: Name, out: Out, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Make the certificate of an operator on another host; the one that NAME had before is let in no more."""
    from mvm.security.certificates import require_place, write_client

    require_place(out)
    path = write_client(out, _authority().issue(name))
    told = (
        f"{name}: {path}\ncopy it to that host, and set MVM_AGENT=tls://HOST:PORT and MVM_CERTS to its directory there"
    )
    emit({"name": name, "file": str(path)}, lambda: told, output, as_json)


@app.command("revoke")
def revoke(name: Name, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Let an operator in no more, from the next connection on."""
    _authority().revoke(name)
    emit({"revoked": name}, lambda: f"{name} is let in no more", output, as_json)


@app.command("status")
def status(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show the certificates, and until when they are valid; those of less than 14 days are warned of."""
    _show(_authority(changes=False), {}, output, as_json)


def _authority(*, changes: bool = True) -> Authority:
    from mvm.host.private_directories import make_private
    from mvm.security.certificates import Authority

    state_dir = session.locations().state_dir
    if changes:
        make_private(state_dir)
    return Authority(state_dir)


def _show(authority: Authority, more: session.Json, output: Format, as_json: bool) -> None:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    found = [each.to_json(now) for each in authority.described()]
    document = {"directory": str(authority.directory), **more, "certificates": found}
    emit(document, lambda: _table(document), output, as_json)


def _table(document: session.Json) -> str:
    """The certificates, then what was done and what is to be done."""
    rows = [
        (
            each["name"],
            each["kind"],
            each["state"],
            age(each["expires"]),
            each["serial"][:16],
            each["fingerprint"][:16],
            each["addresses"],
        )
        for each in document["certificates"]
    ]
    headers = ("name", "kind", "state", "expires", "serial", "sha-256", "addresses")
    lines = [columns(headers, rows, empty="no certificates: `mvm agent certs init`")]
    if "made" in document:
        lines.append(f"made: {', '.join(document['made'])}" if document["made"] else "everything was there already")
    if ended := document.get("ended"):
        lines.append(f"no longer let in: {', '.join(ended)}; issue them anew")
    lines += [f"warning: {line}" for line in _warnings(document["certificates"])]
    return "\n".join(lines)


def _warnings(certificates: list[session.Json]) -> list[str]:
    remedies = {"authority": "rotate --ca", "agent": "rotate"}
    return [
        f"{each['name']} {'has expired' if each['state'] == 'expired' else 'expires in less than 14 days'}: "
        f"`mvm agent certs {remedies.get(each['kind'], 'issue ' + each['name'] + ' --out DIR')}`"
        for each in certificates
        if each["state"] != "valid"
    ]
