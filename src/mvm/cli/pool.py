"""`mvm pool`: pools of instances."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, columns, counts, emit, facts, limits, mib, sections, size

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="Pools of instances.")

Running = Annotated[int | None, typer.Option(help="Instances that shall run.")]
Warm = Annotated[int | None, typer.Option(help="Instances that shall be paused with their memory kept.")]
Sleeping = Annotated[int | None, typer.Option(help="Instances that shall sleep.")]
DiskMib = Annotated[int | None, typer.Option(help="MiB a second by each drive of an instance; 0: no limit.")]
DiskOps = Annotated[int | None, typer.Option(help="Requests a second to each drive of an instance; 0: no limit.")]
NetworkMib = Annotated[int | None, typer.Option(help="MiB a second each way by an instance; 0: no limit.")]


@app.command("create")
def create(
    pool: options.Pool,
    role: Annotated[str, typer.Option(help="Role: gateway, builder, worker or capability-openclaw.")] = "worker",
    vcpus: Annotated[int, typer.Option(help="Virtual CPUs of each instance.")] = 2,
    mem_mib: Annotated[int, typer.Option(help="Memory of each instance in MiB.")] = 1024,
    data_disk_mib: Annotated[int, typer.Option(help="Data disk of each instance in MiB; 0: by role.")] = 0,
    flake: Annotated[str, typer.Option(help="Flake that its image is built from; also debian: or nix:.")] = "",
    profile: Annotated[str, typer.Option(help="Profile of the image.")] = "minimal",
    running: Running = None,
    warm: Warm = None,
    sleeping: Sleeping = None,
    disk_mib_per_second: DiskMib = None,
    disk_ops_per_second: DiskOps = None,
    network_mib_per_second: NetworkMib = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Create a pool. Its role never changes afterwards."""
    tenant_id, pool_id = options.pool(pool)
    wanted = {
        "tenant_id": tenant_id,
        "pool_id": pool_id,
        "role": role,
        "profile": profile,
        "flake": flake,
        "vcpus": vcpus,
        "mem_mib": mem_mib,
        "data_disk_mib": data_disk_mib,
        "desired": session.given(running=running, warm=warm, sleeping=sleeping),
        **session.given(
            disk_mib_per_second=disk_mib_per_second,
            disk_ops_per_second=disk_ops_per_second,
            network_mib_per_second=network_mib_per_second,
        ),
    }
    answer = session.call("PoolCreate", {"pool": wanted})
    emit(answer, lambda: f"pool {pool} created", output, as_json)


