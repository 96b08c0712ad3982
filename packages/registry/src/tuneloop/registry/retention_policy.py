"""How long what a model was asked and answered is kept: its texts, and the records that held them.

A model without a policy of its own goes by that of every other model (`*`), and without that all is kept for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from tuneloop.registry.database import Database, faults
from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.in_force import newest_of
from tuneloop.registry.nouns import Noun

KIND = "retention"  # of these policies' rows
Days = Annotated[int, Field(ge=1, le=36_525)]


class RetentionPolicy(Noun):
    """After how many days what is stored goes; None: never."""

    model_config = ConfigDict(strict=True)

    text_days: Days | None = None  # what was said, in requests, copies, feedback and the monitor's examples
    record_days: Days | None = None  # requests, copies and feedback themselves, with what text they still have

    @model_validator(mode="after")
    def _text_goes_first(self) -> Self:
        if self.text_days is not None and self.record_days is not None and self.record_days < self.text_days:
            raise ValueError(
                f"record_days {self.record_days} is less than text_days {self.text_days}: a record's text goes with it"
            )
        return self

    @property
    def longest_text_days(self) -> int | None:
        """After how many days no text is left: with its record at the latest."""
        return self.record_days if self.text_days is None else self.text_days

    def texts_until(self, now: datetime) -> datetime | None:
        """Texts of then and before go; None: none does."""
        return _before(now, self.longest_text_days)

    def records_until(self, now: datetime) -> datetime | None:
        """Records of then and before go; None: none does."""
        return _before(now, self.record_days)


def _before(now: datetime, days: int | None) -> datetime | None:
    return None if days is None else now - timedelta(days=days)


@dataclass(frozen=True)
class CurrentRetention:
    """The policies in force, and what is wrong with those that cannot be read: by them nothing is deleted."""

    by_model: Mapping[str, RetentionPolicy]  # `*`: that of every other model
    unreadable: Mapping[str, str]

    def of(self, model: str) -> RetentionPolicy:
        """A model's own policy, or that of every other; the default where there is neither.

        Raises:
            Unreadable: the one that counts cannot be read.
        """
        for name in (model, EVERY_MODEL):
            if name in self.unreadable:
                raise Unreadable(self.unreadable[name])
            if name in self.by_model:
                return self.by_model[name]
        return RetentionPolicy()

    @property
    def strictest(self) -> RetentionPolicy:
        """What goes first by any of them, for what may be any model's."""
        texts = [days for policy in self.by_model.values() if (days := policy.longest_text_days) is not None]
        records = [policy.record_days for policy in self.by_model.values() if policy.record_days is not None]
        return RetentionPolicy(text_days=min(texts, default=None), record_days=min(records, default=None))


def current_retention(database: Database) -> CurrentRetention:
    """The retention policies in force.

    Raises:
        Unavailable: the database does not answer.
    """
    found: dict[str, RetentionPolicy] = {}
    unreadable: dict[str, str] = {}
    for model, body in newest_of(database, KIND):
        try:
            found[model] = RetentionPolicy.model_validate(body)
        except ValidationError as error:
            named = "" if model == EVERY_MODEL else f" {model}"
            unreadable[model] = (
                f"the retention policy of {model} cannot be read, and nothing is deleted by it: {faults(error)}; set "
                f"another: `tuneloop retention{named} --set FILE --by YOU --reason WHY`"
            )
    return CurrentRetention(found, unreadable)
