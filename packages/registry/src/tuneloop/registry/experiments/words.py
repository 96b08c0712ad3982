"""A report in the words of somebody who ships products: which version, by how much, how sure, what to do next; pure."""

from __future__ import annotations

from tuneloop.registry.experiments.declaration import FLAGS, Guardrail, Metric, Primary
from tuneloop.registry.experiments.report import GuardrailResult, Report, TreatmentResult
from tuneloop.registry.nouns import Interval, version_name

_NAMES = {
    "error": "failed requests",
    "correction": "corrected answers",
    "thumbs_down": "thumbs-down",
    "thumbs_up": "thumbs-up",
    "score": "score",
    "total_ms": "total time",
    "ttft_ms": "time to first token",
    "queue_ms": "time in the queue",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
    "asked": "requests",
    "answered": "answered requests",
    "rated": "rated answers",
}
_ONE_OF = {"asked": "request", "answered": "answered request", "rated": "rated answer"}
UNITS = {
    "key": "one sticky key",
    "header": "one value of x-tuneloop-unit",
    "user": "one user, as requests name it",
    "api_key": "one API key, of requests that name neither x-tuneloop-unit nor a user",
}
_MINUS = "\u2212"
_OPEN = frozenset({"not decided", "guardrails open"})


def metric_name(metric: Metric) -> str:
    """`thumbs-down`, `mean total time`, `p95 of total time`, `failed requests per request`."""
    name = _NAMES[metric.measure]
    if metric.q is not None:
        return f"p{metric.q * 100:g} of {name}"
    if metric.per is not None:
        return f"{name} per {_ONE_OF.get(metric.per, _NAMES[metric.per])}"
    return name if metric.measure in FLAGS else f"mean {name}"


def value(metric: Metric, amount: float) -> str:
    """An amount in the metric's unit: `7.1 %`, `312 ms`, `0.83`."""
    if _in_percent(metric):
        return f"{amount * 100:.1f} %"
    if metric.per is None and metric.measure.endswith("_ms"):
        return f"{amount:,.0f} ms"
    return f"{amount:.4g}"


def change(metric: Metric, amount: float) -> str:
    """A difference, with its sign: `−1.9 points`, `+12 ms`."""
    sign = _MINUS if amount < 0 else "+"
    if _in_percent(metric):
        return f"{sign}{abs(amount) * 100:.1f} points"
    return f"{sign}{value(metric, abs(amount))}"


def promise(metric: Primary | Guardrail) -> str:
    """What was declared of a metric: `lower is better, least difference 2.0 points`."""
    if isinstance(metric, Guardrail):
        worse = metric.margin if metric.lower_is_better else -metric.margin
        return f"{metric.goal} is better, up to {change(metric, worse)} is allowed"
    return f"{metric.goal} is better, least difference {change(metric, metric.minimum_effect)[1:]}"


def _in_percent(metric: Metric) -> bool:
    return metric.is_share and metric.measure != "score"


def verdict(report: Report) -> list[str]:
    """One paragraph for the split, or one for each treatment; of a stopped experiment each begins with that."""
    if report.hidden:
        return [_stopped(report, decided=False) + _hidden(report)]
    return [
        _stopped(report, decided=treatment.verdict not in _OPEN) + _treatment(report, treatment)
        for treatment in report.treatments
    ]


def _stopped(report: Report, *, decided: bool) -> str:
    at = report.experiment.stopped_at
    if at is None:
        return ""
    who = f" by {report.stopped_by}" if report.stopped_by else ""
    return f"Stopped {at:%Y-%m-%d %H:%M} UTC{who}{'' if decided else ', undecided'}. "


def left_out(report: Report) -> list[str]:
    """What does not count, and what was said about the split, one line each."""
    lines = [f"not counted: {count:,} {what}" for what, count in report.left_out.items() if count]
    lines += [f"another split was in force: revision {revision}" for revision in report.other_revisions]
    if report.gone_until is not None:
        gone = f"requests until {report.gone_until:%Y-%m-%d %H:%M} UTC, older than the retention policy's record_days"
        lines.append(f"on record no more, and not counted: {gone}")
    if len(report.strata) > 1:
        lines.append("compared within each of these, and put together: " + "; ".join(report.strata))
    return lines


