"""What a rollout is and what it does next: its declared plan, where it stands, and the decision; pure.

A step goes on once it was held for its time, has its samples and no check failed; the last one, to everything, needs
every check to pass. A step that names checks of its own is judged by those alone, and needs them to pass. A failed
check takes the version back at any time. What nothing decides in time is paused, for a person to look at.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tuneloop.registry.nouns import FULL_SHARE_BP, Check, GateReport, Noun, Route, as_tuple, version_name
from tuneloop.registry.rollouts.canary import LIMIT_OF, CheckName, Limits

_LONGEST_S = 365 * 86_400.0


class RolloutStep(Noun):
    """A share that a version is given, and what it must show there before it is given more."""

    model_config = ConfigDict(strict=True)

    weight_bp: int = Field(gt=0, lt=FULL_SHARE_BP)
    hold_s: float = Field(default=60.0, ge=0, le=_LONGEST_S, allow_inf_nan=False)  # least time
    min_samples: int = Field(default=30, ge=1, le=1_000_000_000)  # answered requests of the version, on this step
    # What alone is judged while this step is held, and must pass before it is left; each with a limit of its own, or
    # null for the plan's. None: as every step is judged.
    checks: dict[CheckName, float | None] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _limits_are_possible(self) -> Self:
        given = {name: limit for name, limit in (self.checks or {}).items() if limit is not None}
        for name, limit in given.items():
            if name not in LIMIT_OF:
                raise ValueError(f"checks.{name} takes no limit: limits.signals says which signals it asks for")
            try:
                Limits.model_validate({LIMIT_OF[name]: limit})
            except ValidationError as error:
                said = error.errors()[0]["msg"]
                raise ValueError(f"checks.{name}: {said[0].lower()}{said[1:]} (given: {limit:g})") from None
        return self

    def limits(self, plan: Limits) -> Limits:
        """The plan's limits, but for those that this step gives itself."""
        given = {LIMIT_OF[name]: limit for name, limit in (self.checks or {}).items() if limit is not None}
        return plan.model_copy(update=given)


class RolloutPlan(Noun):
    """How a rollout goes: the steps on the way to everything, and the limits it is judged by."""

    model_config = ConfigDict(strict=True)

    steps: Annotated[tuple[RolloutStep, ...], BeforeValidator(as_tuple)] = Field(
        default=(RolloutStep(weight_bp=1_000), RolloutStep(weight_bp=5_000))
    )
    limits: Limits = Limits()
    give_up_s: float = Field(default=3_600.0, ge=0, le=_LONGEST_S, allow_inf_nan=False)  # longest wait on one step

    @model_validator(mode="after")
    def _can_be_gone_through(self) -> Self:
        weights = [step.weight_bp for step in self.steps]
        if not weights:
            raise ValueError("a rollout needs a step to judge on; `tuneloop promote` goes straight to everything")
        if weights != sorted(set(weights)):
            raise ValueError(f"the steps {weights} must rise")
        for number, step in enumerate(self.steps):
            limits = step.limits(self.limits)
            for name in step.checks or ():
                if name in LIMIT_OF and getattr(limits, LIMIT_OF[name]) is None:
                    raise ValueError(
                        f"steps.{number}.checks.{name} has no limit: give it one there, or limits.{LIMIT_OF[name]}"
                    )
        if self.give_up_s < (longest_s := max(step.hold_s for step in self.steps)):
            raise ValueError(
                f"give_up_s {self.give_up_s:g} is under hold_s {longest_s:g}: a step could never be decided; raise it"
            )
        return self

    def reached(self, share_bp: int) -> int | None:
        """The last step that a share is not below; None before the first."""
        return max((i for i, step in enumerate(self.steps) if step.weight_bp <= share_bp), default=None)


class RolloutState(StrEnum):
    """running ⇄ paused, until one of the ends."""

    RUNNING = "running"
    PAUSED = "paused"
    SHIPPED = "shipped"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"


OPEN = frozenset({RolloutState.RUNNING, RolloutState.PAUSED})


