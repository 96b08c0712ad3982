"""Policies that change while processes run: append-only revisions, the newest counts, each on record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal, Self, TypeVar

import sqlalchemy as sa
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tuneloop.registry import audit
from tuneloop.registry.database import Database, faults, write_last
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.guard_policy import KIND, GuardPolicy
from tuneloop.registry.money import Money
from tuneloop.registry.nouns import FRESH, Noun, Signal, as_tuple, kept
from tuneloop.registry.retention_policy import KIND as RETENTION
from tuneloop.registry.retention_policy import RetentionPolicy
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.tables import policies

Budget = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RetrainingPolicy(Noun):
    """When the monitor may ask for a retraining, and what a model's runs may take; read as strictly as a recipe."""

    model_config = ConfigDict(strict=True)

    enabled: bool = True
    recipe: str | None = None  # None: the champion's own recipe, from its MLflow run
    signals: Annotated[tuple[Signal, ...], BeforeValidator(as_tuple)] = Field(
        default=("prompt_drift", "perplexity", "correction_perplexity"), min_length=1
    )
    min_rows: int = Field(default=50, ge=1, le=1_000_000_000)  # fresh corrections
    cooldown_s: float = Field(default=6 * 3600.0, ge=0, le=10 * 365 * 86_400.0, allow_inf_nan=False)
    auto_approve: bool = False  # otherwise a person runs `tuneloop retraining approve`
    expires_s: float = Field(default=7 * 86_400.0, gt=0, le=10 * 365 * 86_400.0, allow_inf_nan=False)  # nobody decides
    runs_per_day: int | None = Field(default=None, ge=1)  # days and months are those of UTC
    device_hours_per_day: Budget | None = None
    cost_usd_per_month: Money | None = None


class Threshold(Noun):
    """Where a measure of a version must lie."""

    model_config = ConfigDict(strict=True)

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing lies between min {self.min:g} and max {self.max:g}")
        return self


Approver = Literal["anyone", "other than the trainer"]


class GatePolicy(Noun):
    """What a model's versions must show to be let in, beside what their recipe's `retrain` section says."""

    model_config = ConfigDict(strict=True)

    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # nats per token; None: the recipe's
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}  # evaluation set → its own margin
    min_rows: int | None = Field(default=None, ge=2, le=1_000_000_000)  # fewer in a set decide nothing
    metrics: dict[str, Threshold] = {}  # a measure of the version, `perplexity.<set>` → where it must lie
    person: bool = False  # a gate that passes lets nothing in: a person approves each version
    approver_role: bool = False  # an approval counts only from a token of the control plane whose role may approve
    approver: Approver = "anyone"  # whose approval counts
    latency_p95_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # total time, of its own traffic
    leakage: Literal["refuse"] | None = None  # training rows that stand in an evaluation set, or nearly
    bias: Literal["no more than the champion"] | None = None  # by gender, race and age, as `tuneloop bias check` found
    signed: bool = False  # its files must be

    @property
    def judging(self) -> Self:
        """What of it judges a version: whose approval counts is asked whenever a version is to get a share."""
        return self.model_copy(update={"person": False, "approver_role": False, "approver": "anyone"})

    @model_validator(mode="after")
    def _primary_has_no_margin(self) -> Self:
        if FRESH in self.margins:
            raise ValueError(f"margins.{FRESH} is not read: on users' corrections a version must be better")
        return self


class RolloutPolicy(RolloutPlan):
    """How a model's rollouts go unless one is told otherwise, and what becomes of an alias that somebody moved."""

    aliases: Literal["revert", "adopt", "report"] = "revert"

    @property
    def plan(self) -> RolloutPlan:
        """What a rollout declares."""
        return RolloutPlan(steps=self.steps, limits=self.limits, give_up_s=self.give_up_s)


PolicyT = TypeVar("PolicyT", RetrainingPolicy, GatePolicy, RolloutPolicy, GuardPolicy, ReceiversPolicy, RetentionPolicy)
_KINDS: dict[type[Noun], tuple[str, str]] = {  # the kind, and the verb that shows and sets it
    RetrainingPolicy: ("retraining", "retraining policy"),
    GatePolicy: ("gate", "gate"),
    RolloutPolicy: ("rollout", "rollout policy"),
    GuardPolicy: (KIND, "guard policy"),
    ReceiversPolicy: ("receivers", "alert receivers"),  # of every model
    RetentionPolicy: (RETENTION, "retention"),
}


class Policies:
    """The policies in force."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def get(self, model: str, policy: type[PolicyT], *, at: datetime | None = None) -> PolicyT:
        """A model's policy of one kind, now or as it was `at` a time; the defaults when none was set by then.

        Raises:
            Unreadable: the one that was set is none.
        """
        kind, verb = _KINDS[policy]
        query = sa.select(policies.c.body).where(policies.c.model == model, policies.c.kind == kind)
        if at is not None:
            query = query.where(policies.c.at <= at)
        with self._db.reading() as connection:
            body = connection.execute(query.order_by(policies.c.id.desc()).limit(1)).scalar()
        try:
            return policy() if body is None else policy.model_validate(body)
        except ValidationError as error:
            typed = verb if model == EVERY_MODEL else f"{verb} {model}"
            raise Unreadable(
                f"the {kind} policy of {model} cannot be read: {faults(error)}; set another: "
                f"`tuneloop {typed} --set FILE --by YOU --reason WHY`"
            ) from None

    def set(self, model: str, policy: PolicyT, *, by: str, reason: str) -> None:
        """Append a new revision of a model's policy of that kind."""
        (kind, _), body, now = _KINDS[type(policy)], kept(policy), self._clock()
        with self._db.writing() as connection:
            detail = {"policy": body, "reason": reason}
            audit.record(connection, at=now, actor=by, action=f"policy.{kind}", subject=model, detail=detail)
            # After its entry, which one transaction writes at a time: the policy in force is the newest on record.
            write = sa.insert(policies).values(model=model, kind=kind, body=body, by=by, reason=reason, at=now)
            write_last(connection, lambda: connection.execute(write))
