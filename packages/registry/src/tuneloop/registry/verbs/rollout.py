"""`tuneloop rollout · controller`."""

from __future__ import annotations

import logging
import signal
import threading
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import click
from pydantic import ValidationError

from tuneloop.registry import overview
from tuneloop.registry.database import faults
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.logs import set_up
from tuneloop.registry.nouns import FULL_SHARE_BP, parse_version_name
from tuneloop.registry.policies import RolloutPolicy
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import OPEN, Rollout, RolloutPlan, RolloutStep
from tuneloop.registry.rollouts.steering import abort, declare, drive, resume
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.settings import ControllerSettings, RegistrySettings
from tuneloop.registry.verbs.policy import policy_options, set_policy, show_policy
from tuneloop.registry.verbs.routes import route_line


@click.group()
def rollout() -> None:
    """Raise a version's share in steps, judged against the champion."""


@rollout.command("start")
@click.argument("version")
@click.option("--steps", help="Basis points, rising, the last 10000, for example 1000,5000,10000.")
@click.option("--hold-s", type=float, help="Least time on each step.")
@click.option("--give-up-s", type=float, help="Longest wait for a decision before a person is asked.")
@click.option("--min-samples", type=int, help="Answered requests of the version, on each step, before it is left.")
@click.option("--margin", type=float, help="How much worse feedback (0 to 1) may be and still pass.")
@click.option("--error-margin", type=float, help="How much larger a share of requests may fail and still pass.")
@click.option("--latency-ratio", type=float, help="How many times as long answers may take and still pass.")
@click.option("--token-ratio", type=float, help="How many times as long answers may be; not looked at otherwise.")
@click.option("--guard-margin", type=float, help="How much larger a share of answers guards may find something in.")
@click.option(
    "--correction-margin", type=float, help="How much larger a share may be corrected; not looked at otherwise."
)
@click.option("--detach", is_flag=True, help="Declare it only; a controller goes on with it.")
@by_option
@reason_option
@json_option
def rollout_start(
    version: str,
    steps: str | None,
    hold_s: float | None,
    give_up_s: float | None,
    min_samples: int | None,
    margin: float | None,
    error_margin: float | None,
    latency_ratio: float | None,
    token_ratio: float | None,
    guard_margin: float | None,
    correction_margin: float | None,
    detach: bool,
    by: str,
    reason: str,
    as_json: bool,
) -> None:
    """Raise a version to 100 % in steps; roll back on fail, pause on inconclusive.

    What is not given here is as the model's rollout policy says.
    """
    model, number = parse_version_name(version)
    weights_bp = None if steps is None else _weights(steps)
    each_step = {"hold_s": hold_s, "min_samples": min_samples}
    limits = {
        "feedback_margin": margin,
        "error_margin": error_margin,
        "latency_ratio": latency_ratio,
        "token_ratio": token_ratio,
        "guard_margin": guard_margin,
        "correction_margin": correction_margin,
    }
    with Registry.open() as registry:
        policy = registry.policies.get(model, RolloutPolicy)
        plan = _planned(policy.plan, weights_bp, each_step, limits, give_up_s)
        declared = declare(registry, model, number, plan, Change(by, reason))
        _go_on(registry, declared, detach, as_json)


@rollout.command("resume")
@click.argument("model")
@click.option("--detach", is_flag=True, help="Let it run only; a controller goes on with it.")
@by_option
@reason_option
@json_option
def rollout_resume(model: str, detach: bool, by: str, reason: str, as_json: bool) -> None:
    """Let a paused rollout go on from where the route stands now."""
    with Registry.open() as registry:
        _go_on(registry, resume(registry, model, Change(by, reason)), detach, as_json)


