"""`mvm user`: the people a deployment serves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, age, columns, emit

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="The people a deployment serves."
)

User = Annotated[str, typer.Argument(metavar="USER", help="Id of the user.")]
Telegram = Annotated[list[str] | None, typer.Option(metavar="ID", help="Telegram sender id; repeatable.")]
Discord = Annotated[list[str] | None, typer.Option(metavar="ID", help="Discord user id; repeatable.")]


@app.command("add")
def add(
    tenant: options.Tenant,
    user: User,
    telegram: Telegram = None,
    discord: Discord = None,
    pool: Annotated[str | None, typer.Option(help="Pool of the user's worker; default: the only one.")] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Add a user with a private worker. It takes effect on the running gateway at once."""
    params = session.given(
        tenant_id=options.tenant(tenant), user_id=user, telegram=telegram or None, discord=discord or None, pool=pool
    )
    answer = session.call("UserAdd", params)
    told = "added" if answer["added"] else "is there already, with that sender: nothing was changed"
    hint = "" if telegram or discord else "; whoever writes to the bot gets a code for `mvm user pair`"
    emit(answer, lambda: f"user {user} of {tenant} {told}{hint}", output, as_json)


@app.command("link")
def link(
    tenant: options.Tenant,
    user: User,
    telegram: Telegram = None,
    discord: Discord = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Let senders be a user who exists, beside those who are already. It takes effect at once."""
    answer = session.call("UserLink", _senders(tenant, user, telegram, discord))
    emit(answer, lambda: _writes_from(answer, unchanged=not answer["changed"]), output, as_json)


@app.command("unlink")
def unlink(
    tenant: options.Tenant,
    user: User,
    telegram: Telegram = None,
    discord: Discord = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Let senders be a user no longer; the user and their worker stay. It takes effect at once."""
    answer = session.call("UserUnlink", _senders(tenant, user, telegram, discord))
    emit(answer, lambda: _writes_from(answer), output, as_json)


@app.command("list")
def list_(tenant: options.Tenant, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """List the users of a tenant."""
    answer = session.call("UserList", {"tenant_id": options.tenant(tenant)})
    emit(answer, lambda: users_table(answer["users"], empty=f"no users in {tenant}"), output, as_json)


@app.command("remove")
def remove(
    tenant: options.Tenant,
    user: User,
    force: options.Force = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Remove a user and destroy their worker with all its data."""
    tenant_id = options.tenant(tenant)
    options.confirm(f"remove user {user} of {tenant_id} and destroy their worker with all its data", force=force)
    answer = session.call("UserRemove", {"tenant_id": tenant_id, "user_id": user})
    emit(answer, lambda: f"user {user} of {tenant_id} removed", output, as_json)


@app.command("pair")
def pair(
    tenant: options.Tenant,
    code: Annotated[str, typer.Argument(metavar="CODE", help="Code that the gateway answered to the sender.")],
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Whom to bind; default: the only one who is not paired yet.")
    ] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Bind the sender who got this code to a user."""
    params = session.given(tenant_id=options.tenant(tenant), code=code.strip().upper(), user_id=user)
    answer = session.call("UserPair", params)
    emit(answer, lambda: _paired(answer), output, as_json)


def _senders(tenant: str, user: str, telegram: list[str] | None, discord: list[str] | None) -> dict[str, Any]:
    """Whose senders, and which; raises `InvalidInput` for none."""
    from mvm.model.errors import InvalidInput

    if not (telegram or discord):
        raise InvalidInput("no sender is given", hint="give --telegram ID or --discord ID")
    return session.given(tenant_id=options.tenant(tenant), user_id=user, telegram=telegram, discord=discord)


def _peers(user: dict[str, Any]) -> list[str]:
    return [f"telegram:{x}" for x in user["telegram"]] + [f"discord:{x}" for x in user["discord"]]


def _writes_from(answer: dict[str, Any], *, unchanged: bool = False) -> str:
    user = answer["user"]
    where = f"writes from {', '.join(_peers(user))}" if _peers(user) else "is not paired any more"
    return f"user {user['user_id']} of {user['tenant_id']} {where}{': nothing was changed' if unchanged else ''}"


def users_table(users: list[dict[str, Any]], *, empty: str = "") -> str:
    """Users as a table."""
    rows = [
        (
            user["user_id"],
            f"{user['pool_id']}/{user['instance_id']}" if user.get("instance_id") else None,
            _peers(user) or "not paired yet",
            age(user["created_at"]),
        )
        for user in users
    ]
    return columns(("user", "worker", "writes from", "age"), rows, empty=empty)


def _paired(answer: dict[str, Any]) -> str:
    user = answer.get("user", answer)
    return f"user {user['user_id']} of {user['tenant_id']} is paired"
