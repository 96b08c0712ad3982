"""A report: what an experiment says, as values; `words` says it to people, `page` draws it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime

from tuneloop.registry.experiments.analysis import Analysis, Compared, Guarded, Look
from tuneloop.registry.experiments.declaration import Experiment, Metric
from tuneloop.registry.experiments.gather import Evidence, LeftOut
from tuneloop.registry.nouns import Interval, Noun

ExperimentVerdict = Literal["better", "worse", "harmful", "guardrails open", "no difference", "not decided"]


class ArmUnits(Noun):
    """How many came to one arm."""

    version: int
    is_control: bool
    units: int
    expected_units: float
    requests: int


class LookPoint(Noun):
    """One point of the curve: treatment minus control with its interval."""

    at: AwareDatetime
    units: int
    difference: Interval
    planned: int  # which of the planned looks; 0: any


class GuardrailResult(Noun):
    """A guardrail of one treatment."""

    metric: Metric
    margin: float
    verdict: Literal["fine", "harmed", "not decided"]
    control: float | None = None
    treatment: float | None = None
    difference: Interval | None = None


class TreatmentResult(Noun):
    """One treatment against the control."""

    version: int
    verdict: ExperimentVerdict
    control: float | None = None
    treatment: float | None = None
    difference: Interval | None = None
    guardrails: tuple[GuardrailResult, ...] = ()
    curve: tuple[LookPoint, ...] = ()
    more_units: int | None = None  # until it is likely decided
    more_days: float | None = None


class Report(Noun):
    """What an experiment says at a time; no treatment is in it while the split is not what was declared."""

    experiment: Experiment
    at: AwareDatetime
    stopped_by: str | None = None
    arms: tuple[ArmUnits, ...]
    strata: tuple[str, ...]  # the revisions of each and their shares
    units_with_metric: int
    mismatch_p: float
    hidden: bool
    left_out: dict[str, int]
    other_revisions: tuple[str, ...]
    gone_until: AwareDatetime | None = None  # until when its requests are older than their retention policy allows
    treatments: tuple[TreatmentResult, ...]


def report_of(
    experiment: Experiment,
    evidence: Evidence,
    analysed: Analysis,
    at: datetime,
    stopped_by: str | None = None,
    gone_until: datetime | None = None,
) -> Report:
    """The analysis as a report."""
    rows = zip(evidence.arms, analysed.units, analysed.expected, evidence.requests, strict=True)
    return Report(
        experiment=experiment,
        at=at,
        stopped_by=stopped_by,
        arms=tuple(
            ArmUnits(
                version=version,
                is_control=version == experiment.declaration.control,
                units=units,
                expected_units=expected,
                requests=requests,
            )
            for version, units, expected, requests in rows
        ),
        strata=tuple(
            f"revision {stratum.revisions[0]}"
            + (f"–{stratum.revisions[-1]}" if len(stratum.revisions) > 1 else "")
            + ": "
            + " ".join(f"{arm}={bp}" for arm, bp in zip(evidence.arms, stratum.shares_bp, strict=True))
            for stratum in evidence.strata
        ),
        units_with_metric=analysed.with_metric,
        mismatch_p=analysed.mismatch_p,
        hidden=analysed.is_hidden,
        left_out=_counted(evidence.left_out),
        other_revisions=evidence.left_out.revisions,
        gone_until=gone_until,
        treatments=tuple(_treatment(experiment, compared) for compared in analysed.compared),
    )


def _counted(left: LeftOut) -> dict[str, int]:
    return {
        "requests without a sticky identity": left.without_identity,
        "requests whose key something else gave than the declared unit": left.other_source,
        "requests that pinned their version": left.pinned,
        "requests of keys that are held out": left.held_out,
        "units that were given a version by name": left.overridden_units,
        "units that a later split gave to another arm (they count until then)": left.moved_units,
        "units that met another arm under another split (they count as they began)": left.crossed_units,
        "requests under another split": left.other_split,
    }


def _treatment(experiment: Experiment, compared: Compared) -> TreatmentResult:
    level, look = experiment.declaration.level, compared.deciding
    return TreatmentResult(
        version=compared.version,
        verdict=_verdict(experiment, compared, look),
        control=None if look is None else look.control,
        treatment=None if look is None else look.treatment,
        difference=None if look is None else _interval(look, level),
        guardrails=tuple(_guardrail(one, level) for one in compared.guardrails),
        curve=tuple(
            LookPoint(
                at=datetime.fromtimestamp(point.at_s, UTC),
                units=point.units,
                difference=_interval(point, level),
                planned=point.planned,
            )
            for point in compared.looks
        ),
        more_units=compared.more_units,
        more_days=None if compared.more_s is None else compared.more_s / 86_400,
    )


def _verdict(experiment: Experiment, compared: Compared, look: Look | None) -> ExperimentVerdict:
    """A harm counts before anything else; a gain counts once every guardrail is known to be fine."""
    declared = experiment.declaration
    if any(guarded.harmed for guarded in compared.guardrails):
        return "harmful"
    if look is not None and look.decides:
        if (look.high < 0) != declared.primary.lower_is_better:
            return "worse"
        return "better" if all(guarded.is_fine for guarded in compared.guardrails) else "guardrails open"
    if look is not None and max(-look.low, look.high) < declared.primary.minimum_effect:
        return "no difference"
    return "no difference" if look is not None and look.planned == declared.looks else "not decided"


def _guardrail(guarded: Guarded, level: float) -> GuardrailResult:
    look = guarded.look
    return GuardrailResult(
        metric=guarded.metric,
        margin=guarded.margin,
        verdict="harmed" if guarded.harmed else "fine" if guarded.is_fine else "not decided",
        control=None if look is None else look.control,
        treatment=None if look is None else look.treatment,
        difference=None if look is None else _interval(look, level),
    )


def _interval(look: Look, level: float) -> Interval:
    return Interval(estimate=look.estimate, low=look.low, high=look.high, level=level)
