"""What one API key may take: a minute's requests and tokens, requests at once, a month's money; and whose turn it is.

Kept with the key and read by every gateway; how exactly several gateways keep one limit is told in docs/serving.md.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneloop.registry.money import Money

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
MOST = 1_000_000_000
Count = Annotated[int, Field(ge=1, le=MOST)]
Budget = Annotated[Money, Field(le=Decimal(MOST), max_digits=18)]


class KeyLimits(BaseModel):
    """Limits of a key; None: there is none. Months are those of UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None  # prompt and answer together
    streams: Count | None = None  # requests at once, streamed or not
    budget_usd_per_month: Budget | None = None
    priority: Priority = "normal"  # only where requests have to wait for engines

    @property
    def are_shared(self) -> bool:
        """Whether there is a limit that gateways must share out among them."""
        return not (self.requests_per_minute is None and self.tokens_per_minute is None and self.streams is None)

    @property
    def are_none(self) -> bool:
        """Whether nothing is limited; the priority is no limit."""
        return self.budget_usd_per_month is None and not self.are_shared