class Taken(Noun):
    """A share that a rollout gave, or found when it began, and the judgement that let it go on from there."""

    weight_bp: int
    revision: int
    at: AwareDatetime
    found: bool = False
    checks: tuple[Check, ...] = ()  # none while it is held


class Rollout(Noun):
    """A declared rollout and where it stands; everything that a controller needs to go on with it."""

    id: str
    model: str
    version: int
    champion: int  # what it is judged against
    plan: RolloutPlan
    state: RolloutState = RolloutState.RUNNING
    step: int | None = None  # index into the plan's steps; None: no share yet
    since: AwareDatetime  # of the step, or of the last resuming
    revision: int  # of the route, as the rollout wrote or found it last
    taken: tuple[Taken, ...] = ()
    checks: tuple[Check, ...] = ()  # of the last judgement that was kept
    by: str
    reason: str
    created_at: AwareDatetime
    updated_at: AwareDatetime
    outcome: str = ""  # why it is paused, or how it ended
    lease_owner: str | None = None
    lease_until: AwareDatetime | None = None
    fencing_token: int = 0

    @property
    def name(self) -> str:
        """The version that is rolled out, `support-bot@7`."""
        return version_name(self.model, self.version)

    @property
    def report(self) -> GateReport:
        """The last judgement that was kept, as a report."""
        return GateReport(
            model=self.model, version=self.version, champion=self.champion, at=self.updated_at, checks=self.checks
        )


def new_rollout_id() -> str:
    """A fresh id, `ro_…`."""
    return f"ro_{secrets.token_hex(6)}"


@dataclass(frozen=True)
class Hold:
    """Nothing to do yet."""


@dataclass(frozen=True)
class Raise:
    """Give the share of a step, by its index."""

    step: int


@dataclass(frozen=True)
class Ship:
    """Give everything."""


@dataclass(frozen=True)
class TakeBack:
    """Take the share away: a check failed."""

    reason: str


@dataclass(frozen=True)
class Pause:
    """Leave the share where it is and ask a person."""

    reason: str


Action = Hold | Raise | Ship | TakeBack | Pause


@dataclass(frozen=True)
class Position:
    """The step a rollout stands on, and since when; None: before the first."""

    step: int | None
    since: datetime


def decide(plan: RolloutPlan, at: Position, report: GateReport | None, now: datetime) -> Action:
    """What a rollout does next.

    Args:
        plan: as it was declared.
        at: where it stands.
        report: the judgement as it stands at `now`; None, like no data, decides nothing.
        now: aware UTC.
    """
    if at.step is None:
        return Raise(0)
    checks = report.checks if report is not None else ()
    if failed := worst(checks, "fail"):
        return TakeBack(failed)
    last = at.step == len(plan.steps) - 1
    counted = (
        checks
        if last or plan.steps[at.step].checks is not None
        else tuple(check for check in checks if check.name == "samples")
    )
    held_s = (now - at.since).total_seconds()
    if held_s >= plan.steps[at.step].hold_s and counted and all(check.verdict == "pass" for check in counted):
        return Ship() if last else Raise(at.step + 1)
    if held_s > plan.give_up_s:
        return Pause(f"nothing decided after {held_s:.0f} s: {worst(checks, 'inconclusive') or 'nothing was judged'}")
    return Hold()


def worst(checks: Sequence[Check], verdict: str) -> str:
    """What the checks with this verdict say."""
    return "; ".join(f"{check.name}: {check.detail}" for check in checks if check.verdict == verdict)


def who_gets_what(route: Route) -> tuple[tuple[int, int], ...]:
    """What a route does to keys without a version of their own: the arms that have a share, in order, and who is held
    out for which champion.

    Revisions that agree in it place every such key alike, whatever is staged beside and whoever got a version by name.
    """
    sharing = [(arm.version, arm.weight_bp) for arm in route.arms if arm.weight_bp > 0]
    return (*sharing, (route.champion, route.holdout_bp))
