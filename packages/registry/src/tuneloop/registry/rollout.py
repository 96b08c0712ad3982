"""A staged rollout: raise the share, judge against the concurrent champion, stop on fail, pause on inconclusive.

It runs in the foreground and holds no state of its own: killed at any point, the route stays at the step it had
reached, and `rollout start` goes on from there. It changes only revisions it wrote or found itself (compare-and-swap):
when anybody else changes the route, it stops and leaves the route to them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from tuneloop.registry import audit
from tuneloop.registry.canary import ArmSample, Limits, judge
from tuneloop.registry.errors import InvalidInput, Refused, Unavailable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Check, GateReport, RequestRecord, Route, version_name
from tuneloop.registry.promotion import Change, promote, rollback, set_route

LOOK_EVERY_S = 0.5
_STEP, _RESUME = "rollout.step", "rollout.resume"  # audit records that hold the limits the share is judged by
_LOOK_COST = 5  # a look reads every record since the start: it takes at most a fifth of the time


@dataclass(frozen=True)
class Plan:
    """How a rollout goes."""

    steps_bp: tuple[int, ...] = (1_000, 5_000, 10_000)
    limits: Limits = field(default_factory=Limits)
    hold_s: float = 60.0  # least time on each step
    give_up_s: float = 3_600.0  # longest wait on one step before a person is asked

    def __post_init__(self) -> None:
        for name, value_s in (("hold_s", self.hold_s), ("give_up_s", self.give_up_s)):
            if not (math.isfinite(value_s) and value_s >= 0):
                raise InvalidInput(f"{name} {value_s:g} is not a number of seconds from 0 up")
        if self.give_up_s < self.hold_s:
            raise InvalidInput(
                f"give_up_s {self.give_up_s:g} is under hold_s {self.hold_s:g}: no step could ever be decided; raise it"
            )
        if not self.steps_bp or list(self.steps_bp) != sorted(set(self.steps_bp)) or self.steps_bp[-1] != FULL_SHARE_BP:
            raise InvalidInput(f"steps {self.steps_bp} must rise and end at {FULL_SHARE_BP} basis points")
        if self.steps_bp[0] <= 0:
            raise InvalidInput("the first step must be above 0 basis points")
        if len(self.steps_bp) == 1:
            raise InvalidInput(
                f"a rollout needs a step below {FULL_SHARE_BP} basis points to judge on; "
                "`tuneloop promote` goes straight there"
            )


def run(
    registry: Registry,
    model: str,
    version: int,
    plan: Plan,
    change: Change,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> GateReport:
    """Raise `version` through the plan's steps to everything, or take it back; returns the judgement that decided.

    A step goes on once it was held, has its samples and no check failed; the last one, to 100 %, needs every check to
    pass. A version that has a share already is held at the step it had reached first.

    Raises:
        Refused: a check failed (the version was rolled back, its retraining request is rejected), nothing was decided
            in time (it stays where it is), another canary is running, or somebody else changed the route.
        Conflict: somebody changed the route between a look and a write; the route is left to them.
        Unavailable: no engine serves the version, and the share stays where it is; or a gateway does not follow in
            time: then the share is changed, and the verdict that changed it on record.
    """
    name = version_name(model, version)
    route = registry.routes.current(model)
    champion = route.champion
    if champion == version:
        raise Refused(f"{name} is the champion already")
    if others := [version_name(model, a.version) for a in route.arms[:-1] if a.weight_bp > 0 and a.version != version]:
        raise Refused(
            f"{', '.join(others)} has a share of {model}'s traffic; one rollout at a time: finish it, or "
            f"take its share away with `tuneloop rollout abort {model}`"
        )
    *steps_bp, _ = plan.steps_bp
    reached_bp = max((step for step in steps_bp if step <= route.split.get(version, 0)), default=0)
    report: GateReport | None = None
    for step_bp in steps_bp:
        if step_bp < reached_bp:
            continue
        if step_bp == reached_bp:
            _resumed(registry, route, plan.limits, change)
            say(f"revision {route.revision}: {name} has {route.split[version] / 100:g} % already; judging there first")
        else:
            route = _raise_share(registry, route, version, step_bp, plan.limits, change)
            say(f"revision {route.revision}: {name} {step_bp / 100:g} %, {version_name(model, champion)} the rest")
        report = _hold(registry, route, version, plan, change, say, clock, must_pass=step_bp == steps_bp[-1])
    assert report is not None, "a plan has a step below everything"
    with _decided(registry, report, change, "promoted", FULL_SHARE_BP):
        final = promote(registry, model, version, change, expected_revision=route.revision)
    say(f"revision {final.revision}: {name} 100 %")
    return report


@dataclass(frozen=True)
class Trial:
    """What a challenger is judged on."""

    since: datetime  # when it last went from no share to some: everything from then on is compared
    step_revision: int  # the first revision of its present share: this step's own samples begin there


def judgement(registry: Registry, model: str, version: int, limits: Limits, trial: Trial) -> GateReport:
    """The challenger against the champion over what the split gave both in the trial, as it stands now.

    All of the trial is compared, revision by revision, but a step needs samples of its own: one without traffic shows
    nothing about its load.
    """
    champion = registry.routes.current(model).champion
    arms = (champion, version)
    records = [r for r in registry.traffic.window(model, since=trial.since) if r.assigned_version in arms]
    feedback = registry.traffic.feedback_for([record.id for record in records])
    under: dict[int, list[RequestRecord]] = {}
    for record in records:
        under.setdefault(record.revision or 0, []).append(record)
    samples = {
        revision: (ArmSample.of(champion, those, feedback), ArmSample.of(version, those, feedback))
        for revision, those in under.items()
    }
    here = sum(challenger.answered for revision, (_, challenger) in samples.items() if revision >= trial.step_revision)
    checks = judge(tuple(samples.values()), limits, step_answered=here)
    return GateReport(model=model, version=version, champion=champion, at=registry.clock(), checks=checks)


def trial_of(registry: Registry, model: str, version: int) -> Trial:
    """The running trial of a version.

    Raises:
        Refused: it has no share.
    """
    shared = list(itertools.takewhile(lambda r: r.split.get(version, 0) > 0, registry.routes.history(model).whole()))
    if not shared:
        raise Refused(
            f"{version_name(model, version)} has no share of the traffic; `tuneloop rollout start` gives it one"
        )
    share_bp = shared[0].split[version]
    step = list(itertools.takewhile(lambda r: r.split[version] == share_bp, shared))  # newest first, like `shared`
    return Trial(since=shared[-1].at, step_revision=step[-1].revision)


def limits_of(registry: Registry, model: str, trial: Trial) -> Limits | None:
    """What the rollout that set the running share judges by; None when no rollout set it."""
    steps = [e for action in (_STEP, _RESUME) for e in registry.audit.entries(model, limit=1, action=action).whole()]
    newest = max(steps, key=lambda entry: entry.id, default=None)
    if newest is None or newest.detail["revision"] < trial.step_revision or "limits" not in newest.detail:
        return None
    return Limits(**newest.detail["limits"])


def _resumed(registry: Registry, route: Route, limits: Limits, change: Change) -> None:
    """A step that an earlier rollout reached is judged by this one's limits from now on, on record."""
    detail = {"revision": route.revision, "split": route.split_text, "reason": change.reason, "limits": asdict(limits)}
    with registry.database.writing() as connection:
        audit.record(
            connection, at=registry.clock(), actor=change.by, action=_RESUME, subject=route.model, detail=detail
        )


