"""A staged rollout: raise the share step by step, judge against the concurrent champion, stop on fail, pause on inconclusive.

It runs in the foreground and holds no state of its own: killed at any point, the route stays at the step it had reached and
`rollout start` goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tuneloop.registry import audit
from tuneloop.registry.canary import ArmSample, Limits, judge
from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Check, GateReport, Route, version_name
from tuneloop.registry.promotion import Change, promote, rollback, set_route


@dataclass(frozen=True)
class Plan:
    """How a rollout goes."""

    steps_bp: tuple[int, ...] = (1_000, 5_000, 10_000)
    limits: Limits = field(default_factory=Limits)
    hold_s: float = 60.0  # least time on each step
    give_up_s: float = 3_600.0  # longest wait for enough samples before a person is asked

    def __post_init__(self) -> None:
        if not self.steps_bp or list(self.steps_bp) != sorted(set(self.steps_bp)) or self.steps_bp[-1] != FULL_SHARE_BP:
            raise InvalidInput(f"steps {self.steps_bp} must rise and end at {FULL_SHARE_BP} basis points")
        if self.steps_bp[0] <= 0:
            raise InvalidInput("the first step must be above 0 basis points")


def run(
    registry: Registry, model: str, version: int, plan: Plan, change: Change, say: Callable[[str], None]
) -> GateReport:
    """Raise `version` through the plan's steps to everything, or take it back; returns the judgement that decided.

    A step goes on unless a check fails; the last step, to 100 %, needs every check to pass.

    Raises:
        Refused: a check failed (the version was rolled back), or nothing was decided in time (it stays where it is).
        Conflict: somebody changed the route between a look and a write; the route is left to them.
    """
    name = version_name(model, version)
    route = registry.routes.current(model)
    champion = route.champion
    if champion == version:
        raise Refused(f"{name} is the champion already")
    report: GateReport | None = None
    for step_bp in plan.steps_bp[:-1]:
        if route.split.get(version, 0) >= step_bp:
            say(f"{name} has {route.split[version] / 100:g} % already")
            continue
        route = _raise_share(registry, route, version, step_bp, change)
        say(f"revision {route.revision}: {name} {step_bp / 100:g} %, {version_name(model, champion)} the rest")
        last = step_bp == plan.steps_bp[-2]
        report = _hold(registry, route, version, plan, change, say, must_pass=last)
    if report is None:  # resumed at the last step before everything
        report = _hold(registry, route, version, plan, change, say, must_pass=True)
    _expect(registry, route)
    final = promote(registry, model, version, change)
    _on_record(registry, report, change, "promoted")
    say(f"revision {final.revision}: {name} 100 %")
    return report


def judgement(registry: Registry, model: str, version: int, limits: Limits, *, since: datetime) -> GateReport:
    """The challenger against the champion over what both served since then, as it stands now."""
    champion = registry.routes.current(model).champion
    samples = []
    for number in (champion, version):
        records = registry.traffic.window(model, since=since, version=number)
        samples.append(ArmSample.of(records, registry.traffic.feedback_for([record.id for record in records])))
    checks = judge(samples[0], samples[1], limits)
    return GateReport(model=model, version=version, champion=champion, at=registry.clock(), checks=checks)


def started_at(registry: Registry, model: str, version: int) -> datetime:
    """When the version last went from no share to some: the beginning of what is compared.

    Raises:
        Refused: it has no share.
    """
    began: datetime | None = None
    for route in registry.routes.history(model):  # newest first
        if route.split.get(version, 0) == 0:
            break
        began = route.at
    if began is None:
        raise Refused(
            f"{version_name(model, version)} has no share of the traffic; `tuneloop rollout start` gives it one"
        )
    return began


def _raise_share(registry: Registry, route: Route, version: int, step_bp: int, change: Change) -> Route:
    split = route.split
    split[version] = step_bp
    split[route.champion] = FULL_SHARE_BP - sum(weight for v, weight in split.items() if v != route.champion)
    return set_route(registry, route.model, split, change, expected_revision=route.revision, action="rollout.step")


def _hold(
    registry: Registry,
    route: Route,
    version: int,
    plan: Plan,
    change: Change,
    say: Callable[[str], None],
    *,
    must_pass: bool,
) -> GateReport:
    began = time.monotonic()
    while True:
        _expect(registry, route)
        report = judgement(
            registry, route.model, version, plan.limits, since=started_at(registry, route.model, version)
        )
        held_s = time.monotonic() - began
        if report.verdict == "fail":
            rollback(registry, route.model, change)
            _on_record(registry, report, change, "rolled back")
            raise Refused(f"{version_name(route.model, version)} was rolled back: {_worst(report.checks, 'fail')}")
        ready = report.verdict == "pass" if must_pass else report.checks[0].verdict == "pass" or held_s >= plan.hold_s
        if held_s >= plan.hold_s and ready:
            say("  " + "; ".join(f"{check.name}: {check.verdict} ({check.detail})" for check in report.checks))
            return report
        if held_s > plan.give_up_s:
            _on_record(registry, report, change, "paused")
            raise Refused(
                f"paused at {route.split[version] / 100:g} %, nothing decided after {held_s:.0f} s: {_worst(report.checks, 'inconclusive')}; "
                f"start again for more samples, or `tuneloop promote {version_name(route.model, version)}` or `tuneloop rollback {route.model}`"
            )
        time.sleep(0.5)


def _expect(registry: Registry, route: Route) -> None:
    now = registry.routes.current(route.model)
    if now.revision != route.revision:
        raise Refused(
            f"{now.by} wrote revision {now.revision} ({now.split_text}, {now.reason!r}) meanwhile; this rollout stops"
        )


def _on_record(registry: Registry, report: GateReport, change: Change, outcome: str) -> None:
    detail = {
        "outcome": outcome,
        "verdict": report.verdict,
        "checks": [check.model_dump(mode="json") for check in report.checks],
    }
    with registry.database.writing() as connection:
        subject = version_name(report.model, report.version)
        audit.record(
            connection, at=registry.clock(), actor=change.by, action="rollout.verdict", subject=subject, detail=detail
        )


def _worst(checks: Sequence[Check], verdict: str) -> str:
    return "; ".join(f"{check.name}: {check.detail}" for check in checks if check.verdict == verdict)
