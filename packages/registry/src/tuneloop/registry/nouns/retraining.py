"""Retraining requests and their runs."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from pydantic import AwareDatetime, Field

from tuneloop.registry.nouns.base import Noun


class RetrainingState(StrEnum):
    """proposed → approved → queued → running → gated → shipped, or one of the ends."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    QUEUED = "queued"
    RUNNING = "running"
    GATED = "gated"
    SHIPPED = "shipped"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RetrainingRequest(Noun):
    """Why, on what data, with which recipe a model is to be trained again."""

    id: str
    idempotency_key: str
    model: str
    base_version: int  # the champion it must beat
    episode_id: str | None
    reason: str
    window_start: AwareDatetime
    window_end: AwareDatetime
    rows: int  # corrections in the window when it was filed
    recipe: str  # a path the worker can read, or the champion's name (`bot@1`) for the recipe it was made with
    state: RetrainingState
    created_at: AwareDatetime
    updated_at: AwareDatetime
    lease_owner: str | None = None
    lease_until: AwareDatetime | None = None
    fencing_token: int = 0
    attempts: int = 0
    result_version: int | None = None
    outcome: str = ""
    held: str = ""  # why a budget does not let it run: until `held_until`, or, without, until a person approves it
    held_until: AwareDatetime | None = None
    budget_waived_by: str | None = None  # who approved it knowing that it is above a budget
    judged_until: AwareDatetime | None = None  # corrections said by then were judged; None: none were, all count

    @property
    def learns_until(self) -> datetime:
        """By when the corrections were said that it learns from: later ones were judged by nobody, and would make
        another run of it."""
        return min(self.judged_until or self.created_at, self.created_at)


class RetrainingRun(Noun):
    """One attempt at a request from the moment it could train: what it was to take, and what it took."""

    request_id: str
    fencing_token: int  # of the lease it runs under
    model: str
    worker: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    end: str = ""  # the state in which it left its request
    devices: int = Field(ge=1)
    planned_hours: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    usd_per_hour: Decimal | None = Field(default=None, ge=0, le=1_000_000)  # of all its devices together
    basis: str = ""  # where the two figures come from, or why there are none

    def hours(self, now: datetime) -> float:
        """By the clock: what it took, or has taken so far."""
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds() / 3600)
