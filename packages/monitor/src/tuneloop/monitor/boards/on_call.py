"""For whoever is on call: is it well, what is wrong, whose fault is it, is anybody told. Read from the top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tuneloop.monitor.boards.grafana import MODEL, ORANGE, RED, Board, Panel, Query, Row, quantiles, rate
from tuneloop.monitor.slo import EVERY_OTHER, FAST, SLOW, Slo, selected


def board(objectives: Mapping[str, Slo]) -> Board:
    """The dashboard."""
    return Board(
        "tuneloop-on-call",
        "tuneloop: on call",
        "Is it well, what is wrong, is anybody told. `tuneloop alerts` has the episodes with their causes.",
        (
            Row("Now", (*_NOW,), across=6, height=4),
            Row("Failing", (*_burning(objectives), *_FAILING)),
            Row("Episodes and who is told", _EPISODES),
            Row("Guards", _GUARDS),
            Row("Waiting for somebody", _STANDING, across=4),
            Row("Records and the registry", _RECORDS),
        ),
    )


def _burning(objectives: Mapping[str, Slo]) -> Iterator[Panel]:
    """How many times too fast each budget goes, with the factors that page."""
    lines = ((SLOW[0], ORANGE), *((factor, RED) for factor, _, _ in reversed(FAST)))
    known = {EVERY_OTHER: Slo()} | dict(objectives)
    errors, late = list[Query](), list[Query]()
    for selector, slo in selected(known):
        chosen = ", ".join(part for part in (MODEL, selector) if part)
        for window in ("5m", "1h"):
            if slo.errors is not None:
                series = f"model:tuneloop_failed:ratio_rate{window}{{{chosen}}}"
                errors.append(Query(f"{series} / {_budget(slo.errors)}", f"{{{{model}}}}, {window}"))
            if slo.latency is not None:
                series = f'model:tuneloop_late:ratio_rate{window}{{{chosen}, bound="{slo.latency_s:g}"}}'
                late.append(Query(f"{series} / {_budget(slo.latency)}", f"{{{{model}}}}, {window}"))
    said = "times the rate at which 30 days' budget lasts 30 days; lines: what pages or is a ticket."
    if errors:
        yield Panel(
            "Budget of failures burns", "short", tuple(errors), description=f"Failed requests, {said}", steps=lines
        )
    if late:
        yield Panel(
            "Budget of late answers burns", "short", tuple(late), description=f"Late answers, {said}", steps=lines
        )


def _budget(objective: float) -> str:
    return f"{float(f'{1 - objective:.12g}'):g}"


_BLOCKED = 'action="block"'
_NOW = (
    Panel("Gateways up", "short", (Query('sum(up{job="gateway"})'),), "stat", steps=((1, "green"),), base=RED),
    Panel(
        "Engines ready",
        "short",
        (Query("sum(max by (engine) (tuneloop_engine_ready))"),),
        "stat",
        steps=((1, "green"),),
        base=RED,
    ),
    Panel("Registry answers", "short", (Query("min(tuneloop_registry_up)"),), "stat", steps=((1, "green"),), base=RED),
    Panel(
        "Monitor's last pass",
        "s",
        (Query("time() - max(tuneloop_monitor_last_pass_timestamp_seconds)"),),
        "stat",
        "Since the last whole pass; MonitorSilent pages at ten minutes.",
        steps=((300, ORANGE), (600, RED)),
    ),
    Panel(
        "Open episodes",
        "short",
        (Query(f"sum(tuneloop_episodes_open{{{MODEL}}}) or vector(0)"),),
        "stat",
        "`tuneloop alerts` lists them.",
        steps=((1, RED),),
    ),
    Panel(
        "Records lost today",
        "short",
        (Query("sum(increase(tuneloop_records_dropped_total[1d]))"),),
        "stat",
        steps=((1, RED),),
    ),
)
_FAILING = (
    Panel(
        "Requests by status",
        "reqps",
        (Query(f"sum by (status) ({rate('tuneloop_requests_total')})", "{{status}}"),),
        description="499: the client left first.",
        stacked=True,
    ),
    Panel("Latency", "s", quantiles("tuneloop_request_seconds", "model", "{{model}}", 0.5, 0.95, 0.99)),
    Panel(
        "Time to first token",
        "s",
        quantiles("tuneloop_time_to_first_token_seconds", "model", "{{model}}", 0.5, 0.95, 0.99),
    ),
    Panel(
        "Engines ready, by engine",
        "short",
        (Query("max by (engine) (tuneloop_engine_ready)", "{{engine}}"),),
        description="As the gateways see them; 1: live and ready.",
    ),
    Panel(
        "Attempts that engines fail",
        "short",
        (
            Query(
                f"sum by (engine, kind) (increase(tuneloop_engine_failures_total{{{MODEL}}}[$__rate_interval]))",
                "{{engine}} {{kind}}",
            ),
        ),
        description="Those that a second engine made good for, too.",
    ),
    Panel(
        "Second attempts",
        "reqps",
        (Query(f"sum by (model) ({rate('tuneloop_retries_total')})", "{{model}}"),),
        description="Requests that a second engine was asked for, because the first gave nothing.",
    ),
)
_EPISODES = (
    Panel(
        "Open episodes by model",
        "short",
        (Query(f"max by (model, severity) (tuneloop_episodes_open{{{MODEL}}})", "{{model}} {{severity}}"),),
        description="Neither resolved nor silenced; `tuneloop alert show EPISODE` says what was seen, what to type.",
    ),
    Panel(
        "Open episodes that no receiver is told of",
        "short",
        (Query(f"max by (model, severity) (tuneloop_episodes_untold{{{MODEL}}})", "{{model}} {{severity}}"),),
        description="Prometheus' `EpisodeOpen` tells of these.",
    ),
    Panel(
        "Deliveries that fail",
        "s",
        (Query("max by (receiver) (tuneloop_alert_delivery_failing_seconds)", "{{receiver}}"),),
        description="Since the first attempt at the oldest that a receiver has not taken.",
        steps=((300, RED),),
    ),
    Panel(
        "Receivers, and deliveries given up within a day",
        "short",
        (
            Query("tuneloop_alert_receivers", "receivers of {{instance}}"),
            Query("max by (receiver) (tuneloop_alert_deliveries_given_up)", "{{receiver}} given up"),
        ),
        description="`tuneloop alert deliveries` lists them.",
    ),
    Panel(
        "Age of the newest judged record",
        "s",
        (Query(f"max by (model) (tuneloop_monitor_lag_seconds{{{MODEL}}})", "{{model}}"),),
    ),
    Panel(
        "Signals that are looked at and not judged",
        "s",
        (Query(f"max by (model, signal) (tuneloop_signal_unjudged_seconds{{{MODEL}}})", "{{model}} {{signal}}"),),
        description="0: there was enough to judge it. What it watches for would go unseen.",
        steps=((3 * 86_400, RED),),
    ),
    Panel(
        "Champions not judged for want of text",
        "short",
        (Query(f"max by (model, reason) (tuneloop_windows_stopped{{{MODEL}}})", "{{model}}, {{reason}}"),),
    ),
    Panel(
        "Passes of the monitor cut short, per hour",
        "short",
        (Query("increase(tuneloop_monitor_pass_failures_total[1h])", "{{instance}}"),),
    ),
    Panel(
        "Route revision applied",
        "short",
        (Query(f"tuneloop_route_revision{{{MODEL}}}", "{{model}} on {{instance}}"),),
        description="Gateways that differ for longer than seconds do not see the registry.",
    ),
)
_GUARDS = (
    Panel(
        "Share of requests that guards stop",
        "percentunit",
        (
            Query(
                f"sum by (model, guard) ({rate('tuneloop_guard_findings_total', _BLOCKED)})"
                f" / on (model) group_left sum by (model) ({rate('tuneloop_requests_total')})",
                "{{model}} {{guard}}",
            ),
        ),
        description="By guard: a request that two of them stop is in both.",
    ),
    Panel(
        "Texts that could not be judged",
        "short",
        (
            Query(
                "sum by (model, where, cause, fail) "
                f"(increase(tuneloop_guard_failures_total{{{MODEL}}}[$__rate_interval]))",
                "{{model}} {{where}}: {{cause}}, fails {{fail}}",
            ),
        ),
    ),
    Panel("Judging what comes in", "s", quantiles("tuneloop_guard_seconds", "model", "{{model}}", 0.5, 0.99)),
)
_STANDING = (
    Panel(
        "Open rollouts",
        "short",
        (Query(f"max by (model, state) (tuneloop_rollouts_open{{{MODEL}}})", "{{model}} {{state}}"),),
    ),
    Panel(
        "Rollouts and bandits without a controller",
        "s",
        (
            Query(f"max by (model) (tuneloop_rollout_undriven_seconds{{{MODEL}}})", "{{model}}"),
            Query(f"max by (model) (tuneloop_bandit_step_due_seconds{{{MODEL}}})", "{{model}}, bandit"),
        ),
        steps=((120, ORANGE),),
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
    Panel(
        "Age of the oldest of them",
        "s",
        (
            Query(
                f"max by (model, waits_for) (tuneloop_retraining_waiting_seconds{{{MODEL}}})",
                "{{model}}, for a {{waits_for}}",
            ),
        ),
    ),
)
_RECORDS = (
    Panel(
        "Records not in the database",
        "short",
        (
            Query("tuneloop_records_pending", "in memory, {{instance}}"),
            Query("increase(tuneloop_records_spooled_total[$__rate_interval])", "to disk, {{instance}}"),
            Query("increase(tuneloop_records_dropped_total[$__rate_interval])", "lost, {{instance}}"),
            Query("increase(tuneloop_records_without_text_total[$__rate_interval])", "without text, {{instance}}"),
            Query("increase(tuneloop_records_aside_total[$__rate_interval])", "set aside, {{instance}}"),
        ),
    ),
    Panel(
        "Parts of the registry that were not read",
        "short",
        (
            Query(
                "sum by (part, instance) (increase(tuneloop_registry_part_failures_total[$__rate_interval]))",
                "{{part}}, {{instance}}",
            ),
        ),
    ),
    Panel(
        "Gateways that a restart would set back",
        "short",
        (
            Query("tuneloop_view_unsaved", "view not on disk, {{instance}}"),
            Query("1 - tuneloop_registry_up", "registry away, {{instance}}"),
        ),
        steps=((1, RED),),
    ),
)