@rollout.command("status")
@click.argument("model")
@json_option
def rollout_status(model: str, as_json: bool) -> None:
    """Show the rollout of a model, and judge the running canary as it stands now."""
    with Registry.open() as registry:
        now = overview.rollout_now(registry, model)
        text = "\n".join([route_line(now.route), *_rollout_lines(now, registry.clock())])
        if now.report is None:
            said = {"rollout": now.rollout, "taken_over": now.taken_over} if now.rollout else None
            emit(said, as_json, f"{text}\nno canary is running")
            return
        rows = [[check.name, check.verdict, check.detail] for check in now.report.checks]
        whose = "the rollout's own limits" if now.own_limits else "the policy's limits; no rollout set this share"
        text += f"\n{model}@{now.report.version}: {now.verdict} (by {whose})\n" + table(
            ["CHECK", "VERDICT", "DETAIL"], rows
        )
        said = now.report.model_dump(mode="json") | {
            "verdict": now.verdict,
            "rollout": now.rollout,
            "taken_over": now.taken_over,
        }
        emit(said, as_json, text)


@rollout.command("list")
@click.option("--model", help="Only this model's.")
@json_option
def rollout_list(model: str | None, as_json: bool) -> None:
    """List rollouts, the newest first."""
    with Registry.open() as registry:
        found = registry.rollouts.all(model)
        tell_unreadable(found.unreadable)
        if model is not None and not found and not found.unreadable:
            registry.check_model(model)
        rows = [
            [r.id, r.name, r.state, _step(r), f"{r.created_at:%Y-%m-%d %H:%M:%S}", r.by, r.outcome or r.reason]
            for r in found
        ]
        headers = ["ROLLOUT", "VERSION", "STATE", "STEP", "DECLARED (UTC)", "BY", "OUTCOME / WHY"]
        emit(found, as_json, table(headers, rows))


@rollout.command("abort")
@click.argument("model")
@by_option
@reason_option
@json_option
def rollout_abort(model: str, by: str, reason: str, as_json: bool) -> None:
    """End the rollout and take its version's share away; other versions keep theirs."""
    with Registry.open() as registry:
        ended, now = abort(registry, model, Change(by, reason))
        said = f"{ended.id} of {ended.name} is aborted\n{route_line(now)}"
        emit(now.model_dump(mode="json") | {"rollout": ended.id}, as_json, said)


@rollout.command("policy")
@click.argument("model")
@policy_options
@json_option
def rollout_policy(model: str, path: Path | None, by: str | None, reason: str | None, as_json: bool) -> None:
    """Show or set how a model's rollouts go, and what becomes of aliases that are moved in MLflow."""
    with Registry.open() as registry:
        registry.check_model(model)
        if path is not None:
            set_policy(registry, model, RolloutPolicy, path, by, reason)
        show_policy(registry, model, RolloutPolicy, as_json)


