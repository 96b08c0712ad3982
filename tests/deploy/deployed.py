"""What `deploy/` says, read once, and what the code says that it must agree with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from tuneloop.monitor.metrics import Metrics as MonitorMetrics
from tuneloop.serve.gateway.metrics import Metrics as GatewayMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
RULES = [DEPLOY / "prometheus" / name for name in ("rules.yml", "slo.yml")]
_OF_KIND = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "gauge": ("",),
}


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file with its anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return found


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


RECORDED = {rule["record"] for rule in rules() if "record" in rule}


@dataclass(frozen=True)
class Asked:
    """What a panel, or an annotation, asks Prometheus for; its variables filled in."""

    board: str
    panel: str
    expr: str
    legend: str

    @property
    def called_by(self) -> set[str]:
        """The labels that its series are named by."""
        return set(re.findall(r"{{\s*(\w+)\s*}}", self.legend))

    @property
    def is_of_vllm(self) -> bool:
        """Whether engines are asked."""
        return "vllm:" in self.expr


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard as Grafana reads it, by the name of its file."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """A dashboard's panels, without the rows between them."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[Asked]:
    """Every PromQL expression of the dashboards; `.+` for the models: a label that is not there finds nothing."""
    found = []
    for name, board in dashboards().items():
        asked = [(p["title"], t["expr"], t["legendFormat"]) for p in panels(board) for t in p["targets"]]
        asked += [(note["name"], note["expr"], note["titleFormat"]) for note in board["annotations"]["list"]]
        found += [
            Asked(name, title, expr.replace("$__rate_interval", "10s").replace("$model", ".+"), legend)
            for title, expr, legend in asked
        ]
    return found


def exported_metrics() -> set[str]:
    """The names of the series that gateway and monitor export, from their own definitions."""
    return set(_names(GatewayMetrics().registry)) | set(_names(MonitorMetrics().collectors))


def vllm_metrics() -> dict[str, set[str]]:
    """The series that the installed vLLM exports, each with its labels, from its source."""
    found = list((ROOT / ".venv-engine").glob("lib/python3.*/site-packages/vllm/v1/metrics/loggers.py"))
    if not found:
        pytest.fail("vLLM is not installed; `make setup` makes .venv-engine")
    source = found[0].read_text(encoding="utf-8")
    of_all = set(re.findall(r'"(\w+)"', re.findall(r"\blabelnames = \[(.*?)\]", source)[0]))
    defined = re.findall(
        r'_(gauge|counter|histogram)_cls\(\s*name="(vllm:\w+)",.*?labelnames=labelnames(?: \+ \[(.*?)\])?', source, re.S
    )
    return {
        name + ending: of_all | set(re.findall(r'"(\w+)"', more)) | ({"le"} if ending == "_bucket" else set())
        for kind, name, more in defined
        for ending in _OF_KIND[kind]
    }


def metrics_in(expression: str) -> set[str]:
    """The names of ours and of vLLM's metrics that an expression reads."""
    return set(re.findall(r"\b(?:\w+:)?tuneloop_\w+(?::\w+)?|\bvllm:\w+", expression))


def run(program: str, *arguments: object) -> str:
    """Run a tool that the system or the project's environment has; its output.

    Fails the test with what the tool said when it does not end with 0.
    """
    try:
        done = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
        )
    except FileNotFoundError:
        pytest.fail(f"{program} is not installed; `make setup` installs it (apt-get install prometheus)")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def python_tool(module: str, *arguments: object) -> str:
    """Run a tool of the project's environment."""
    return run(sys.executable, "-m", module, *arguments)


def _names(registry: CollectorRegistry) -> Iterator[str]:
    for family in registry.collect():
        yield from (family.name + ending for ending in _OF_KIND[family.type])
