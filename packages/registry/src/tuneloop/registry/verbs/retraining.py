"""`tuneloop retraining list · show · approve · cancel · policy`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from tuneloop.registry import actions, overview
from tuneloop.registry.facade import Registry
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable
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
                r.outcome or r.reason,
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
        request, history = found.request, found.history
        tell_unreadable(found.unreadable)
        rows = [
            [f"{e.at:%Y-%m-%d %H:%M:%S}", e.action, e.actor, e.detail.get("note", e.detail.get("reason"))]
            for e in history
        ]
        text = f"{request.id}: {request.model}, {request.state}\n" + table(["AT (UTC)", "WHAT", "BY", "NOTE"], rows)
        emit({"request": request, "history": history}, as_json, text)


@retraining.command("approve")
@click.argument("request_id")
@by_option
@reason_option
def retraining_approve(request_id: str, by: str, reason: str) -> None:
    """Let a proposed request run."""
    with Registry.open() as registry:
        click.echo(f"{request_id} is {registry.retraining.approve(request_id, by=by, reason=reason).state}")


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