def _hidden(report: Report) -> str:
    came = ", ".join(
        f"{arm.units:,} to version {arm.version} where {arm.expected_units:,.0f} were expected" for arm in report.arms
    )
    return (
        f"Results are hidden because the split is not what was declared: {came} (p = {report.mismatch_p:.1g}). "
        "Whatever lost units on one side may have lost the unhappy ones; find it (dropped records, a version that "
        "answers nobody, a client that pins), then begin a new experiment."
    )


def _treatment(report: Report, treatment: TreatmentResult) -> str:
    metric, who = report.experiment.declaration.primary, f"Version {treatment.version}"
    if treatment.difference is None or treatment.control is None or treatment.treatment is None:
        few = "there were too few units" if report.experiment.stopped_at else "not decided yet, there are too few units"
        return f"{who}: {few} to compare{_more(report, treatment)}{_guarded(treatment)}."
    numbers = (
        f"{value(metric, treatment.treatment)} against {value(metric, treatment.control)}, difference "
        f"{change(metric, treatment.difference.estimate)}, {_sure(metric, treatment.difference)}"
    )
    if treatment.verdict in {"better", "worse", "guardrails open"} or _decides(treatment.difference):
        lower = treatment.difference.estimate < 0
        if metric.measure in FLAGS:
            said = f"{who} gets {'fewer' if lower else 'more'} {metric_name(metric)}: {numbers}"
        else:
            said = f"{who} has a {'lower' if lower else 'higher'} {metric_name(metric)}: {numbers}"
    else:
        said = f"{who}, {metric_name(metric)}: {numbers}"
    return f"{said}{_guarded(treatment)}; {_next(report, treatment)}."


def _decides(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def _sure(metric: Metric, interval: Interval) -> str:
    low, high = change(metric, interval.low), change(metric, interval.high)
    return f"{interval.level * 100:.3g} % sure it is between {low.removesuffix(' points')} and {high}"


def _guarded(treatment: TreatmentResult) -> str:
    words = {"fine": "is fine", "harmed": "is harmed", "not decided": "is not decided"}
    return "".join(
        f"; guardrail {metric_name(one.metric)} {words[one.verdict]}{_guardrail_numbers(one)}"
        for one in treatment.guardrails
    )


def _guardrail_numbers(one: GuardrailResult) -> str:
    if one.difference is None or one.verdict == "fine":
        return ""
    span = f"{change(one.metric, one.difference.low)} to {change(one.metric, one.difference.high)}"
    return f" ({span}, up to {value_of_margin(one)} is allowed)"


def value_of_margin(one: GuardrailResult) -> str:
    """The margin in the metric's unit."""
    return change(one.metric, one.margin if one.metric.lower_is_better else -one.margin)


def _next(report: Report, treatment: TreatmentResult) -> str:
    name = version_name(report.experiment.model, treatment.version)
    effect = change(report.experiment.declaration.primary, report.experiment.declaration.primary.minimum_effect)[1:]
    return {
        "better": f"ship it: `tuneloop promote {name} --by YOU --reason WHY`",
        "worse": "do not ship it",
        "harmful": "do not ship it: a guardrail is worse by more than was allowed",
        "guardrails open": f"wait until the guardrails are decided{_more(report, treatment)}"
        if report.experiment.stopped_at is None
        else "its guardrails were not decided",
        "no difference": f"no difference of {effect} or more was found: keep what is simpler or cheaper",
        "not decided": f"not decided yet{_more(report, treatment)}"
        if report.experiment.stopped_at is None
        else "not decided when it was stopped",
    }[treatment.verdict]


def _more(report: Report, treatment: TreatmentResult) -> str:
    if treatment.more_units is None or report.experiment.stopped_at is not None:
        return ""
    if treatment.more_units == 0:
        return (
            ": it has had the units it was likely to need, so a difference, if there is one, is smaller than declared"
        )
    days = "" if treatment.more_days is None else f", {_days(treatment.more_days)} at today's traffic"
    return f": about {treatment.more_units:,} more units{days}"


def _days(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours" if days * 24 >= 2 else "an hour or two"
