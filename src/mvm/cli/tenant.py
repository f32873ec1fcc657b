"""`mvm tenant`: tenants and their secrets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mvm.cli import backup, options, session
from mvm.cli.output import AsJson, Format, Output, age, columns, emit, facts, sections

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="Tenants and their secrets.")
secrets = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="A tenant's secrets.")
app.add_typer(secrets, name="secrets")
app.command("export")(backup.export)
app.command("import")(backup.import_)

Quotas = Annotated[
    list[str] | None,
    typer.Option("--quota", metavar="NAME=LIMIT", help="A quota, such as max_running=4; may be repeated."),
]


@app.command("create")
def create(
    tenant: options.Tenant,
    template: Annotated[str | None, typer.Option(help="Template whose quotas it gets.")] = None,
    quota: Quotas = None,
    net_id: Annotated[int | None, typer.Option(metavar="ID", help="Net id, 1 to 4094; default: the next one.")] = None,
    subnet: Annotated[str | None, typer.Option(metavar="CIDR", help="Its /24; default: by its net id.")] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Create a tenant without any pool."""
    answer = session.call(
        "TenantCreate",
        session.given(
            tenant_id=options.tenant(tenant),
            template=template,
            quotas=_quotas(quota) or None,
            net_id=net_id,
            subnet=subnet,
        ),
    )
    emit(answer, lambda: f"tenant {tenant} created", output, as_json)