@click.command()
@click.option("--once", is_flag=True, help="Look at everything once, and end.")
@click.option("--every-s", type=float, help="Seconds between looks at a rollout.")
def controller(*, once: bool, every_s: float | None) -> None:
    """Go on with rollouts, watch MLflow's aliases, delete what is older than allowed; run as many as you like."""
    set_up(RegistrySettings.load().log_format)
    log, stop = logging.getLogger("tuneloop.controller"), threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        log.info("%s: ending", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    settings = ControllerSettings.load(every_s=every_s)
    with Registry.open(begin=True) as registry:
        running = Controller(registry, settings)
        if once:
            running.turn(stop)
            running.release()
            return
        log.info("%s looks every %g s", running.owner, settings.every_s)
        running.run(stop)


def _weights(steps: str) -> list[int]:
    try:
        weights_bp = [int(step) for step in steps.split(",")]
    except ValueError:
        raise InvalidInput(f"--steps {steps!r} is not a list of basis points such as 1000,5000,10000") from None
    *below, last = weights_bp
    if last != FULL_SHARE_BP or sorted(set(weights_bp)) != weights_bp:
        raise InvalidInput(f"--steps {steps} must rise and end at {FULL_SHARE_BP} basis points")
    if not below:
        raise InvalidInput(
            f"a rollout needs a step below {FULL_SHARE_BP} basis points to judge on; "
            "`tuneloop promote` goes straight there"
        )
    return below


def _planned(
    plan: RolloutPlan,
    weights_bp: list[int] | None,
    each_step: dict[str, Any],
    limits: dict[str, float | None],
    give_up_s: float | None,
) -> RolloutPlan:
    """The plan with what was given in place of what it says; a step that it has no likeness of is like its last."""
    given = {name: value for name, value in each_step.items() if value is not None}
    weights_bp = weights_bp or [step.weight_bp for step in plan.steps]
    likeness = [plan.steps[min(number, len(plan.steps) - 1)] for number in range(len(weights_bp))]
    steps = [
        like.model_dump() | {"weight_bp": weight_bp} | given
        for like, weight_bp in zip(likeness, weights_bp, strict=True)
    ]
    wanted = plan.limits.model_dump() | {name: value for name, value in limits.items() if value is not None}
    try:
        return RolloutPlan.model_validate(
            {
                "steps": steps,
                "limits": Limits.model_validate(wanted),
                "give_up_s": plan.give_up_s if give_up_s is None else give_up_s,
            }
        )
    except ValidationError as error:
        raise InvalidInput(f"no such rollout can be declared: {faults(error)}") from None


def _go_on(registry: Registry, declared: Rollout, detach: bool, as_json: bool) -> None:
    if detach:
        emit(declared, as_json, f"{declared.id} of {declared.name} is declared; a controller goes on with it")
        return
    report = drive(registry, declared, lambda line: click.echo(line, err=as_json))
    emit(report.model_dump(mode="json") | {"verdict": report.verdict}, as_json, f"{declared.name}: {report.verdict}")


def _rollout_lines(found: overview.RolloutNow, now: datetime) -> list[str]:
    if (there := found.rollout) is None:
        return []
    since = f"{there.since:%Y-%m-%d %H:%M:%S} UTC"
    why = f": {there.outcome}" if there.outcome else ""
    who = _holder(there, now)
    lines = [f"{there.id} of {there.name} is {there.state}{why}"] if there.state in OPEN else []
    lines += [f"step {_step(there)} since {since}, declared by {there.by} ({there.reason}), gone on with by {who}"]
    if found.taken_over:
        often = "once" if found.taken_over == 1 else f"{found.taken_over} times"
        lines += [
            f"its lease was taken over {often} within the last hour from controllers that did not let "
            f"go of it, as one that dies does: `tuneloop audit {there.name}`, and their logs"
        ]
    own = any(step.checks is not None for step in there.plan.steps)
    rows = [
        [
            number,
            f"{step.weight_bp / 100:g} %",
            f"{step.hold_s:g} s",
            step.min_samples,
            *([_named(step)] if own else []),
            _verdict(there, number - 1),
        ]
        for number, step in enumerate(there.plan.steps, start=1)
    ]
    return [*lines, table(["STEP", "SHARE", "AT LEAST", "SAMPLES", *(["CHECKS"] if own else []), "VERDICT"], rows)]


def _holder(there: Rollout, now: datetime) -> str:
    """Who holds the lease and until when, or since when nobody does."""
    if there.lease_until is None:
        return "no controller yet"
    until = f"{there.lease_until:%H:%M:%S} UTC"
    if there.lease_owner is None:
        return f"no controller since {until}"
    return f"{there.lease_owner}, whose lease {'ends' if there.lease_until > now else 'ended'} at {until}"


def _named(step: RolloutStep) -> str:
    """What a step is judged by: `errors 0.02, latency` where it names its own, with the limits that it gives them."""
    if step.checks is None:
        return "every one"
    return ", ".join(name if limit is None else f"{name} {limit:g}" for name, limit in step.checks.items())


def _step(rollout: Rollout) -> str:
    return f"{0 if rollout.step is None else rollout.step + 1} of {len(rollout.plan.steps)}"


def _verdict(rollout: Rollout, step: int) -> str:
    """What the step was left by, or that it is held."""
    if rollout.step is None or step > rollout.step:
        return ""
    weight_bp = rollout.plan.steps[step].weight_bp
    left = [taken for taken in rollout.taken if taken.weight_bp == weight_bp and taken.checks]
    if step == rollout.step and not (left and left[-1] is rollout.taken[-1]):
        return "held"
    return ", ".join(f"{check.name} {check.verdict}" for check in left[-1].checks) if left else "passed over"
