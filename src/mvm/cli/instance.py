"""`mvm instance`: single instances."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, age, columns, emit, facts, mib, plain, sections, size

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="Single instances.")

PAGE = 500
"""Instances asked for at a time; `list` goes on until it has all."""


@app.command("create")
def create(
    pool: options.Pool,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Whose private worker it is.")] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Create an instance in a pool."""
    tenant_id, pool_id = options.pool(pool)
    answer = session.call("InstanceCreate", session.given(tenant_id=tenant_id, pool_id=pool_id, user=user))
    emit(answer, lambda: f"instance {_name(answer)} created", output, as_json)


@app.command("list")
def list_(
    address: Annotated[
        str | None,
        typer.Argument(metavar="[TENANT[/POOL]]", help="Only those of a tenant or pool.", show_default=False),
    ] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """List instances."""
    from mvm.model.errors import InvalidInput
    from mvm.model.ids import Address

    params: dict[str, Any] = {}
    if address is not None:
        parsed = Address.parse(address)
        if parsed.instance_id is not None:
            raise InvalidInput(f"{address!r} names a single instance", hint=f"`mvm instance info {address}` shows it")
        params = session.given(tenant_id=parsed.tenant_id, pool_id=parsed.pool_id)
    found: list[dict[str, Any]] = []
    while True:
        after = {"after": found[-1]["instance_id"]} if found else {}
        page = session.call("InstanceList", {**params, **after, "limit": PAGE})["instances"]
        found += page
        if len(page) < PAGE:
            break
    document = {"instances": found}
    emit(document, lambda: instances_table(found, empty="no instances"), output, as_json)


@app.command("info")
def info(instance: options.Instance, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show an instance: state, IP address, times of its last wake and sleep."""
    answer = session.call("InstanceInfo", {"address": str(options.instance(instance))})
    emit(answer, lambda: _describe(answer), output, as_json)


@app.command("start")
def start(instance: options.Instance, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Boot an instance that is ready or stopped."""
    _change("InstanceStart", instance, "started", output, as_json)


@app.command("stop")
def stop(
    instance: options.Instance,
    force: Annotated[bool, typer.Option("--force", help="End it without waiting for what it does.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Drain an instance and shut it down; its data is kept."""
    _change("InstanceStop", instance, "stopped", output, as_json, force=force)


@app.command("warm")
def warm(instance: options.Instance, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Pause a running instance; its memory is kept."""
    _change("InstanceWarm", instance, "warm", output, as_json)


@app.command("sleep")
def sleep(
    instance: options.Instance,
    force: Annotated[bool, typer.Option("--force", help="Also before its minimal times are over.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Put an instance to sleep. It is refused while it is doing something for somebody."""
    _change("InstanceSleep", instance, "sleeping", output, as_json, force=force)


@app.command("wake")
def wake(instance: options.Instance, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Wake an instance; one that runs already is left as it is."""
    ref = options.instance(instance)
    answer = session.call(
        "WakeInstance", {"tenant_id": ref.tenant_id, "pool_id": ref.pool_id, "instance_id": ref.instance_id}
    )
    woken = answer["instance"]
    emit(
        answer,
        lambda: sections(f"instance {ref} is {woken['state']}", timeline(woken.get("last_wake"))),
        output,
        as_json,
    )


@app.command("destroy")
def destroy(
    instance: options.Instance, force: options.Force = False, output: Output = Format.TABLE, as_json: AsJson = False
) -> None:
    """Destroy an instance with its data."""
    options.confirm(f"destroy instance {options.instance(instance)} with its data", force=force)
    _change("InstanceDestroy", instance, "destroyed", output, as_json)


@app.command("logs")
def logs(
    instance: options.Instance,
    service: Annotated[
        str | None, typer.Option(help="Only this one, such as agent, router, openclaw or serial.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Newest lines of each service.")] = 200,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show the newest lines of an instance's logs."""
    params = session.given(address=str(options.instance(instance)), service=service, lines=lines)
    answer = session.call("InstanceLogs", params)
    emit(answer, lambda: _logs(answer), output, as_json)


@app.command("stats")
def stats(instance: options.Instance, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show what an instance uses."""
    answer = session.call("InstanceStats", {"address": str(options.instance(instance))})
    emit(answer, lambda: stats_table(answer), output, as_json)


@app.command("exec")
def exec_(
    instance: options.Instance,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Program and its arguments.")],
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that it may take.")] = 30,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Run a program in an instance, where its pool allows it: `mvm instance exec INSTANCE -- ls -l`.

    The exit status is the program's.
    """
    import base64

    params = {"address": str(options.instance(instance)), "argv": command, "timeout_secs": timeout}
    answer = session.call("InstanceExec", params)
    if as_json or output is not Format.TABLE:
        emit(answer, str, output, as_json)
    else:
        for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
            stream.write(plain(base64.b64decode(answer[name]).decode(errors="replace")))
            stream.flush()
        if answer.get("truncated"):
            print("note: the output was longer and is cut off", file=sys.stderr)
    raise typer.Exit(int(answer["status"]) & 0xFF)


def instances_table(instances: list[dict[str, Any]], *, empty: str = "") -> str:
    """Instances as a table."""
    rows = [
        (
            _name(instance),
            instance["role"],
            instance["state"] + (f" ({instance['transition']['kind']})" if instance.get("transition") else ""),
            instance.get("user"),
            instance["network"]["guest_ip"],
            instance.get("runtime"),
            age(instance["created_at"]),
        )
        for instance in instances
    ]
    return columns(("instance", "role", "state", "user", "ip", "runtime", "age"), rows, empty=empty)


def stats_table(answer: dict[str, Any]) -> str:
    """What is used, one value a line; figures are named by their unit."""
    return facts([figure(name, value) for name, value in answer.items()])


def timeline(answer: dict[str, Any] | None) -> str:
    """Stages of a wake or sleep in milliseconds."""
    if not answer:
        return ""
    rows = [(stage["stage"], f"{stage['milliseconds']:.1f}") for stage in answer["stages"]]
    total = sum(stage["milliseconds"] for stage in answer["stages"])
    return columns((f"last {answer['kind']}", "ms"), [*rows, ("together", f"{total:.1f}")])


def _change(request: str, written: str, done: str, output: Format, as_json: bool, **flags: bool) -> None:
    """Ask for a transition and say what came of it."""
    ref = options.instance(written)
    answer = session.call(request, {"address": str(ref), **{name: True for name, on in flags.items() if on}})
    emit(answer, lambda: f"instance {ref} {done}" if done != "warm" else f"instance {ref} is warm", output, as_json)


def _name(answer: dict[str, Any]) -> str:
    instance = answer.get("instance", answer)
    return f"{instance['tenant_id']}/{instance['pool_id']}/{instance['instance_id']}"


def _describe(answer: dict[str, Any]) -> str:
    instance = answer["instance"]
    pool = answer.get("pool") or {}
    return sections(
        facts(
            [
                ("instance", _name(instance)),
                ("state", instance["state"]),
                ("activity", answer.get("activity")),
                ("under way", (instance.get("transition") or {}).get("kind")),
                ("role", instance["role"]),
                ("user", instance.get("user")),
                ("ip", instance["network"]["guest_ip"]),
                ("runtime", instance.get("runtime")),
                ("process", (instance.get("process") or {}).get("pid")),
                ("memory", mib(pool["mem_mib"]) if pool else None),
                ("image", instance.get("image_revision")),
                ("created", instance["created_at"]),
                ("last busy", instance.get("last_busy_at")),
                ("next alarm", instance.get("next_alarm_at")),
                ("last error", instance.get("last_error")),
            ]
        ),
        timeline(instance.get("last_wake")),
        timeline(instance.get("last_sleep")),
    )


def figure(name: str, value: object) -> tuple[str, object]:
    """A value with its name as people read it; the unit that the name ends with goes to the value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_bytes"):
            name, value = name.removesuffix("_bytes"), size(value)
        elif name.endswith("_mib"):
            name, value = name.removesuffix("_mib"), mib(int(value))
        elif name.endswith("_seconds"):
            name, value = name.removesuffix("_seconds"), f"{value:g} s"
    return name.replace("_", " "), value


def _logs(answer: dict[str, Any]) -> str:
    logs: dict[str, Any] = answer.get("logs", answer)
    several = len(logs) > 1
    parts = []
    for service, lines in logs.items():
        text = plain("\n".join(lines) if isinstance(lines, list) else str(lines)).rstrip("\n")
        parts.append(f"== {service} ==\n{text}" if several else text)
    return sections(*parts)
