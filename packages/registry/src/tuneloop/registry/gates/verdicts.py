"""What a figure says where a bound is asked of it: a comparison's interval, and a measure of a version. Pure.

Training and whoever judges a version again decide by these, so that both mean the same.
"""

from __future__ import annotations

from math import isnan

from tuneloop.registry.nouns import FRESH, Check, Interval
from tuneloop.registry.policies import Threshold

BETTER, NOT_WORSE = f"better on {FRESH}", "not worse on "


def too_few(name: str, rows: int, least: int) -> Check | None:
    """What a comparison over fewer rows than it takes to decide says."""
    if rows >= least:
        return None
    return Check(name=name, verdict="inconclusive", detail=f"{rows} rows, at least {least} are needed to decide")


def better(interval: Interval, rows: int | None) -> Check:
    """Better on users' corrections: the whole interval of the NLL difference lies below 0."""
    if interval.high < 0:
        return _check(BETTER, "pass", interval, rows, "below 0")
    if interval.low > 0:
        return _check(BETTER, "fail", interval, rows, "above 0: the champion is better")
    return _check(BETTER, "inconclusive", interval, rows, "0 lies inside")


def not_worse(set_name: str, interval: Interval, rows: int | None, margin: float | None) -> Check:
    """Not worse on another set: the interval's upper end lies below the margin. None: its recipe's, not known here."""
    name = f"{NOT_WORSE}{set_name}"
    if margin is None:
        why = f"the gate policy names no margin, and its recipe's is not known here: `margins: {{{set_name}: …}}` does"
        passed = interval.high < 0
        return _check(name, "pass" if passed else "inconclusive", interval, rows, "below 0" if passed else why)
    if interval.high < margin:
        return _check(name, "pass", interval, rows, f"below the margin of {margin:g}")
    if interval.low > margin:
        return _check(name, "fail", interval, rows, f"above the margin of {margin:g}")
    return _check(name, "inconclusive", interval, rows, f"the margin of {margin:g} lies inside")


def set_of(check: Check) -> str | None:
    """The evaluation set that a check compares on; None: it is no comparison."""
    if check.name == BETTER:
        return FRESH
    return check.name.removeprefix(NOT_WORSE) if check.name.startswith(NOT_WORSE) else None


def within(name: str, value: float | None, bounds: Threshold) -> Check:
    """Whether a measure of the version lies where the policy says."""
    parts = [("at least", bounds.min), ("at most", bounds.max)]
    asked = " and ".join(f"{words} {bound:g}" for words, bound in parts if bound is not None)
    if value is None:
        return Check(name=name, verdict="inconclusive", detail=f"was not measured; {asked} is asked for")
    too_low = bounds.min is not None and value < bounds.min
    too_high = bounds.max is not None and value > bounds.max
    held = not (too_low or too_high or isnan(value))
    return Check(name=name, verdict="pass" if held else "fail", detail=f"{value:.4g}; {asked} is asked for")


def _check(name: str, verdict: str, interval: Interval, rows: int | None, why: str) -> Check:
    over = "" if rows is None else f" over {rows} rows"
    text = (
        f"NLL difference {interval.estimate:+.4f} nats/token, {interval.level:.0%} interval "
        f"[{interval.low:+.4f}, {interval.high:+.4f}]{over}: {why}"
    )
    return Check.model_validate({"name": name, "verdict": verdict, "detail": text, "interval": interval})
