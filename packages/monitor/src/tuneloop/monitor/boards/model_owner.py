"""For whoever owns a model: who uses it, how well it answers, whether it still fits what it is asked, what changes."""

from __future__ import annotations

from collections.abc import Iterable

from tuneloop.monitor.boards.grafana import MODEL, Board, Panel, Query, Row, quantiles, rate
from tuneloop.monitor.signals import (
    DETECTORS,
    DETECTORS_OF_TRIALS,
    OF_SERVING,
    QUALITIES,
    TRAFFIC_SIGNALS,
)

_OF_VERSION = "sum by (model, version)"
_NAMED = "{{model}}@{{version}}"
_FAILED, _WRITTEN = 'status=~"5.."', 'kind="completion"'
_PERSONAL, _BLOCKED = 'guard=~"personal|secrets"', 'action="block"'


def board() -> Board:
    """The dashboard."""
    asked = [signal for signal in TRAFFIC_SIGNALS if signal not in QUALITIES]
    others = [signal for signal in DETECTORS if signal not in (*TRAFFIC_SIGNALS, *OF_SERVING)]
    return Board(
        "tuneloop-model-owner",
        "tuneloop: model owner",
        "A model's use, speed, drift and what changes it. `tuneloop report MODEL` has the same with intervals.",
        (
            Row("Use", _USE),
            Row("Speed", _SPEED, across=2, height=9),
            Row("Drift of what is asked", _streams(asked)),
            Row("Answers", _streams(QUALITIES), across=4),
            Row("Guards' finds, speed and what serves", _streams([*others, *OF_SERVING]), across=4),
            Row("Challengers against the champion", _streams(DETECTORS_OF_TRIALS), across=4),
            Row("Windows", (_WINDOWS,), across=1),
            Row("Guards", _GUARDS),
            Row("What changes it", _CHANGES),
            Row("Shadow", _SHADOW),
        ),
        since="now-7d",
    )


def _streams(signals: Iterable[str]) -> tuple[Panel, ...]:
    """A panel for each signal: the statistic of the newest window, and what it must exceed to alarm."""
    tests = DETECTORS | DETECTORS_OF_TRIALS
    return tuple(
        Panel(
            signal,
            "none",
            (
                Query(f'max by (model, version) (tuneloop_drift_statistic{{{MODEL}, signal="{signal}"}})', _NAMED),
                Query(
                    f'max by (model, version) (tuneloop_drift_threshold{{{MODEL}, signal="{signal}"}})',
                    f"{_NAMED} threshold",
                ),
            ),
            description=f"Of the newest window: {tests[signal]}. It alarms above its threshold.",
        )
        for signal in signals
    )


