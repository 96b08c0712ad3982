"""What a gate policy declares beside the comparison with the champion: metrics, latency, leakage, bias, a signature.

Each is judged by what is on record of the version itself; no data is inconclusive, never a pass. They can be judged
again when more is known: a version that testers were given has latencies, one that was just trained has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tuneloop.registry.errors import InvalidInput, Unavailable, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.gates.compared import compare_again
from tuneloop.registry.gates.verdicts import set_of, within
from tuneloop.registry.nouns import Check, GateReport, Interval, Noun, Version, version_name
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.statistics.intervals import quantile_interval
from tuneloop.registry.versions.kept import verdict_text
from tuneloop.registry.versions.run_files import BIAS, DATA, kept_json

LATENCY, LEAKAGE, SIGNED, COMPARED = "latency p95", "leakage", "signed", "compared with a champion"
BIASED = "bias"
_QUANTILE, _LEVEL = 0.95, 0.95
_NEWEST = 2_000  # answers a latency is judged by
_LOOKED_FOR = ("leakage", "near_leakage")


class Found(Noun):
    """How many training rows the data audit found in an evaluation set, and how many of them were left out."""

    check: str
    action: str  # `off`: it did not look
    rows: int
    dropped: int


class Held(Noun):
    """One attribute of a version against the champion's, as `tuneloop bias check` judged it."""

    verdict: Literal["more", "no more", "not enough data"]
    gap: Interval | None  # nats per token

    @property
    def text(self) -> str:
        """For people."""
        return verdict_text(self.verdict, self.gap)


class Attribute(Noun):
    """What a check for bias kept of one attribute, as far as a gate asks."""

    attribute: str
    against: str | None
    champion: Held | None


def judge_declared(registry: Registry, version: Version, policy: GatePolicy) -> tuple[Check, ...]:
    """Judge a version by what the policy declares, from what is on record now.

    Raises:
        Unreadable: what its run says of its data is damaged.
        Unavailable: the database or MLflow does not answer.
    """
    checks = [within(name, version.metrics.get(name), bounds) for name, bounds in sorted(policy.metrics.items())]
    if policy.latency_p95_ms is not None:
        times_ms = registry.traffic.answered_ms(version.model, version.version, newest=_NEWEST)
        checks.append(latency(times_ms, policy.latency_p95_ms))
    if policy.leakage is not None:
        checks.append(leakage(_found(version, kept_json(registry, version, DATA))))
    if policy.bias is not None:
        champion = _champion(registry, version.model)
        checks.append(bias(_attributes(version, kept_json(registry, version, BIAS)), version, champion))
    if policy.signed:
        checks.append(signed(registry, version))
    return tuple(checks)


def judge_again(registry: Registry, version: Version, *, by: str = "gate", reason: str | None = None) -> GateReport:
    """Judge anew by the policy in force and against the present champion, as far as what is kept allows; recorded.

    What row-by-row comparisons have shown stands: of them, those against the present champion.

    Raises:
        Like `judge_declared`.
    """
    at, model = registry.clock(), version.model  # a policy that is set from now on is another
    policy, now = registry.policies.get(model, GatePolicy), _champion(registry, model)
    free = now is None or registry.routes.has_led(model, version.version)  # no rollback waits for a gate
    champion = None if free else now
    reports = registry.gates.all(model, version.version).whole()
    before = _shown(reports, champion)
    declared = judge_declared(registry, version, policy)
    if before is None:  # nothing that is declared shows that it answers well
        detail = "it never was: a person answers for a first version"
        kept: tuple[Check, ...] = (Check(name=COMPARED, verdict="inconclusive", detail=detail),)
    else:
        compared = compare_again(registry, version, before, policy, champion)
        newest = reports[0]
        was = registry.policies.get(model, GatePolicy, at=newest.at)
        anew = {LATENCY, LEAKAGE, BIASED, SIGNED, *was.metrics, *policy.metrics}
        others = (check for check in newest.checks if set_of(check) is None and check.name not in anew)
        kept = (*compared, *others)
    report = GateReport(
        model=model,
        version=version.version,
        champion=None if before is None else champion or before.champion,
        at=at,
        checks=(*kept, *declared),
    )
    registry.gates.record(report, by=by, reason=reason)
    return report


def waits_for_traffic(report: GateReport) -> bool:
    """Whether all that keeps a report from passing is what only a version that is served can show."""
    left = {(check.name, check.verdict) for check in report.checks if check.verdict != "pass"}
    return bool(left) and left <= {(LATENCY, "inconclusive"), (BIASED, "inconclusive")}


