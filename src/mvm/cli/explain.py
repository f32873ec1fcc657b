"""`mvm explain`: what a tenant, a pool or an instance is doing, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, age, columns, counts, duration, emit, facts, limits, mib, sections

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = dict[str, Any]


@app.command("explain")
def explain(
    address: Annotated[
        str, typer.Argument(metavar="TENANT[/POOL[/INSTANCE]]", help="What is to be explained: one of these.")
    ],
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Say what it is doing, why it is awake or asleep, what blocks its sleep, and how it came to that."""
    from mvm.model.ids import Address

    answer = session.call("Explain", {"address": str(Address.parse(address))})
    emit(answer, lambda: _table(answer), output, as_json)


def _table(answer: Json) -> str:
    ((kind, found),) = answer.items()
    return {"tenant": _tenant, "pool": _pool, "instance": _instance}[kind](found)


def _tenant(found: Json) -> str:
    gateway = found["gateway"]
    return sections(
        facts(
            [
                ("tenant", found["address"]),
                ("gateway", f"{gateway['address']} is {gateway['state']}" if gateway else "none"),
                ("users", found["users"]),
                ("instances", (counts(found["states"]) or "none")),
            ]
        ),
        columns(
            ("pool", "role", "desired", "instances"),
            [
                (p["address"], p["role"], counts(p["desired"]) or "none", counts(p["states"]) or "none")
                for p in found["pools"]
            ],
        ),
        _quotas(found["quotas"]),
        columns(("instance", "last error"), [(e["address"], e["error"]) for e in found["errors"]]),
        _recent(found["recent"]),
    )


def _pool(found: Json) -> str:
    left_out = found["instances_left_out"]
    rows = [(i["address"], i["state"], i["user"], i["why"], i["blocks_sleep"]) for i in found["instances"]]
    return sections(
        facts(
            [
                ("pool", found["address"]),
                ("role", found["role"]),
                ("desired", (counts(found["desired"]) or "none")),
                ("instances", (counts(found["states"]) or "none")),
                ("each", f"{found['vcpus']} vCPUs, {mib(found['mem_mib'])}"),
                ("limits", limits(found)),
                ("pinned", found["pinned"] or None),
                ("critical", found["critical"] or None),
                *_policy(found["runtime_policy"]),
            ]
        ),
        columns(("instance", "state", "user", "why", "blocks its sleep"), rows),
        f"and {left_out} more that are not up" if left_out else "",
        _recent(found["recent"]),
    )


def _instance(found: Json) -> str:
    doing = found["activity"] and f"{found['activity']}, {found['in_flight']} in flight"
    alarm, begins = found["next_alarm_at"], found["alarm_wake_at"]
    holds = found["holds"]
    return sections(
        facts(
            [
                ("instance", found["address"]),
                ("user", found["user"]),
                ("state", found["state"]),
                ("why", found["why"]),
                ("doing", doing),
                ("idle for", _seconds(found["idle_seconds"])),
                ("in this state for", _seconds(found["in_state_seconds"])),
                ("blocks its sleep", found["blocks_sleep"]),
                *_policy(found["runtime_policy"]),
                ("next alarm", alarm and f"{alarm} ({age(alarm)})"),
                ("woken for it", begins and f"{begins} ({age(begins)})"),
                ("last error", found["last_error"]),
                ("holds", f"{holds['vcpus']} vCPUs, {mib(holds['mem_mib'])}" if holds["vcpus"] else None),
            ]
        ),
        _timeline("last wake", found["last_wake"]),
        _timeline("last sleep", found["last_sleep"]),
        _recent(found["last_transitions"]),
        _quotas(found["quotas"]),
    )


def _policy(policy: Json) -> list[tuple[str, object]]:
    warm, sleep = policy["warm_after_idle_seconds"], policy["sleep_after_idle_seconds"]
    return [("rests", f"paused after {duration(warm)} of idleness, asleep after {duration(sleep)}")]


def _timeline(name: str, timeline: Json | None) -> str:
    if timeline is None:
        return ""
    rows = [(stage["stage"], f"{stage['milliseconds']:.1f}") for stage in timeline["stages"]]
    by = f" by {timeline['actor']}" if timeline["actor"] else ""
    head = f"{name}: {timeline['kind']} {age(timeline['began_at'])} ago{by}, {timeline['total_ms']:.1f} ms"
    return f"{head}\n{columns(('stage', 'ms'), rows)}"


def _recent(lines: list[Json]) -> str:
    rows = [
        (
            line["timestamp"][:19].replace("T", " "),
            line["action"],
            line.get("instance_id") or line.get("pool_id"),
            line["actor"],
            line.get("detail"),
        )
        for line in lines
    ]
    return columns(("when", "what", "where", "who", "detail"), rows)


def _quotas(quotas: Json) -> str:
    rows = [(name, quota["used"], quota["limit"]) for name, quota in quotas.items()]
    return columns(("quota", "used", "limit"), rows)


def _seconds(value: int | None) -> str | None:
    return None if value is None else duration(value)
