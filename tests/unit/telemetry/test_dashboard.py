"""The dashboard for Grafana shows metrics that there are, and all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tests.unit.telemetry.test_metrics import NAMES, timeline

from mvm.model.states import State
from mvm.telemetry.metrics import Metrics

DASHBOARD = Path(__file__).parents[3] / "deploy/grafana-dashboard.json"


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return panels + [v["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]


def samples() -> dict[str, set[str]]:
    """Name of every sample that a scrape gives -> its labels."""
    metrics = Metrics(lambda: {State.RUNNING: 1})
    metrics.request("NodeInfo", result="ok")
    metrics.reconciled(0.1, errors=0)
    metrics.transition(State.RUNNING)
    metrics.deferred()
    metrics.woken(timeline(restore=1.0))
    metrics.slept(timeline(drain=1.0))
    metrics.snapshot(1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\bmvm_\w+", expression)}
    assert asked <= samples().keys()


def test_every_metric_of_the_contract_is_shown() -> None:
    text = " ".join(expressions())
    missing = {name for name in NAMES if name.removesuffix("_count") not in text}
    assert missing == set()


def test_only_labels_that_exist_are_grouped_and_filtered_by() -> None:
    known = samples()
    for expression in expressions():
        names = re.findall(r"\bmvm_\w+", expression)
        labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels |= {label.strip() for label in group.split(",")}
        for name in names:
            assert labels - {"instance"} <= known[name], expression


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
