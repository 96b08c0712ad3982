"""What traffic says about an experiment: its strata, its units, and what they contributed to each metric.

Counted are requests that the split gave an arm of the experiment since its start, under revisions with the declared
shares. A unit belongs to the arm and the stratum it came to first. What is left out is counted and said. Reads every
request since the start, without its text: about 5 s for 100,000 with feedback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from tuneloop.registry.experiments.declaration import Declaration, Experiment, Metric
from tuneloop.registry.experiments.effect import Floats, Indices
from tuneloop.registry.experiments.measures import Contribution, contributions
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route
from tuneloop.registry.routes.assignment import held_out
from tuneloop.registry.traffic import Opinion, Outcome

Opinions = Mapping[str, Sequence[Opinion]]


@dataclass(frozen=True)
class Stratum:
    """Revisions in a row with the same shares."""

    revisions: tuple[int, ...]
    shares_bp: tuple[int, ...]  # in the order of the arms


@dataclass(frozen=True)
class Stream:
    """What units contributed to one metric, in order of time."""

    at_s: Floats  # seconds since the epoch
    unit: Indices
    value: Floats
    count: Floats


@dataclass(frozen=True)
class LeftOut:
    """What does not count, and why."""

    without_identity: int = 0  # requests that no sticky key holds together
    other_source: int = 0  # requests whose key something else gave than the declared unit
    pinned: int = 0  # requests that named their version: the split had no say
    held_out: int = 0  # requests of keys that the route keeps with the champion
    overridden_units: int = 0  # that were given a version by name
    moved_units: int = 0  # that a later split gave to another arm; they count until then
    crossed_units: int = 0  # that met another arm while another split was in force; they count as they began
    other_split: int = 0  # requests under a revision with other shares
    revisions: tuple[str, ...] = ()  # those revisions


@dataclass(frozen=True)
class Evidence:
    """Everything an analysis needs; arms are numbered, the control is 0."""

    arms: tuple[int, ...]
    strata: tuple[Stratum, ...]
    arm: Indices  # of each unit
    stratum: Indices  # of each unit
    covariate: Floats  # of each unit; 0 for all without one
    requests: tuple[int, ...]  # of each arm
    streams: tuple[Stream, ...]  # the primary metric's, then the guardrails'
    left_out: LeftOut


def gather(registry: Registry, experiment: Experiment, until: datetime) -> Evidence:
    """The evidence of a started experiment up to a time.

    Raises:
        Unreadable: a revision since the start cannot be read, so who was given what is not known.
    """
    assert experiment.started_at is not None, "a draft has no traffic"
    assert experiment.first_revision is not None, "it started under one"
    declared = experiment.declaration
    since = registry.routes.back(experiment.model, first=experiment.first_revision)
    history = [route for route in since if route.at <= until][::-1]
    strata, others = strata_of(declared, history)
    outcomes, opinions = registry.traffic.outcomes(experiment.model, since=experiment.started_at, until=until)
    sorting = _Sorting(declared, strata, history)
    kept = [outcome for outcome in outcomes if sorting.counts(outcome)]
    return Evidence(
        arms=sorting.arms,
        strata=strata,
        arm=np.array(sorting.arm, dtype=np.int64),
        stratum=np.array(sorting.stratum, dtype=np.int64),
        covariate=_covariate(registry, experiment, sorting.unit, kept),
        requests=tuple(int(n) for n in np.bincount(_arms(sorting, kept), minlength=len(sorting.arms))),
        streams=tuple(
            stream_of(metric, kept, opinions, sorting.unit) for metric in (declared.primary, *declared.guardrails)
        ),
        left_out=sorting.left_out(others),
    )


def arms_of(declared: Declaration) -> tuple[int, ...]:
    """The versions in the order arms are numbered: the control, then the treatments."""
    assert declared.control is not None, "the control is filled in when an experiment is declared"
    return (declared.control, *declared.treatments)


def strata_of(declared: Declaration, history: Sequence[Route]) -> tuple[tuple[Stratum, ...], tuple[Route, ...]]:
    """The strata of a route's revisions, the oldest first, and the revisions with other shares than those declared.

    A bandit moves the shares: any that give each of its arms some, and nobody else, are its own.
    """
    arms, strata, others, before = arms_of(declared), [], [], None
    for route in history:
        shares = {arm.version: arm.weight_bp for arm in route.arms if arm.weight_bp > 0}
        ours = set(shares) == set(arms) if declared.mode == "bandit" else shares == declared.arms
        if not ours:
            others.append(route)
        elif shares == before:
            strata[-1] = Stratum((*strata[-1].revisions, route.revision), strata[-1].shares_bp)
        else:
            strata.append(Stratum((route.revision,), tuple(shares[arm] for arm in arms)))
        before = shares if ours else None
    return tuple(strata), tuple(others)


class _Sorting:
    """Which unit a request is of, which arm and stratum the unit, and what does not count."""

    def __init__(self, declared: Declaration, strata: Sequence[Stratum], history: Sequence[Route]) -> None:
        self.arms = arms_of(declared)
        self._declared = declared
        self._routes = {route.revision: route for route in history}
        self.unit: dict[str, int] = {}  # key hash → number
        self.arm: list[int] = []
        self.stratum: list[int] = []
        self._number = {version: number for number, version in enumerate(self.arms)}
        self._strata = {r: number for number, stratum in enumerate(strata) for r in stratum.revisions}
        self._overridden = {key for route in history for key in route.overrides}
        self._seen_overridden: set[str] = set()
        self._moved: set[int] = set()
        self._elsewhere: dict[str, set[int]] = {}
        self._without_identity = self._other_source = self._pinned = self._held_out = self._other_split = 0

    def counts(self, outcome: Outcome) -> bool:
        """Whether a request counts; its unit is known from then on."""
        key, version = outcome.key_hash, outcome.assigned_version
        if outcome.key_source == "request":
            self._without_identity += 1
        elif not self._declared.counts(outcome.key_source):
            self._other_source += 1
        elif key in self._overridden:
            self._seen_overridden.add(key)
        elif version is None:
            route = self._routes.get(outcome.revision or 0)
            if route is not None and route.holdout_bp > 0 and held_out(route, key):
                self._held_out += 1
            else:
                self._pinned += 1
        elif outcome.revision not in self._strata:
            self._other_split += 1
            self._elsewhere.setdefault(key, set()).add(version)
        else:
            return self._is_its_arm(key, self._number[version], self._strata[outcome.revision])
        return False

    def _is_its_arm(self, key: str, arm: int, stratum: int) -> bool:
        unit = self.unit.setdefault(key, len(self.unit))
        if unit == len(self.arm):
            self.arm.append(arm)
            self.stratum.append(stratum)
        if self.arm[unit] != arm:
            self._moved.add(unit)
        return unit not in self._moved

    def left_out(self, others: Sequence[Route]) -> LeftOut:
        """What does not count."""
        crossed = sum(
            1
            for key, versions in self._elsewhere.items()
            if key in self.unit and versions != {self.arms[self.arm[self.unit[key]]]}
        )
        return LeftOut(
            without_identity=self._without_identity,
            other_source=self._other_source,
            pinned=self._pinned,
            held_out=self._held_out,
            overridden_units=len(self._seen_overridden),
            moved_units=len(self._moved),
            crossed_units=crossed,
            other_split=self._other_split,
            revisions=tuple(f"{route.revision} ({route.split_text}, by {route.by})" for route in others),
        )


def _arms(sorting: _Sorting, kept: Sequence[Outcome]) -> list[int]:
    return [sorting.arm[sorting.unit[outcome.key_hash]] for outcome in kept]


def stream_of(metric: Metric, outcomes: Iterable[Outcome], opinions: Opinions, units: Mapping[str, int]) -> Stream:
    """What these requests contributed to a metric; requests of unknown units did not."""
    found: list[tuple[Contribution, int]] = [
        (part, unit)
        for outcome in outcomes
        if (unit := units.get(outcome.key_hash)) is not None
        for part in contributions(metric, outcome, opinions.get(outcome.id, ()))
    ]
    found.sort(key=lambda pair: pair[0].at)
    return Stream(
        at_s=np.array([part.at.timestamp() for part, _ in found], dtype=np.float64),
        unit=np.array([unit for _, unit in found], dtype=np.int64),
        value=np.array([part.value for part, _ in found], dtype=np.float64),
        count=np.array([part.weight for part, _ in found], dtype=np.float64),
    )


def _covariate(registry: Registry, experiment: Experiment, units: Mapping[str, int], kept: Sequence[Outcome]) -> Floats:
    """Of each unit what was known before an arm could change it; the mean of the others' where it is not known."""
    declared, values = experiment.declaration, np.full(len(units), np.nan)
    if declared.covariate == "prior_mean":
        assert experiment.started_at is not None
        since = experiment.started_at - timedelta(days=declared.covariate_days)
        earlier, opinions = registry.traffic.outcomes(experiment.model, since=since, until=experiment.started_at)
        prior = stream_of(declared.primary, earlier, opinions, units)
        value, count = (np.bincount(prior.unit, sums, minlength=len(units)) for sums in (prior.value, prior.count))
        values[count > 0] = value[count > 0] / count[count > 0]
    elif declared.covariate == "prompt_tokens":
        for outcome in reversed(kept):  # the first request's stays
            values[units[outcome.key_hash]] = np.nan if outcome.prompt_tokens is None else outcome.prompt_tokens
    known = ~np.isnan(values)
    return np.where(known, values, values[known].mean() if known.any() else 0.0)
