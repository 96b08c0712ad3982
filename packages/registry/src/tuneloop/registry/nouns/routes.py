"""Routes and their arms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from tuneloop.registry.nouns.base import FULL_SHARE_BP, ModelName, Noun

Span = tuple[int, int]  # places of the split, from the first to before the second


class Arm(Noun):
    """One version's share of a route. A weight of 0 keeps it loaded without traffic (staged, or ready for rollback)."""

    version: int = Field(ge=1)
    weight_bp: int = Field(ge=0, le=FULL_SHARE_BP)
    places: tuple[Span, ...] | None = None  # which it owns, in the order it took them; None: those its order gives it


def in_order(arms: Sequence[Arm]) -> tuple[tuple[Span, ...], ...]:
    """The places of each arm where none names its own: one run after the other, from 0 upwards."""
    ends = accumulate(arm.weight_bp for arm in arms)
    return tuple(((end - arm.weight_bp, end),) if arm.weight_bp else () for arm, end in zip(arms, ends, strict=True))


class Shadow(Noun):
    """A version that is sent copies of requests and answers nobody; of which keys, says `assignment.shadowed`."""

    version: int = Field(ge=1)
    share_bp: int = Field(ge=1, le=FULL_SHARE_BP)  # of the keys

    @property
    def text(self) -> str:
        """`8=500`, as `tuneloop route shadow` takes it."""
        return f"{self.version}={self.share_bp}"


class Route(Noun):
    """Which versions of a model get which share; append-only, one row per revision.

    The champion is the last arm. Places of the split are owned in the order of `arms`, from 0 upwards, unless the arms
    name theirs: of three or more each keeps its own while the others' shares change (`routes.arranging`).
    """

    model: ModelName
    revision: int = Field(ge=1)
    arms: tuple[Arm, ...]
    salt: str
    by: str
    reason: str
    at: AwareDatetime
    forced: bool = False
    overrides: dict[str, int] = {}  # hash of a sticky key → the version it gets, whatever the split says
    holdout_bp: int = Field(
        default=0, ge=0, lt=FULL_SHARE_BP
    )  # share of the keys that get the champion, whatever it says
    shadow: Shadow | None = None  # an arm without a share, which is sent copies

    @model_validator(mode="after")
    def _arms_make_a_whole(self) -> Self:
        versions = [arm.version for arm in self.arms]
        if len(set(versions)) != len(versions):
            raise ValueError(f"a version stands twice in the split {self.split_text}")
        total = sum(arm.weight_bp for arm in self.arms)
        if total != FULL_SHARE_BP:
            raise ValueError(
                f"weights sum to {total}, not {FULL_SHARE_BP} basis points ({self.split_text}); "
                f"add {FULL_SHARE_BP - total} to one arm"
            )
        if any(arm.places is not None for arm in self.arms):
            self._places_make_a_whole()
        if strangers := set(self.overrides.values()) - set(versions):
            raise ValueError(f"keys are overridden to versions {sorted(strangers)}, which are no arms of the route")
        if self.shadow is not None and self.split.get(self.shadow.version) != 0:
            raise ValueError(f"the shadow {self.shadow.version} is no arm without a share ({self.split_text})")
        return self

    def _places_make_a_whole(self) -> None:
        for arm, spans in zip(self.arms, self.spans, strict=True):
            if (owned := sum(end - first for first, end in spans)) != arm.weight_bp:
                raise ValueError(f"version {arm.version} names {owned} places for {arm.weight_bp} basis points")
        runs = sorted(span for spans in self.spans for span in spans)
        begins, ends = [first for first, _ in runs], [end for _, end in runs]
        if any(first >= end for first, end in runs) or begins != [0, *ends[:-1]] or ends[-1] != FULL_SHARE_BP:
            raise ValueError(f"the arms do not name each of the {FULL_SHARE_BP:,} places once: {runs}")

    @property
    def champion(self) -> int:
        """The stable arm: what serves when the assigned version cannot."""
        return self.arms[-1].version

    @property
    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """The places of each arm, in the order in which it took them."""
        if any(arm.places is not None for arm in self.arms):
            return tuple(arm.places or () for arm in self.arms)
        return in_order(self.arms)

    @property
    def split(self) -> dict[int, int]:
        """Version → basis points."""
        return {arm.version: arm.weight_bp for arm in self.arms}

    @property
    def split_text(self) -> str:
        """`2=1000 1=9000`, as `tuneloop route set` takes it."""
        return " ".join(f"{arm.version}={arm.weight_bp}" for arm in self.arms)
