"""Amounts of money as settings, bodies and YAML may give them: exact, never through a binary fraction."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def as_decimal(value: Any) -> Any:
    """A number or its text as the decimal it was written as; anything else is left for the type to refuse."""
    try:  # YAML and JSON know no decimals
        return Decimal(str(value)) if type(value) in {int, float, str} else value
    except InvalidOperation:
        return value


Money = Annotated[Decimal, BeforeValidator(as_decimal), Field(gt=0, allow_inf_nan=False)]
