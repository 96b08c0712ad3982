"""Objectives of what is served, and the Prometheus rules that watch how fast their error budgets burn.

After "Alerting on SLOs" (Site Reliability Workbook, chapter 5): a page when 2 % of 30 days' budget goes in an hour
(14.4 times the rate that it lasts for) or 5 % in six (6 times), a ticket at 1 time over three days; each with a short
window beside the long one, so that it clears when the cause is gone. Generating is pure: the same settings give the
same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

EVERY_OTHER = "*"
DEFAULT_ERRORS = 0.999
LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
FAST = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
SLOW = (1.0, "3d", "6h")
FEWEST = 10  # bad answers in a long window before anybody is woken: one unlucky request in a quiet night wakes nobody


class Slo(BaseModel):
    """What is promised of one model over 30 days; None promises nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    errors: float | None = Field(default=DEFAULT_ERRORS, gt=0.5, lt=1)  # share of requests that do not fail
    latency: float | None = Field(default=None, gt=0.5, lt=1)  # share of answers that are whole in time
    latency_s: float | None = None  # in what time: a bound of the gateway's histogram

    @field_validator("latency_s")
    @classmethod
    def _can_be_counted(cls, value: float | None) -> float | None:
        if value is not None and value not in LATENCY_BOUNDS_S:
            bounds = ", ".join(f"{bound:g}" for bound in LATENCY_BOUNDS_S)
            raise ValueError(f"{value:g} s is no bound of the gateway's histogram; choose one of {bounds}")
        return value

    @model_validator(mode="after")
    def _latency_is_whole(self) -> Self:
        if (self.latency is None) != (self.latency_s is None):
            raise ValueError("latency (a share) and latency_s (a time) go together")
        return self


@dataclass(frozen=True)
class _Kind:
    """One thing that is promised: its names in rules and words."""

    record: str
    fast: str
    slow: str
    runbook: str
    happens: str
    happened: str


_ERRORS = _Kind(
    "tuneloop_failed",
    "ErrorRatioFast",
    "ErrorRatioSlow",
    "error_ratio",
    "of the requests to {model} fail",
    "of three days' requests to {model} failed",
)
_LATENCY = _Kind(
    "tuneloop_late",
    "LatencyFast",
    "LatencySlow",
    "latency_slo",
    "of the answers of {model} are later than {bound:g} s",
    "of three days' answers of {model} were later than {bound:g} s",
)


def rules(objectives: Mapping[str, Slo]) -> str:
    """The rules file, as YAML (JSON strings in it are YAML too)."""
    known = dict(objectives)
    known.setdefault(EVERY_OTHER, Slo())
    lines = [
        "# Written by `tuneloop alert rules` from [monitor.slo]; do not edit, write it anew. Tested by slo_test.yml:",
        "# promtool test rules deploy/prometheus/slo_test.yml",
        "#",
        "# Budgets are those of 30 days; windows and factors are those of the Site Reliability Workbook, chapter 5.",
        "# A group's rules are evaluated in order: the alerts see the ratios of the same moment.",
        "",
        "groups:",
        "  - name: tuneloop-slo-errors",
        "    rules:",
    ]
    for window in WINDOWS:
        bad = f'sum by (model) (rate(tuneloop_requests_total{{status=~"5.."}}[{window}]))'
        lines += _recording(_ERRORS, "", window, f"{bad} / sum by (model) (rate(tuneloop_requests_total[{window}]))")
    failed = 'sum by (model) (increase(tuneloop_requests_total{{status=~"5.."}}[{window}]))'
    for selector, slo in selected(known):
        if slo.errors is not None:
            lines += _alerts(_ERRORS, "", selector, slo.errors, failed, 0.0)
    if timed := [(selector, slo) for selector, slo in selected(known) if slo.latency is not None]:
        lines += ["", "  - name: tuneloop-slo-latency", "    rules:"]
        for bound in sorted({slo.latency_s for _, slo in timed if slo.latency_s is not None}):
            for window in WINDOWS:
                of = f"[{window}]"
                good = f'sum by (model) (rate(tuneloop_request_seconds_bucket{{le="{bound!r}"}}{of}))'
                lines += _recording(
                    _LATENCY,
                    f'bound="{bound:g}"',
                    window,
                    f"1 - {good} / sum by (model) (rate(tuneloop_request_seconds_count{of}))",
                )
        for selector, slo in timed:
            assert slo.latency is not None
            assert slo.latency_s is not None
            good = f'increase(tuneloop_request_seconds_bucket{{{{le="{slo.latency_s!r}"}}}}[{{window}}])'
            late = f"sum by (model) (increase(tuneloop_request_seconds_count[{{window}}])) - sum by (model) ({good})"
            lines += _alerts(_LATENCY, f'bound="{slo.latency_s:g}"', selector, slo.latency, late, slo.latency_s)
    return "\n".join(lines) + "\n"


