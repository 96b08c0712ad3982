"""What a version's comparison with a champion says, also once the gate policy or the champion is another.

Training compares row by row and keeps, in the report, each set's difference with its interval; its run keeps the sets'
rows and digests, and perplexities with theirs. From those it is judged anew. What they do not tell is inconclusive,
with the reason: a pass is never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

from pydantic import ValidationError

from tuneloop.registry.database import faults
from tuneloop.registry.errors import NotFound, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.gates.verdicts import NOT_WORSE, better, not_worse, set_of, too_few
from tuneloop.registry.nouns import FRESH, Check, GateReport, Interval, Version, version_name
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.versions.kept import KeptData, KeptSet
from tuneloop.registry.versions.run_files import DATA, kept_json


def compare_again(
    registry: Registry, version: Version, before: GateReport, policy: GatePolicy, champion: int | None
) -> tuple[Check, ...]:
    """The comparisons of an earlier report, by the policy now in force and against `champion`.

    Args:
        registry: where the figures are kept.
        version: the challenger.
        before: its report.
        policy: the gate policy now in force.
        champion: to hold it against; None: the same as before.

    Raises:
        Unreadable: what a run says of its data is damaged.
        Unavailable: the database or MLflow does not answer.
    """
    was = registry.policies.get(version.model, GatePolicy, at=before.at)
    there = {check.name: check for check in before.checks if set_of(check) is not None}
    never = {f"{NOT_WORSE}{name}" for name in was.margins.keys() - policy.margins.keys()}
    there = {name: check for name, check in there.items() if name not in never or check.interval is not None}
    against = None if champion in {None, before.champion} else _Against.of(registry, version, champion)
    same_rules = all(getattr(was, name) == getattr(policy, name) for name in ("margin", "margins", "min_rows"))
    if against is None and same_rules:
        return tuple(there.values())
    sets = _kept(registry, version).sets
    judged = [_again(check, sets, was, policy, against) for check in there.values()]
    unmeasured = (f"{NOT_WORSE}{name}" for name in sorted(policy.margins))
    detail = "it was not measured on this set"
    judged += [Check(name=name, verdict="inconclusive", detail=detail) for name in unmeasured if name not in there]
    return tuple(judged)


@dataclass(frozen=True)
class _Against:
    """A version beside another champion than the one that training held it against."""

    champion: str
    why_not: str | None  # why nothing of the two can be compared
    own: Mapping[str, float]
    theirs: Mapping[str, float]
    sets: Mapping[str, KeptSet]  # of the champion

    @classmethod
    def of(cls, registry: Registry, version: Version, number: int | None) -> _Against:
        assert number is not None
        name = version_name(version.model, number)
        try:
            other = registry.versions.get(version.model, number)
        except NotFound:
            return cls(name, f"{name} is gone from MLflow", {}, {}, {})
        if (other.tokenizer_digest, other.template_digest) != (version.tokenizer_digest, version.template_digest):
            return cls(name, f"{name} reads with another tokenizer or chat template", {}, {}, {})
        own, theirs = (registry.versions.run_metrics(one.run_id) for one in (version, other))
        return cls(name, None, own, theirs, _kept(registry, other).sets)

    def difference(self, set_name: str, measured: KeptSet | None) -> Interval | str:
        """Of the NLL per token on a set; or why there is none.

        The intervals' widths add up: never narrower than the difference's own, however alike the two answer.
        """
        if self.why_not is not None:
            return self.why_not
        if measured is None or (there := self.sets.get(set_name)) is None or there.digest != measured.digest:
            return f"{self.champion} was not measured on these rows"
        ends = [f"perplexity.{set_name}{end}" for end in ("", ".low", ".high")]
        found = [[log(side[end]) for end in ends if side.get(end, 0.0) > 0] for side in (self.own, self.theirs)]
        if any(len(side) < len(ends) for side in found):
            return "the runs keep no perplexity with its interval of both"
        (own, low, high), (other, other_low, other_high) = found
        return Interval(estimate=own - other, low=low - other_high, high=high - other_low)


def _again(
    check: Check, sets: Mapping[str, KeptSet], was: GatePolicy, policy: GatePolicy, against: _Against | None
) -> Check:
    set_name = set_of(check)
    assert set_name is not None
    if check.interval is None:  # too few rows, or none: that no policy changes after the fact
        return check.model_copy(update={"verdict": "inconclusive"})
    measured, interval = sets.get(set_name), check.interval
    if against is not None:
        found = against.difference(set_name, measured)
        if isinstance(found, str):
            return _undecided(check, f"{found}: train again from {against.champion}, or let a person approve it")
        interval = found
    rows, least = None if measured is None else measured.rows, policy.min_rows
    if least != was.min_rows and (least is None or rows is None):
        why = "how many rows its recipe asks for, or had, is not known here: name `min_rows` in the gate policy"
        return _undecided(check, why, interval)
    if least is not None and rows is not None and (short := too_few(check.name, rows, least)) is not None:
        return _undecided(check, short.detail, interval)
    then, now = (one.margins.get(set_name, one.margin) for one in (was, policy))
    if set_name != FRESH and (against is not None or then != now or check.verdict == "inconclusive"):
        return not_worse(set_name, interval, rows, now)
    return better(interval, rows) if set_name == FRESH else check  # by its recipe's margin, which stands


def _undecided(check: Check, why: str, interval: Interval | None = None) -> Check:
    return Check(name=check.name, verdict="inconclusive", detail=why, interval=interval)


def _kept(registry: Registry, version: Version) -> KeptData:
    try:
        return KeptData.model_validate(kept_json(registry, version, DATA))
    except ValidationError as error:
        raise Unreadable(
            f"MLflow run {version.run_id}: {DATA} is not what training writes: {faults(error)}; it was changed by hand"
        ) from None
