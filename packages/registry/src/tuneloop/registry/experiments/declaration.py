"""What an experiment declares before it starts, and what is kept of one.

A declaration is one strict YAML file. From the start on it stands: nobody may look at results first and choose the
question then.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import rfc8785
from pydantic import (
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import cannot_read, read_text
from tuneloop.registry.nouns import FULL_SHARE_BP, ModelName, Noun, as_tuple
from tuneloop.registry.plain_yaml import PlainYaml

Flag = Literal["error", "correction", "thumbs_down", "thumbs_up"]  # a request has it or not
Amount = Literal["score", "total_ms", "ttft_ms", "queue_ms", "prompt_tokens", "completion_tokens"]
Count = Literal["asked", "answered", "rated"]
Measure = Literal[Flag, Amount, Count]
FLAGS, AMOUNTS, COUNTS = (frozenset(get_args(kind)) for kind in (Flag, Amount, Count))
# What is given a version as a whole: a sticky key, whatever gave it, or only one that the header `x-tuneloop-unit`, the
# body's `user`, or the API key gave; requests with a key from elsewhere then do not count.
Unit = Literal["key", "header", "user", "api_key"]
Mode = Literal["test", "bandit"]
_OF_KIND = {"binary": FLAGS, "mean": AMOUNTS, "ratio": FLAGS | AMOUNTS | COUNTS, "quantile": AMOUNTS - {"score"}}
_LEAST_PER_LOOK = 150
_LATER_KEYS = ("step_every_s",)
_LEAST, _MOST = 1e-9, 1e12  # of an effect or a margin
_MOST_VERSION = 2**31 - 1
_SHAPE = "an experiment: a mapping of keys (model, hypothesis, arms, …) to values"


def _as_number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value  # keys are text


def _no_request(value: Any) -> Any:
    if value == "request":
        raise ValueError(
            "versions are given to keys; where every request is to be drawn by itself, send a fresh x-tuneloop-unit "
            "with each and declare unit: header"
        )
    return value


class Metric(Noun):
    """A number of an arm, computed over its units."""

    model_config = ConfigDict(strict=True)

    kind: Literal["binary", "mean", "ratio", "quantile"]
    measure: Measure
    per: Measure | None = None  # of a ratio: what the sum of `measure` is divided by
    q: float | None = Field(default=None, gt=0, lt=1)  # of a quantile
    goal: Literal["lower", "higher"]  # which way is better

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if self.measure not in _OF_KIND[self.kind]:
            raise ValueError(
                f"measure {self.measure} makes no {self.kind}; {', '.join(sorted(_OF_KIND[self.kind]))} do"
            )
        if (self.kind == "ratio") != (self.per is not None):
            raise ValueError("a ratio needs per, and nothing else has it: what the measure's sum is divided by")
        if (self.kind == "quantile") != (self.q is not None):
            raise ValueError("a quantile needs q, and nothing else has it: 0.95 for the 95th percentile")
        return self

    @property
    def is_share(self) -> bool:
        """Whether it is a share of requests, or a mean of what lies in [0, 1]."""
        if self.per is not None:
            return self.measure in FLAGS and self.per in COUNTS
        return self.kind == "binary" or self.measure == "score"

    @property
    def lower_is_better(self) -> bool:
        """Whether the goal is a lower value."""
        return self.goal == "lower"


def _expect_share(metric: Metric, name: str, value: float) -> None:
    if metric.is_share and value >= 1:
        raise ValueError(f"{name} {value:g} is no difference of shares, which lie between 0 and 1: 0.02 is two points")


class Primary(Metric):
    """What decides."""

    minimum_effect: float = Field(ge=_LEAST, le=_MOST)  # the least difference worth finding, in the metric's unit

    @model_validator(mode="after")
    def _effect_is_possible(self) -> Self:
        _expect_share(self, "minimum_effect", self.minimum_effect)
        return self


class Guardrail(Metric):
    """What must not become worse by more than the margin."""

    margin: float = Field(ge=_LEAST, le=_MOST)  # in the metric's unit

    @model_validator(mode="after")
    def _margin_is_possible(self) -> Self:
        _expect_share(self, "margin", self.margin)
        return self


class Declaration(Noun):
    """Everything that decides what an experiment will say, before it has seen anything."""

    model_config = ConfigDict(strict=True)

    model: ModelName
    hypothesis: str = Field(min_length=1, max_length=2_000)
    unit: Annotated[Unit, BeforeValidator(_no_request)] = "key"
    arms: dict[
        Annotated[int, BeforeValidator(_as_number), Field(ge=1, le=_MOST_VERSION)], Annotated[int, Field(ge=1)]
    ]  # version → share
    control: int | None = None  # None: the champion when it is declared
    primary: Primary
    guardrails: Annotated[tuple[Guardrail, ...], BeforeValidator(as_tuple)] = ()
    covariate: Literal["prior_mean", "prompt_tokens"] | None = None  # known before an arm could change it
    covariate_days: int = Field(default=14, ge=1, le=365)  # how far back `prior_mean` looks
    alpha: float = Field(default=0.05, ge=1e-6, le=0.2)  # of the primary metric's decision, over all looks
    power: float = Field(default=0.8, ge=0.5, lt=1)
    max_units: int | None = Field(default=None, ge=1, le=1_000_000_000)  # declared: looked at so many times only
    looks: int = Field(default=5, ge=1, le=20)  # with max_units: at equal parts of them
    mode: Mode = "test"
    floor_bp: int = Field(default=1_000, ge=100, le=5_000)  # of a bandit: the least share of each arm
    # Of a bandit: how often a controller moves the shares; None: whenever somebody asks for a step, and then alone.
    step_every_s: float | None = Field(default=None, ge=60, le=365 * 86_400.0, allow_inf_nan=False)

    @field_validator("arms")
    @classmethod
    def _arms_share_everything(cls, arms: dict[int, int]) -> dict[int, int]:
        if len(arms) < 2:
            raise ValueError("an experiment compares at least two versions")
        if total := sum(arms.values()) - FULL_SHARE_BP:
            raise ValueError(f"the shares sum to {total + FULL_SHARE_BP}, not {FULL_SHARE_BP} basis points")
        return arms

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.control is not None and self.control not in self.arms:
            raise ValueError(f"control {self.control} is none of the arms {', '.join(map(str, self.arms))}")
        if self.covariate is not None and self.primary.kind == "quantile":
            raise ValueError("covariate: a quantile takes none")
        if self.max_units is not None and self._smallest_look < _LEAST_PER_LOOK:
            raise ValueError(
                f"max_units {self.max_units} gives the smallest arm {self._smallest_look:.0f} units a look, under "
                f"{_LEAST_PER_LOOK}: too few to take means for normal; ask for fewer looks, or more units"
            )
        if self.mode == "bandit" and self.max_units is not None:
            raise ValueError(
                "max_units: a bandit moves the shares meanwhile and is judged by the always-valid sequence"
            )
        if self.mode != "bandit" and self.step_every_s is not None:
            raise ValueError("step_every_s: only a bandit moves its shares; mode: bandit makes it one")
        if self.mode == "bandit" and self.primary.kind == "quantile":
            raise ValueError("primary: a bandit needs a binary, mean or ratio metric")
        if self.mode == "bandit" and self.floor_bp * len(self.arms) > FULL_SHARE_BP:
            raise ValueError(f"floor_bp {self.floor_bp} for each of {len(self.arms)} arms is more than there is")
        return self

    @property
    def _smallest_look(self) -> float:
        return (self.max_units or 0) * min(self.arms.values()) / FULL_SHARE_BP / self.looks

    def counts(self, key_source: str) -> bool:
        """Whether a request whose sticky key came from there is one of a unit."""
        return key_source != "request" and self.unit in {"key", key_source}

    @property
    def treatments(self) -> tuple[int, ...]:
        """Every arm but the control."""
        return tuple(version for version in self.arms if version != self.control)

    @property
    def metrics(self) -> tuple[tuple[str, Primary | Guardrail], ...]:
        """What it is judged by, and as what."""
        return (("primary", self.primary), *(("guardrail", guardrail) for guardrail in self.guardrails))

    @property
    def level(self) -> float:
        """Of one treatment's interval: alpha is shared among the treatments (Bonferroni)."""
        return 1 - self.alpha / len(self.treatments)

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON (RFC 8785): what the audit log keeps of it when it starts.

        Keys that declarations have got since are left out where nothing was declared by them, so that an experiment
        which started before still has the digest it started with.
        """
        without = {key for key in _LATER_KEYS if getattr(self, key) is None}
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json", exclude=without))).hexdigest()


class ExperimentPlan(Noun):
    """What recent traffic said when the experiment was declared; None where it said nothing."""

    days_seen: float  # of the traffic it was computed from
    units_seen: int  # that had the primary metric
    baseline: float | None = None
    deviation: float | None = None  # of one unit
    fixed_units: int | None = None  # for one look at the end
    units: int | None = None  # as it will be looked at
    power: float | None = None  # with that many
    days: float | None = None  # for them to come


class ExperimentState(StrEnum):
    """draft → running → stopped."""

    DRAFT = "draft"
    RUNNING = "running"
    STOPPED = "stopped"


class Experiment(Noun):
    """A declared experiment and where it stands."""

    id: str
    model: ModelName
    declaration: Declaration
    plan: ExperimentPlan
    state: ExperimentState
    by: str
    reason: str
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    first_revision: int | None = None  # of the route, at its start
    stopped_at: AwareDatetime | None = None
    looked_at: AwareDatetime | None = None  # when somebody last saw to its step, whether it moved anything or not


def read_declaration(path: Path) -> Declaration:
    """A declaration from its file.

    Raises:
        InvalidInput: it cannot be read, or is none: every error at once, with its line.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, "give a YAML file that declares an experiment") from None
    document = PlainYaml(str(path), text, _SHAPE)
    try:
        declared = Declaration.model_validate(document.values)
    except ValidationError as error:
        for one in error.errors():
            document.add(one, Declaration)
        raise InvalidInput("\n".join(document.errors)) from None
    if document.errors:
        raise InvalidInput("\n".join(document.errors))
    return declared