def selected(known: Mapping[str, Slo]) -> Iterator[tuple[str, Slo]]:
    """Each objective with the selector of its models; the one of every other model comes last."""
    named = sorted(set(known) - {EVERY_OTHER})
    for model in named:
        yield f"model={json.dumps(model)}", known[model]
    others = "|".join(_literal(model) for model in named)
    yield (f"model!~{json.dumps(others)}" if named else ""), known[EVERY_OTHER]


def _literal(model: str) -> str:
    """A name as a regular expression (RE2) that matches it alone."""
    return "".join(c if c.isalnum() or c in "_-" else f"[{c}]" if c not in "^\\[]" else f"\\{c}" for c in model)


def _recording(kind: _Kind, label: str, window: str, expression: str) -> Iterator[str]:
    yield f"      - record: model:{kind.record}:ratio_rate{window}"
    if label:
        name, _, value = label.partition("=")
        yield f"        labels: {{{name}: {value}}}"
    yield f"        expr: {json.dumps(expression)}"


def _alerts(kind: _Kind, label: str, selector: str, objective: float, bad: str, bound: float) -> Iterator[str]:
    """The page and the ticket of one promise; `bad` counts what broke it in a `{window}`."""
    budget = float(f"{1 - objective:.12g}")
    where = ", ".join(part for part in (label, selector) if part)

    def above(factor: float, window: str) -> str:
        series = f"model:{kind.record}:ratio_rate{window}" + (f"{{{where}}}" if where else "")
        return f"{series} > {factor:g} * {budget:g}"

    def enough(window: str) -> str:
        return f"on (model) ({bad.format(window=window)} >= {FEWEST})"

    burning = " or ".join(
        f"({above(factor, long)} and {above(factor, short)} and {enough(long)})" for factor, long, short in FAST
    )
    factor, long, short = SLOW
    names = {"model": "{{ $labels.model }}", "bound": bound}
    share = "{{ $value | humanizePercentage }} "
    of_budget = f", over the budget of {budget * 100:g} %"
    yield f"      - alert: {kind.fast}"
    yield f"        expr: {json.dumps(burning)}"
    yield "        labels: {severity: page}"
    yield "        annotations:"
    yield f"          summary: {json.dumps(share + kind.happens.format(**names))}"
    yield f"          runbook: docs/runbooks/{kind.runbook}.md"
    # One problem is one alert: while it pages, its ticket is silent.
    paged = f'ALERTS{{alertname="{kind.fast}", alertstate="firing"}}'
    yield f"      - alert: {kind.slow}"
    yield f"        expr: {json.dumps(f'{above(factor, long)} and {above(factor, short)} unless on (model) {paged}')}"
    yield "        for: 1h"
    yield "        labels: {severity: ticket}"
    yield "        annotations:"
    yield f"          summary: {json.dumps(share + kind.happened.format(**names) + of_budget)}"
    yield f"          runbook: docs/runbooks/{kind.runbook}.md"
