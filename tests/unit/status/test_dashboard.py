"""The dashboard for Grafana, and the table in the documentation: both speak of the metrics that there are."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from k3dreg.reporting.activity import RequestReport
from k3dreg.status.metrics import SOURCES, Metrics, Readings
from k3dreg.status.overview import NodeCounts

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = json.loads((ROOT / "examples/grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
# What Grafana puts in.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$instance": ".+"}


@pytest.fixture(scope="module")
def families() -> dict[str, dict[str, set[str]]]:
    """The labels of every sample's name, by the name of its metric as it is documented."""
    metrics = Metrics("1", Readings, lambda: [NodeCounts("agent-0")])
    metrics.engine_up = True
    report = RequestReport("0" * 16, 0.0, "x", "GET", "blob", "x", 200, 1, 1.0, 1.0, source="cache")
    metrics.answered(evolve(report, refusal="DigestMismatch", aborted=True))
    return {
        f"{family.name}{'_total' if family.type == 'counter' else ''}": {
            sample.name: set(sample.labels) for sample in family.samples
        }
        for family in text_string_to_metric_families(metrics.text().decode())
    }


def plain(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_samples_and_labels_that_there_are(
    expression: str, families: dict[str, dict[str, set[str]]]
) -> None:
    known = {name: labels for samples in families.values() for name, labels in samples.items()}
    used = re.findall(r"\b(?:k3dreg|process)_\w+", expression)
    assert used
    assert set(used) <= set(known)
    # Prometheus adds this one.
    labels = set().union(*(known[name] for name in used), {"instance"})
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    asked = {label.strip() for group in grouped for label in group.split(",")}
    asked |= set(re.findall(r"(\w+)=~?\"", expression))
    assert asked <= labels


def test_a_legend_names_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in target["expr"] or label == "version", target


def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None and os.environ.get("CI") != "true":
        pytest.skip("needs promtool: Debian's prometheus")
    rules: list[dict[str, Any]] = [
        {"record": f"dashboard:{number}", "expr": plain(each)} for number, each in enumerate(EXPRESSIONS)
    ]
    assert not any("$" in rule["expr"] for rule in rules)
    file = tmp_path / "rules.yaml"
    # JSON is YAML.
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    told = subprocess.run(
        [promtool or "promtool", "check", "rules", "--lint=all", "--lint-fatal", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_panel_has_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_metric_of_ours_is_on_the_dashboard(families: dict[str, dict[str, set[str]]]) -> None:
    text = " ".join(EXPRESSIONS)
    missing = [name for name in families if name.startswith("k3dreg_") and name not in text]
    assert missing == []


def test_every_metric_is_documented_with_its_labels(families: dict[str, dict[str, set[str]]]) -> None:
    text = (ROOT / "docs/logs-and-metrics.md").read_text()
    rows = re.findall(r"^\| `(k3dreg_\w+)` \| ([^|]*)\|", text, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    actual = {
        name: {label for labels in samples.values() for label in labels} - {"le"}
        for name, samples in families.items()
        if name.startswith("k3dreg_")
    }
    assert documented == actual


def sources_in(module: str) -> set[str]:
    """The words that a module assigns to `trace.source`; `self.name` stands for its class's `name`."""
    tree = ast.parse(module)
    names = {
        str(each.value.value)
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef)
        for each in cls.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "name"
        if isinstance(each.value, ast.Constant)
    }
    found = set()
    for each in ast.walk(tree):
        if isinstance(each, ast.Assign) and re.fullmatch(r"(.*\.)?trace\.source", ast.unparse(each.targets[0])):
            words = {str(part.value) for part in ast.walk(each.value) if isinstance(part, ast.Constant)}
            found |= words or names
    return found


def test_every_source_that_a_trace_gets_is_a_label_and_documented() -> None:
    found = set().union(*(sources_in(file.read_text()) for file in (ROOT / "k3dreg").rglob("*.py")))
    # A blob that is mounted is pushed, and metrics count by source what is read.
    assert found - {"mounted"} == SOURCES
    text = (ROOT / "docs/logs-and-metrics.md").read_text()
    (row,) = re.findall(r"^\| `source` \| (`content`.*)$", text, re.MULTILINE)
    assert set(re.findall(r"`([a-z ]+)`(?=:| and)", row)) == SOURCES