@app.command("list")
def list_(tenant: options.Tenant, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """List the pools of a tenant: how many of their instances are in each state, and how many shall be."""
    answer = session.call("PoolList", {"tenant_id": options.tenant(tenant)})
    emit(answer, lambda: pools_table(answer["pools"], empty=f"no pools in {tenant}"), output, as_json)


@app.command("info")
def info(pool: options.Pool, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show a pool: size, policy and instances."""
    tenant_id, pool_id = options.pool(pool)
    answer = session.call("PoolInfo", {"tenant_id": tenant_id, "pool_id": pool_id})
    emit(answer, lambda: _describe(answer), output, as_json)


@app.command("scale")
def scale(
    pool: options.Pool,
    running: Running = None,
    warm: Warm = None,
    sleeping: Sleeping = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Set how many instances of a pool shall be in each state; a count that is not given stays."""
    from mvm.model.errors import InvalidInput

    tenant_id, pool_id = options.pool(pool)
    wanted = session.given(running=running, warm=warm, sleeping=sleeping)
    if not wanted:
        raise InvalidInput("no count is given", hint="give --running, --warm or --sleeping")
    answer = session.call("PoolScale", {"tenant_id": tenant_id, "pool_id": pool_id, **wanted})
    emit(answer, lambda: f"pool {pool} scaled", output, as_json)


@app.command("update")
def update(
    pool: options.Pool,
    vcpus: Annotated[int | None, typer.Option(help="Virtual CPUs of each instance.")] = None,
    mem_mib: Annotated[int | None, typer.Option(help="Memory of each instance in MiB.")] = None,
    data_disk_mib: Annotated[int | None, typer.Option(help="Data disk of each instance in MiB.")] = None,
    flake: Annotated[str | None, typer.Option(help="Flake that its image is built from.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of the image.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SECONDS", help="Of its runtime policy, such as warm_after_idle_seconds=120."),
    ] = None,
    egress: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="internet, none, CIDR[:ports] or host:PORT; repeatable.")
    ] = None,
    pinned: Annotated[bool | None, typer.Option(help="Policy puts none of it to rest.")] = None,
    critical: Annotated[bool | None, typer.Option(help="Reconcile does not touch it.")] = None,
    peer_traffic: Annotated[bool | None, typer.Option(help="Its instances reach each other.")] = None,
    disk_mib_per_second: DiskMib = None,
    disk_ops_per_second: DiskOps = None,
    network_mib_per_second: NetworkMib = None,
    allow_exec: Annotated[bool | None, typer.Option(help="`mvm instance exec` is allowed.")] = None,
    snapshot_compression: Annotated[str | None, typer.Option(help="none or zstd.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be done.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Change settings of a pool; what is not given stays. A new size or image reaches one idle instance after another.

    How many instances it has is changed by `mvm pool scale`; its role never changes.
    """
    from mvm.cli.reports import raise_first_error, report_text
    from mvm.model.errors import InvalidInput

    tenant_id, pool_id = options.pool(pool)
    settings = session.given(
        vcpus=vcpus,
        mem_mib=mem_mib,
        data_disk_mib=data_disk_mib,
        flake=flake,
        profile=profile,
        runtime_policy=options.numbers(policy, what="policy", example="warm_after_idle_seconds=120") or None,
        egress=egress[0] if egress in (["internet"], ["none"]) else egress,
        pinned=pinned,
        critical=critical,
        peer_traffic=peer_traffic,
        disk_mib_per_second=disk_mib_per_second,
        disk_ops_per_second=disk_ops_per_second,
        network_mib_per_second=network_mib_per_second,
        allow_exec=allow_exec,
        snapshot_compression=snapshot_compression,
    )
    if not settings:
        raise InvalidInput("no change is given", hint="`mvm pool update --help` shows what can be changed")
    params = {"tenant_id": tenant_id, "pool_id": pool_id, "settings": settings, "dry_run": dry_run}
    answer = session.call("PoolUpdate", params)
    emit(answer, lambda: report_text(answer, name=pool), output, as_json)
    raise_first_error(answer)


@app.command("destroy")
def destroy(
    pool: options.Pool, force: options.Force = False, output: Output = Format.TABLE, as_json: AsJson = False
) -> None:
    """Destroy a pool with all its instances and their data."""
    tenant_id, pool_id = options.pool(pool)
    options.confirm(f"destroy pool {pool} with all its instances and their data", force=force)
    answer = session.call("PoolDestroy", {"tenant_id": tenant_id, "pool_id": pool_id})
    emit(answer, lambda: f"pool {pool} destroyed", output, as_json)


@app.command("build")
def build(
    pool: options.Pool,
    force: Annotated[
        bool, typer.Option("--force", help="Even when nothing has changed, or nothing here runs images.")
    ] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Build the image of a pool's machines from what there is now; what boots from then on runs it."""
    tenant_id, pool_id = options.pool(pool)
    answer = session.call("PoolBuild", {"tenant_id": tenant_id, "pool_id": pool_id, "force": force})
    emit(answer, lambda: _describe_build(answer), output, as_json)


@app.command("rollback")
def rollback(pool: options.Pool, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Go back to the image that a pool had before; what runs is not touched."""
    tenant_id, pool_id = options.pool(pool)
    answer = session.call("PoolRollback", {"tenant_id": tenant_id, "pool_id": pool_id})
    emit(
        answer,
        lambda: f"pool {pool} is back on image {answer['pool']['revision'][:12]} (it had {answer['from'][:12]})",
        output,
        as_json,
    )


@app.command("gc")
def collect_garbage(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Remove images that no pool has or can go back to and no instance runs or sleeps on."""
    answer = session.call("PoolGc", {"dry_run": dry_run})
    emit(answer, lambda: garbage_table(answer), output, as_json)


def pools_table(pools: list[dict[str, Any]], *, empty: str = "") -> str:
    """Pools as a table: what their instances do, and what is desired of them."""
    rows = [
        (
            pool["pool_id"],
            pool["role"],
            pool["vcpus"],
            mib(pool["mem_mib"]),
            sum(pool["states"].values()),
            *(pool["states"].get(state, 0) for state in ("running", "warm", "sleeping")),
            counts(pool["desired"]),
        )
        for pool in pools
    ]
    headers = ("pool", "role", "vcpus", "memory", "instances", "running", "warm", "sleeping", "desired")
    return columns(headers, rows, empty=empty)


def _describe(answer: dict[str, Any]) -> str:
    from mvm.cli.instance import instances_table

    pool = answer["pool"]
    policy = pool["runtime_policy"]
    desired = pool["desired"]
    return sections(
        facts(
            [
                ("pool", f"{pool['tenant_id']}/{pool['pool_id']}"),
                ("role", pool["role"]),
                ("size", f"{pool['vcpus']} vCPUs, {mib(pool['mem_mib'])}, data {mib(pool['data_disk_mib'])}"),
                ("desired", f"{desired['running']} running, {desired['warm']} warm, {desired['sleeping']} sleeping"),
                ("warm after", f"{policy['warm_after_idle_seconds']} s idle"),
                ("sleep after", f"{policy['sleep_after_idle_seconds']} s idle"),
                ("egress", pool["egress"]),
                ("limits", limits(pool)),
                ("peer traffic", pool["peer_traffic"] or None),
                ("pinned", pool["pinned"] or None),
                ("critical", pool["critical"] or None),
                ("image", pool["revision"][:12] or None),
                ("image before", ", ".join(revision[:12] for revision in pool["previous_revisions"]) or None),
                ("flake", pool["flake"]),
                ("created", pool["created_at"]),
            ]
        ),
        instances_table(answer.get("instances", [])),
    )


def _describe_build(answer: dict[str, Any]) -> str:
    pool, manifest = answer["pool"], answer["manifest"]
    source = manifest.get("source") or {}
    return facts(
        [
            ("pool", f"{pool['tenant_id']}/{pool['pool_id']}"),
            ("image", f"{pool['revision'][:12]}" + ("" if answer["built"] else ", nothing has changed")),
            ("builder", manifest["builder"]),
            ("flake", source.get("url")),
            ("application", source.get("application")),
            ("size", size(sum(file["size"] for file in manifest["files"].values()))),
            ("kernel", manifest["kernel_release"]),
            ("node", manifest["node"]),
            ("openclaw", manifest["openclaw"]),
        ]
    )


def garbage_table(answer: dict[str, Any]) -> str:
    """What nobody uses, with its size."""
    rows = [(revision["revision"][:12], size(revision["bytes"])) for revision in answer["revisions"]]
    rows += [(other["path"], size(other["bytes"])) for other in (*answer["others"], *answer.get("drives", ()))]
    if not rows:
        return "nothing to remove"
    done = "freed" if answer["removed"] else "would be freed"
    return sections(
        columns(("removed" if answer["removed"] else "unused", "size"), rows), f"{size(answer['bytes'])} {done}"
    )
