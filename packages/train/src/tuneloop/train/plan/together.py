"""The stages of one recipe added up: they run one after the other, on the same machine. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from tuneloop.registry.printing import table
from tuneloop.train.plan.plan import Plan
from tuneloop.train.plan.show import duration
from tuneloop.train.plan.timing import Seconds


@dataclass(frozen=True)
class Together:
    """Hours and energy of all stages, the memory of the largest, the price of the offer that is cheapest for all."""

    fits: Literal["yes", "perhaps", "no"]
    hours: Seconds
    energy_kwh: Seconds
    usd: Decimal | None

    def as_json(self) -> dict[str, Any]:
        """Every figure, with units in the names."""
        return {
            "fits": self.fits,
            "hours": _bounds(self.hours),
            "energy_kwh": _bounds(self.energy_kwh),
            "usd": None if self.usd is None else str(self.usd),
        }

    def shown(self) -> str:
        """As a person reads it."""
        hours, energy = self.hours, self.energy_kwh
        rows = [
            ("fits", self.fits),
            ("time", f"{duration(hours.estimate)} [{duration(hours.low)}, {duration(hours.high)}]"),
            ("energy", f"{energy.estimate:.2f} kWh [{energy.low:.2f}, {energy.high:.2f}]"),
        ]
        if self.usd is not None:
            rows.append(("cheapest", f"${self.usd}"))
        return table(("all stages", ""), rows)


def together(plans: Sequence[Plan]) -> Together:
    """Add them up; what one stage does not fit, the whole does not."""
    order: tuple[Literal["no", "perhaps", "yes"], ...] = ("no", "perhaps", "yes")
    prices: dict[tuple[str, str, bool], list[Decimal]] = {}
    for cost in (cost for plan in plans for cost in plan.costs):
        prices.setdefault((cost.offer.provider, cost.offer.instance, cost.spot), []).append(cost.usd)
    whole = [sum(found, Decimal(0)) for found in prices.values() if len(found) == len(plans)]
    return Together(
        fits=min((plan.fits for plan in plans), key=order.index),
        hours=_sum([plan.hours for plan in plans]),
        energy_kwh=_sum([plan.energy_kwh for plan in plans]),
        usd=min(whole, default=None),
    )


def _sum(values: Sequence[Seconds]) -> Seconds:
    return Seconds(**{name: sum(getattr(value, name) for value in values) for name in ("estimate", "low", "high")})


def _bounds(value: Seconds) -> dict[str, float]:
    return {name: round(getattr(value, name), 4) for name in ("low", "estimate", "high")}