_ANSWERS = rate("tuneloop_request_seconds_count")
_USE = (
    Panel(
        "Requests by version",
        "reqps",
        (Query(f"{_OF_VERSION} ({rate('tuneloop_requests_total')})", _NAMED),),
        description="Without a version: no engine was asked.",
        stacked=True,
    ),
    Panel(
        "Share of answers by version",
        "percentunit",
        (Query(f"{_OF_VERSION} ({_ANSWERS}) / on (model) group_left sum by (model) ({_ANSWERS})", _NAMED),),
        description="What came of the split that the route says.",
    ),
    Panel(
        "Share of requests that fail, by version",
        "percentunit",
        (
            Query(
                f"({_OF_VERSION} ({rate('tuneloop_requests_total', _FAILED)})"
                f" or 0 * {_OF_VERSION} ({rate('tuneloop_requests_total')}))"
                f" / {_OF_VERSION} ({rate('tuneloop_requests_total')})",
                _NAMED,
            ),
        ),
    ),
    Panel(
        "Tokens by version",
        "short",
        (Query(f"sum by (model, version, kind) ({rate('tuneloop_tokens_total')})", f"{_NAMED} {{{{kind}}}}"),),
        description="Per second, read (prompt) and written (completion).",
    ),
    Panel(
        "Tokens of an answer",
        "short",
        (
            Query(
                f"{_OF_VERSION} ({rate('tuneloop_tokens_total', _WRITTEN)}) / {_OF_VERSION} ({_ANSWERS})",
                _NAMED,
            ),
        ),
        description="Mean; a jump without a deploy is what `answer_length` looks for.",
    ),
    Panel(
        "Open episodes",
        "short",
        (Query(f"max by (model, severity) (tuneloop_episodes_open{{{MODEL}}})", "{{model}} {{severity}}"),),
    ),
)
_SPEED = (
    Panel(
        "Latency heat map",
        "s",
        (Query(f"sum by (le) (increase(tuneloop_request_seconds_bucket{{{MODEL}}}[$__rate_interval]))", "{{le}}"),),
        "heatmap",
        "Answers by how long they took, arrival to end. A cell without a colour had none.",
    ),
    Panel(
        "First token heat map",
        "s",
        (
            Query(
                f"sum by (le) (increase(tuneloop_time_to_first_token_seconds_bucket{{{MODEL}}}[$__rate_interval]))",
                "{{le}}",
            ),
        ),
        "heatmap",
        "Streams by how long their first event took.",
    ),
    Panel(
        "Time between tokens by version",
        "s",
        quantiles("tuneloop_inter_token_seconds", "model, version", _NAMED, 0.5, 0.95),
        description="Between two events of a stream, as they came from the engine.",
    ),
    Panel("Latency by version", "s", quantiles("tuneloop_request_seconds", "model, version", _NAMED, 0.5, 0.95, 0.99)),
    Panel(
        "Time to first token by version",
        "s",
        quantiles("tuneloop_time_to_first_token_seconds", "model, version", _NAMED, 0.5, 0.95),
    ),
)
_WINDOWS = Panel(
    "Windows judged, per hour",
    "short",
    (
        Query(
            f"sum by (model, signal, verdict) (increase(tuneloop_windows_judged_total{{{MODEL}}}[1h]))",
            "{{model}} {{signal}}: {{verdict}}",
        ),
    ),
)
_FINDINGS = "tuneloop_guard_findings_total"
_OF_REQUESTS = f" / on (model) group_left sum by (model) ({rate('tuneloop_requests_total')})"
_GUARDS = (
    Panel(
        "Share of requests with personal data or secrets",
        "percentunit",
        (
            Query(
                f"sum by (model, where, guard, action) ({rate(_FINDINGS, _PERSONAL)}){_OF_REQUESTS}",
                "{{model}} {{where}} {{guard}}: {{action}}",
            ),
        ),
        description="`input`: in what is asked; `output`: in answers.",
    ),
    Panel(
        "Share of requests that guards stop",
        "percentunit",
        (Query(f"sum by (model, guard) ({rate(_FINDINGS, _BLOCKED)}){_OF_REQUESTS}", "{{model}} {{guard}}"),),
        description="By guard: a request that two of them stop is in both.",
    ),
    Panel(
        "Requests in which guards found something",
        "reqps",
        (
            Query(
                f"sum by (model, where, guard, action) ({rate(_FINDINGS)})",
                "{{model}} {{where}} {{guard}}: {{action}}",
            ),
        ),
    ),
)
_CHANGES = (
    Panel(
        "Route revision",
        "short",
        (Query(f"max by (model) (tuneloop_route_revision{{{MODEL}}})", "{{model}}"),),
        description="`tuneloop route history MODEL` says who changed it and why.",
    ),
    Panel(
        "Open rollouts",
        "short",
        (Query(f"max by (model, state) (tuneloop_rollouts_open{{{MODEL}}})", "{{model}} {{state}}"),),
    ),
    Panel(
        "Retraining requests that wait",
        "short",
        (
            Query(
                f"max by (model, waits_for) (tuneloop_retraining_waiting{{{MODEL}}})", "{{model}}, for a {{waits_for}}"
            ),
        ),
    ),
)
_SHADOW = (
    Panel(
        "Copies by outcome",
        "reqps",
        (
            Query(
                f"sum by (model, version, status) ({rate('tuneloop_shadow_requests_total')})",
                f"{_NAMED} {{{{status}}}}",
            ),
        ),
    ),
    Panel("A shadow's engine time", "s", quantiles("tuneloop_shadow_seconds", "model, version", _NAMED, 0.5, 0.95)),
    Panel(
        "Copies left out",
        "short",
        (
            Query(
                f"sum by (model, reason) (increase(tuneloop_shadow_dropped_total{{{MODEL}}}[$__rate_interval]))",
                "{{model}} {{reason}}",
            ),
        ),
    ),
)
