"""Policies that change while processes run: append-only revisions, the newest counts, each on record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from pydantic import Field, StrictBool, ValidationError

from tuneloop.registry import audit
from tuneloop.registry.database import Database, faults
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.nouns import Noun, Signal
from tuneloop.registry.tables import policies


class RetrainingPolicy(Noun):
    """When the monitor may ask for a retraining of a model."""

    enabled: StrictBool = True
    recipe: str | None = None  # None: the champion's own recipe, from its MLflow run
    signals: tuple[Signal, ...] = Field(default=("prompt_drift", "perplexity", "correction_perplexity"), min_length=1)
    min_rows: int = Field(default=50, ge=1, le=1_000_000_000)  # fresh corrections
    cooldown_s: float = Field(default=6 * 3600.0, ge=0, le=10 * 365 * 86_400.0, allow_inf_nan=False)
    auto_approve: StrictBool = False  # otherwise a person runs `tuneloop retraining approve`


class Policies:
    """The policies in force."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def retraining(self, model: str) -> RetrainingPolicy:
        """A model's retraining policy; the defaults when none was ever set.

        Raises:
            Unreadable: the one that was set is none.
        """
        query = sa.select(policies.c.body).where(policies.c.model == model, policies.c.kind == "retraining")
        with self._db.reading() as connection:
            body = connection.execute(query.order_by(policies.c.id.desc()).limit(1)).scalar()
        try:
            return RetrainingPolicy() if body is None else RetrainingPolicy.model_validate(body)
        except ValidationError as error:
            raise Unreadable(
                f"the retraining policy of {model} cannot be read: {faults(error)}; set another: "
                f"`tuneloop retraining policy {model} --set FILE --by YOU --reason WHY`"
            ) from None

    def set_retraining(self, model: str, policy: RetrainingPolicy, *, by: str, reason: str) -> None:
        """Append a new revision of a model's retraining policy."""
        body = policy.model_dump(mode="json")
        now = self._clock()
        with self._db.writing() as connection:
            connection.execute(
                sa.insert(policies).values(model=model, kind="retraining", body=body, by=by, reason=reason, at=now)
            )
            audit.record(
                connection,
                at=now,
                actor=by,
                action="policy.retraining",
                subject=model,
                detail={"policy": body, "reason": reason},
            )