def _raise_share(registry: Registry, route: Route, version: int, step_bp: int, limits: Limits, change: Change) -> Route:
    split = {arm.version: 0 for arm in route.arms} | {version: step_bp, route.champion: FULL_SHARE_BP - step_bp}
    return set_route(
        registry,
        route.model,
        split,
        change,
        expected_revision=route.revision,
        action=_STEP,
        noted={"limits": asdict(limits)},
    )


def _hold(
    registry: Registry,
    route: Route,
    version: int,
    plan: Plan,
    change: Change,
    say: Callable[[str], None],
    clock: Callable[[], float],
    *,
    must_pass: bool,
) -> GateReport:
    began = clock()
    trial = trial_of(registry, route.model, version)
    while True:
        looked = time.monotonic()
        _expect(registry, route)
        report = judgement(registry, route.model, version, plan.limits, trial)
        if report.verdict == "fail":
            _take_back(registry, route, version, report, change)
        held_s = clock() - began
        decided = report.verdict if must_pass else report.checks[0].verdict
        if held_s >= plan.hold_s and decided == "pass":
            say("  " + "; ".join(f"{check.name}: {check.verdict} ({check.detail})" for check in report.checks))
            return report
        if held_s > plan.give_up_s:
            _on_record(registry, report, change, "paused")
            name, model = version_name(route.model, version), route.model
            raise Refused(
                f"paused at {route.split[version] / 100:g} %, nothing decided after {held_s:.0f} s: "
                f"{_worst(report.checks, 'inconclusive')}; start again for more samples, or `tuneloop promote {name}`, "
                f"or `tuneloop rollback {model}`"
            )
        time.sleep(max(LOOK_EVERY_S, _LOOK_COST * (time.monotonic() - looked)))


def _take_back(registry: Registry, route: Route, version: int, report: GateReport, change: Change) -> None:
    """Roll back, which rejects the retraining that made the version, so that the next may be asked for; then refuse."""
    reason = _worst(report.checks, "fail")
    why = replace(change, reason=f"rollout failed: {reason}")
    with _decided(registry, report, change, "rolled back", 0):
        rollback(registry, route.model, why, expected_revision=route.revision)
    raise Refused(f"{version_name(route.model, version)} was rolled back: {reason}")


def _expect(registry: Registry, route: Route) -> None:
    now = registry.routes.current(route.model)
    if now.revision != route.revision:
        raise Refused(
            f"{now.by} wrote revision {now.revision} ({now.split_text}, {now.reason!r}) meanwhile; this rollout stops"
        )


@contextmanager
def _decided(registry: Registry, report: GateReport, change: Change, outcome: str, share_bp: int) -> Iterator[None]:
    """The change of the route that a judgement leads to: once it is written, so is the verdict, whoever is late."""
    try:
        yield
    except Unavailable as late:
        if registry.routes.current(report.model).split.get(report.version, 0) != share_bp:
            raise
        _on_record(registry, report, change, outcome)
        why = f" ({failed})" if (failed := _worst(report.checks, "fail")) else ""
        raise Unavailable(f"{version_name(report.model, report.version)} was {outcome}{why}; {late}") from late
    _on_record(registry, report, change, outcome)


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