@app.command("list")
def list_(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """List the tenants."""
    answer = session.call("TenantList")
    emit(answer, lambda: _table(answer["tenants"]), output, as_json)


@app.command("info")
def info(tenant: options.Tenant, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show a tenant: network, quotas, pools and users."""
    answer = session.call("TenantInfo", {"tenant_id": options.tenant(tenant)})
    emit(answer, lambda: _describe(answer), output, as_json)


@app.command("update")
def update(
    tenant: options.Tenant,
    quota: Quotas = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="TENANT", help="Whom the own gateway serves as well; repeatable, replaces the list."),
    ] = None,
    accept_none: Annotated[bool, typer.Option("--accept-none", help="Serve no other tenant any more.")] = False,
    gateway: Annotated[str | None, typer.Option(metavar="TENANT", help="Be served by this tenant's gateway.")] = None,
    own_gateway: Annotated[bool, typer.Option("--own-gateway", help="Be served by no other gateway.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Change a tenant's quotas, whom its gateway serves, or whose gateway serves it."""
    from mvm.model.errors import InvalidInput

    for one, other, both in (
        ("--accept", "--accept-none", accept and accept_none),
        ("--gateway", "--own-gateway", gateway is not None and own_gateway),
    ):
        if both:
            raise InvalidInput(f"{one} and {other} contradict each other", hint=f"leave {one} or {other} out")
    params = session.given(tenant_id=options.tenant(tenant), quotas=_quotas(quota) or None, accepts=accept)
    if accept_none:
        params["accepts"] = []
    if own_gateway or gateway is not None:
        params["gateway_tenant"] = None if own_gateway else gateway
    if len(params) == 1:
        raise InvalidInput("no change is given", hint="`mvm tenant update --help` shows what can be changed")
    answer = session.call("TenantUpdate", params)
    emit(answer, lambda: f"tenant {tenant} updated", output, as_json)


@app.command("destroy")
def destroy(
    tenant: options.Tenant,
    force: options.Force = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Destroy a tenant with all its instances, data and secrets."""
    tenant_id = options.tenant(tenant)
    options.confirm(f"destroy tenant {tenant_id} with all its instances, data and secrets", force=force)
    answer = session.call("TenantDestroy", {"tenant_id": tenant_id})
    emit(answer, lambda: f"tenant {tenant_id} destroyed", output, as_json)


@secrets.command("set")
def secrets_set(
    tenant: options.Tenant,
    file: Annotated[
        list[str] | None, typer.Option("--file", metavar="NAME=PATH", help="Secret from a file; repeatable.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VARIABLE", help="From a variable; repeatable.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove all secrets that are not given now.")] = False,
    check: Annotated[bool, typer.Option(help="Ask Telegram and the model provider whether they know the keys.")] = True,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Set secrets. NAME is anthropic_key, openai_key, telegram_token, discord_token, openclaw_token or scope/KEY.

    Running instances get them at once, sleeping ones when they wake. Values are never given on the command line.
    """
    from mvm.cli.secret_sources import read_sources

    tenant_id = options.tenant(tenant)
    secrets = read_sources(files=file or [], variables=env or [])
    notes = [*secrets.warnings, *(_checked(tenant_id, secrets.values, prune=prune) if check else ())]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    answer = session.call("SecretsSet", {"tenant_id": tenant_id, "secrets": secrets.values, "prune": prune})
    emit(answer, lambda: _changed(answer["changed"], f"secrets of {tenant_id}"), output, as_json)


def _checked(tenant_id: str, values: Mapping[str, str], *, prune: bool) -> list[str]:
    """Notes about services that could not be asked; raises `InvalidInput` for a key that its service does not know."""
    from mvm.model.entities import OpenClawSettings
    from mvm.model.secrets import LOGICAL_NAMES
    from mvm.openclaw.checks import check_keys

    tenant = session.call("TenantInfo", {"tenant_id": tenant_id})["tenant"]
    settings = OpenClawSettings.model_validate(tenant.get("openclaw") or {})
    anthropic = LOGICAL_NAMES["anthropic_key"].path
    kept = [] if prune else session.call("SecretsList", {"tenant_id": tenant_id})["secrets"]
    if anthropic in kept and anthropic not in values:
        # A base URL of the tenant's own belongs to Anthropic's key when there is one (`checks`).
        settings = settings.model_copy(update={"provider_base_url": None})
    return session.run(check_keys(settings, values))


@secrets.command("rotate")
def secrets_rotate(
    tenant: options.Tenant,
    scope: Annotated[str | None, typer.Option(help="Only this scope.")] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Make the generated tokens anew and hand every secret out again."""
    tenant_id = options.tenant(tenant)
    answer = session.call("SecretsRotate", session.given(tenant_id=tenant_id, scope=scope))
    emit(answer, lambda: _handed_out(answer["rotated"], tenant_id), output, as_json)


@secrets.command("list")
def secrets_list(tenant: options.Tenant, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """List the names of a tenant's secrets, and the pools whose instances get them. Values are never shown."""
    answer = session.call("SecretsList", {"tenant_id": options.tenant(tenant)})
    emit(answer, lambda: _secrets_table(answer), output, as_json)


def _quotas(written: list[str] | None) -> dict[str, int]:
    """Quotas given as NAME=LIMIT; raises `InvalidInput`."""
    return options.numbers(written, what="quota", example="max_running=4")


def _table(tenants: list[dict[str, Any]]) -> str:
    rows = [
        (t["tenant_id"], t["network"]["ipv4_subnet"], t.get("gateway_tenant"), age(t["created_at"])) for t in tenants
    ]
    return columns(("tenant", "network", "served by", "age"), rows, empty="no tenants: `mvm new openclaw NAME`")


def _describe(answer: dict[str, Any]) -> str:
    from mvm.cli.pool import pools_table
    from mvm.cli.user import users_table

    tenant = answer["tenant"]
    return sections(
        facts(
            [
                ("tenant", tenant["tenant_id"]),
                ("template", tenant.get("template")),
                ("network", f"{tenant['network']['ipv4_subnet']} (net id {tenant['network']['tenant_net_id']})"),
                ("served by", tenant.get("gateway_tenant")),
                ("serves", tenant.get("accepts")),
                ("secrets", f"epoch {tenant['secrets_epoch']}"),
                ("created", tenant["created_at"]),
            ]
        ),
        columns(("quota", "limit"), tenant["quotas"].items()),
        pools_table(answer.get("pools", [])),
        users_table(answer.get("users", [])),
    )


def _secrets_table(answer: dict[str, Any]) -> str:
    pools = answer.get("pools", {})
    rows = [(*name.split("/", 1), pools.get(name)) for name in answer["secrets"]]
    return columns(("scope", "key", "pools"), rows, empty="no secrets")


def _changed(names: list[str], whose: str) -> str:
    return f"{whose} changed: {', '.join(names)}" if names else f"{whose}: nothing changed"


def _handed_out(names: list[str], tenant_id: str) -> str:
    if not names:
        return f"secrets of {tenant_id}: there are none"
    return f"secrets of {tenant_id} handed out again, generated tokens with new values: {', '.join(names)}"