def latency(times_ms: Sequence[float], most_ms: float) -> Check:
    """Whether the 95th percentile of the total time lies within `most_ms`: its whole interval must."""
    asked = f"at most {most_ms:g} ms is asked for"
    if not times_ms:
        return Check(name=LATENCY, verdict="inconclusive", detail=f"nothing it answered is on record; {asked}")
    estimate, low, high = quantile_interval(times_ms, _QUANTILE, _LEVEL)
    if high is None:
        over = low is not None and low > most_ms
        detail = f"{estimate:.0f} ms over {len(times_ms)} answers, too few to bound it from above; {asked}"
        return Check(name=LATENCY, verdict="fail" if over else "inconclusive", detail=detail)
    low = min(times_ms) if low is None else low
    interval = Interval(estimate=estimate, low=low, high=high, level=_LEVEL)
    detail = f"{estimate:.0f} ms, {_LEVEL:.0%} interval [{low:.0f}, {high:.0f}], over {len(times_ms)} answers; {asked}"
    verdict = "pass" if high <= most_ms else "fail" if low > most_ms else "inconclusive"
    return Check.model_validate({"name": LATENCY, "verdict": verdict, "detail": detail, "interval": interval})


def leakage(found: Sequence[Found]) -> Check:
    """Whether any training row also stands in an evaluation set, word for word or nearly."""
    looked = {one.check: one for one in found if one.action != "off"}
    if missing := [name for name in _LOOKED_FOR if name not in looked]:
        names = " and ".join(missing)
        return Check(name=LEAKAGE, verdict="inconclusive", detail=f"its data were not looked at for {names}")
    left = sum(looked[name].rows - looked[name].dropped for name in _LOOKED_FOR)
    dropped = sum(looked[name].dropped for name in _LOOKED_FOR)
    detail = f"{left} training rows stand in an evaluation set, or nearly; {dropped} were left out"
    return Check(name=LEAKAGE, verdict="fail" if left else "pass", detail=detail)


def bias(found: Sequence[Attribute], version: Version, champion: int | None) -> Check:
    """Whether a version expects no more stereotypes than the champion, by every attribute that was checked."""
    if not found:
        detail = f"it was not checked; `tuneloop bias check {version.name}` does, once an engine serves it"
        return Check(name=BIASED, verdict="inconclusive", detail=detail)
    name = version_name(version.model, champion) if champion is not None else None
    if any(one.champion is None or one.against != name for one in found):
        detail = f"it was not held against {name or 'a champion'}; check both again with `tuneloop bias check`"
        return Check(name=BIASED, verdict="inconclusive", detail=detail)
    said = [(one.attribute, one.champion) for one in found if one.champion is not None]
    detail = f"than {name}: " + "; ".join(f"{attribute} {held.text}" for attribute, held in said)
    verdicts = {held.verdict for _, held in said}
    verdict = "fail" if "more" in verdicts else "pass" if verdicts == {"no more"} else "inconclusive"
    return Check.model_validate({"name": BIASED, "verdict": verdict, "detail": detail})


def signed(registry: Registry, version: Version) -> Check:
    """Whether its files, as MLflow has them now, are those that somebody trusted here has signed: as engines verify."""
    if version.signed_by is None:
        return Check(name=SIGNED, verdict="fail", detail="nobody has signed its files; `tuneloop sign` does")
    try:
        registry.versions.verify(version)
    except InvalidInput as error:
        return Check(name=SIGNED, verdict="fail", detail=str(error))
    except Unavailable as error:
        return Check(name=SIGNED, verdict="inconclusive", detail=f"it could not be verified: {error}")
    return Check(name=SIGNED, verdict="pass", detail=f"by key {version.signed_by}")


def _shown(reports: Sequence[GateReport], champion: int | None) -> GateReport | None:
    """The report that shows most: the newest with a comparison, with this champion if there is one; else the newest."""
    compared = [one for one in reports if any(set_of(check) and check.interval for check in one.checks)]
    with_it = [one for one in compared if champion in {None, one.champion}]
    return next(iter((*with_it, *compared, *reports)), None)


def _champion(registry: Registry, model: str) -> int | None:
    route = next(iter(registry.routes.history(model, limit=1).whole()), None)
    return route.champion if route else None


def _attributes(version: Version, kept: dict[str, Any]) -> list[Attribute]:
    try:
        return [
            Attribute.model_validate(
                {
                    "attribute": one["attribute"],
                    "against": kept["champion"],
                    "champion": one["champion"] and {key: one["champion"][key] for key in ("verdict", "gap")},
                }
            )
            for one in kept.get("attributes", [])
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(
            f"MLflow run {version.run_id}: {BIAS} is not what `tuneloop bias check` writes: {error}; check it again"
        ) from None


def _found(version: Version, manifest: dict[str, Any]) -> list[Found]:
    try:
        kept = [one for one in manifest.get("quality", []) if one["check"] in _LOOKED_FOR]
        return [Found.model_validate({name: one[name] for name in Found.model_fields}) for one in kept]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(
            f"MLflow run {version.run_id}: the quality findings in {DATA} are not what training writes: {error}"
        ) from None
