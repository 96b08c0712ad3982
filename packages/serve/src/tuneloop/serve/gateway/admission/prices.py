"""What tokens cost, by model: exact, in US dollars."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tuneloop.registry.money import as_decimal

_MILLION = Decimal(1_000_000)
_PerMillion = Annotated[Decimal, BeforeValidator(as_decimal), Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """Of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_usd_per_million: _PerMillion
    completion_usd_per_million: _PerMillion

    def of(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """What a request, or a month, of so many tokens costs; to the last digit."""
        prompt, completion = self.prompt_usd_per_million, self.completion_usd_per_million
        return (prompt * prompt_tokens + completion * completion_tokens) / _MILLION


def _from_variable(value: Any) -> Any:
    """A variable is a text; in it prices stand as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(
            'write prices as JSON: {"MODEL": {"prompt_usd_per_million": "0.10", "completion_usd_per_million": "0.40"}}'
        ) from None


Prices = Annotated[dict[str, Price], BeforeValidator(_from_variable)]
