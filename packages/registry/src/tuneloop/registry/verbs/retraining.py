"""`tuneloop retraining list · show · history · approve · reject · retry · cancel · policy`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import click

from tuneloop.registry import actions, overview
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import RetrainingRun
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable
from tuneloop.registry.retraining.budgets import cost_of
from tuneloop.registry.retraining.history import History, RequestTook, history_of
from tuneloop.registry.verbs.policy import policy_options, set_policy, show_policy


@click.group()
def retraining() -> None:
    """See and steer the retraining requests."""


@retraining.command("list")
@click.option("--model", help="Only this model's.")
@json_option
def retraining_list(model: str | None, as_json: bool) -> None:
    """List requests, the newest first."""
    with Registry.open() as registry:
        found = registry.retraining.all(model)
        tell_unreadable(found.unreadable)
        if model is not None and not found and not found.unreadable:
            registry.check_model(model)
        rows = [
            [
                r.id,
                r.model,
                r.state,
                r.rows,
                f"{r.created_at:%Y-%m-%d %H:%M:%S}",
                r.result_version,
                f"held: {r.held}" if r.held else r.outcome or r.reason,
            ]
            for r in found
        ]
        emit(found, as_json, table(["ID", "MODEL", "STATE", "ROWS", "FILED (UTC)", "MADE", "WHY / OUTCOME"], rows))


@retraining.command("show")
@click.argument("request_id")
@json_option
def retraining_show(request_id: str, as_json: bool) -> None:
    """Show one request with its history."""
    with Registry.open() as registry:
        found = overview.request_history(registry, request_id)
        request, history, runs = found.request, found.history, found.runs
        tell_unreadable(found.unreadable)
        rows = [
            [f"{e.at:%Y-%m-%d %H:%M:%S}", e.action, e.actor, e.detail.get("note", e.detail.get("reason"))]
            for e in history
        ]
        text = f"{request.id}: {request.model}, {request.state}\n"
        if request.held:
            until = "a person approves it" if request.held_until is None else f"{request.held_until:%Y-%m-%d %H:%M} UTC"
            text += f"held until {until}: {request.held}\n"
        text += table(["AT (UTC)", "WHAT", "BY", "NOTE"], rows)
        if found.earlier:
            text += f"\nthere are earlier entries: `tuneloop audit {request_id} --limit 1000` shows more"
        if runs:
            text += "\n\n" + _runs_table(runs, registry.clock())
        emit({"request": request, "history": history, "runs": runs}, as_json, text)


def _runs_table(runs: Sequence[RetrainingRun], now: datetime) -> str:
    rows = [
        [
            f"{run.started_at:%Y-%m-%d %H:%M:%S}",
            run.worker,
            run.devices,
            hours_text(run.planned_hours),
            hours_text(run.hours(now)),
            cost_of(run.hours(now), run.usd_per_hour),
            run.end or "goes on",
            run.basis,
        ]
        for run in runs
    ]
    return table(["BEGAN (UTC)", "WORKER", "DEVICES", "PLANNED", "TOOK", "USD", "END", "FIGURES FROM"], rows)


@retraining.command("history")
@click.argument("model", required=False)
@json_option
def retraining_history(model: str | None, as_json: bool) -> None:
    """Show what became of requests, what they took and cost, and the share that shipped."""
    with Registry.open() as registry:
        found, runs = registry.retraining.all(model), registry.retraining.runs(model)
        tell_unreadable([*found.unreadable, *runs.unreadable])
        if model is not None and not found and not found.unreadable:
            registry.check_model(model)
        history = history_of(found, runs, registry.clock())
        emit(
            {
                "requests": [RequestTook.of(one) for one in history.requests],
                "by_state": dict(history.by_state),
                "ended": history.ended,
                "shipped_share": history.shipped,
            },
            as_json,
            _history_text(history),
        )


def _history_text(history: History) -> str:
    rows = [
        [
            one.request.id,
            one.request.model,
            one.request.state,
            f"{one.request.created_at:%Y-%m-%d %H:%M}",
            None if one.waited_s is None else hours_text(one.waited_s / 3600),
            one.runs,
            hours_text(one.planned_hours),
            hours_text(one.hours) if one.runs else None,
            one.cost_usd if one.runs else None,
            one.request.result_version,
            one.request.outcome,
        ]
        for one in history.requests
    ]
    headers = ["ID", "MODEL", "STATE", "FILED (UTC)", "WAITED", "RUNS", "PLANNED", "TOOK", "USD", "MADE", "OUTCOME"]
    counts = ", ".join(f"{state} {count}" for state, count in history.by_state.items()) or "none"
    text = f"{table(headers, rows)}\n\nrequests: {counts}"
    if (share := history.shipped) is not None:
        text += (
            f"\nshipped: {share.estimate:.0%} of the {history.ended} that have ended "
            f"({share.level:.0%} interval {share.low:.0%} to {share.high:.0%})"
        )
    return text


def hours_text(hours: float | None) -> str | None:
    """A duration in the unit that reads best."""
    if hours is None:
        return None
    if hours < 1:
        return f"{hours * 3600:.0f} s" if hours < 1 / 60 else f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


@retraining.command("approve")
@click.argument("request_id")
@by_option
@reason_option
def retraining_approve(request_id: str, by: str, reason: str) -> None:
    """Let a proposed request run; one that a budget sent back, beyond every budget."""
    with Registry.open() as registry:
        click.echo(f"{request_id} is {registry.retraining.approve(request_id, by=by, reason=reason).state}")


@retraining.command("reject")
@click.argument("request_id")
@by_option
@reason_option
def retraining_reject(request_id: str, by: str, reason: str) -> None:
    """Say no to a proposed request."""
    with Registry.open() as registry:
        click.echo(f"{request_id} is {registry.retraining.reject(request_id, by=by, reason=reason).state}")


@retraining.command("retry")
@click.argument("request_id")
@by_option
@reason_option
def retraining_retry(request_id: str, by: str, reason: str) -> None:
    """Give a failed request another try; it still makes one version at most."""
    with Registry.open() as registry:
        click.echo(f"{request_id} is {registry.retraining.retry(request_id, by=by, reason=reason).state}")


@retraining.command("cancel")
@click.argument("request_id")
@by_option
@reason_option
def retraining_cancel(request_id: str, by: str, reason: str) -> None:
    """Stop a request that has not ended."""
    with Registry.open() as registry:
        click.echo(f"{request_id} is {registry.retraining.cancel(request_id, by=by, reason=reason).state}")


@retraining.command("policy")
@click.argument("model")
@policy_options
@json_option
def retraining_policy(model: str, path: Path | None, by: str | None, reason: str | None, as_json: bool) -> None:
    """Show a model's policy, or set a new revision of it."""
    with Registry.open() as registry:
        registry.check_model(model)
        if path is not None:
            check = partial(actions.check_recipe, registry, where=str(path))
            set_policy(registry, model, RetrainingPolicy, path, by, reason, check)
        show_policy(registry, model, RetrainingPolicy, as_json)
