"""A shadow: a version that is sent copies of requests and answers nobody, so that it is seen under live traffic first.

Its version is an arm of the route without a share, so engines load it, and count it among what they hold, as they do
any arm. What it answered is compared request by request with what the client was given; a copy has its engine's time
alone compared, since it waits in a queue of its own. The comparison is pure.

It is of the first `FIRST` pairs since the shadow began and then stands: intervals hold at every look at what only
grows, not at a window that slides on. Requests count as independent, also those of one key; where few keys ask most of
what is copied, the intervals are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import dropwhile
from statistics import fmean

from pydantic import AwareDatetime

from tuneloop.registry.errors import InvalidInput, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Arm, Interval, Noun, Route, Shadow, version_name
from tuneloop.registry.routes.promotion import APPLY_TIMEOUT_S, Change
from tuneloop.registry.routes.staging import check_fits
from tuneloop.registry.statistics.sequences import drawn_variance, radius
from tuneloop.registry.traffic import CLIENT_FAULT, SERVER_FAULT, Pair
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

FIRST = 2_000  # pairs that are compared; whoever wants others ends the shadow and begins anew
ALPHA = 0.05
_RATIO = math.log(1.1)  # ratios and shares of failures one cares about: where intervals are narrowest
_FAILURES = 0.01


class ShadowReport(Noun):
    """A shadow beside the live answers to the same requests; ratios are of geometric means, shadow over live."""

    version: int
    share_bp: int
    since: AwareDatetime
    pairs: int  # the first of them, but for those that the client spoilt or left
    failed: int  # of the shadow's
    live_failed: int
    failures: Interval | None  # the shadow's share less the live one's
    engine_time: Interval | None  # None: fewer than two pairs that have both
    first_token: Interval | None
    tokens: Interval | None
    length: Interval | None  # of the answers' characters, where text is kept


class ShadowNow(Noun):
    """A model's shadow as it compares now."""

    report: ShadowReport | None  # None: the route has no shadow
    unreadable: tuple[str, ...]  # a revision since it began: it is compared from the one after that on


def shadow(
    registry: Registry,
    model: str,
    version: int,
    share_bp: int,
    change: Change,
    *,
    expected_revision: int | None = None,
) -> Route:
    """Send a version copies of what a share of the keys asks; 0 ends that. One version shadows a route at a time.

    What is no arm yet becomes one without a share, which engines load; nobody needs to have approved it, since nobody
    is given its answers. Everybody else's version stays as it is.

    Raises:
        NotFound: there is no route, or no such version.
        InvalidInput: the share is none, the version has a share of the traffic, or it is not the shadow that ends.
        Refused: the engines cannot hold it.
        Conflict: another writer was first.
        Unavailable: a gateway did not apply the revision in time (the route is changed).
    """
    if not 0 <= share_bp <= FULL_SHARE_BP:
        raise InvalidInput(f"a shadow's share of {share_bp} is not from 0 to {FULL_SHARE_BP} basis points")
    now = registry.route(model)
    if expected_revision is not None and expected_revision != now.revision:
        raise registry.routes.lost_race(model, expected_revision, now)
    name, arms = version_name(model, version), now.arms
    if share_bp == 0:
        if now.shadow is None or now.shadow.version != version:
            there = "none" if now.shadow is None else version_name(model, now.shadow.version)
            raise InvalidInput(f"{name} is not the shadow of {model}, which is {there}")
    elif now.split.get(version, 0) > 0:
        raise InvalidInput(
            f"{name} has a share of the traffic ({now.split_text}): what it does is seen there; take it away first: "
            f"`tuneloop route set {model}`"
        )
    elif version not in now.split:
        arms = (*now.arms[:-1], Arm(version=version, weight_bp=0), now.arms[-1])
        _check_newcomer(registry, now, arms, version)
    wanted = (Shadow(version=version, share_bp=share_bp),) if share_bp else ()
    route = registry.routes.write(
        model,
        arms,
        by=change.by,
        reason=change.reason,
        expected_revision=now.revision,
        action="route.shadow",
        shadow=wanted,
    )
    registry.fleet.wait_applied(model, route.revision, APPLY_TIMEOUT_S)
    return route


def _check_newcomer(registry: Registry, now: Route, arms: Sequence[Arm], version: int) -> None:
    found = mlflow_within(registry, partial(registry.versions.get, now.model, version), LOOKUP_TIMEOUT_S)
    mlflow_within(registry, partial(check_fits, registry, now.model, now, arms, [found]), LOOKUP_TIMEOUT_S)


def shadow_now(registry: Registry, route: Route) -> ShadowNow:
    """The shadow of a route revision beside the live answers since it became one."""
    there = route.shadow
    if there is None:
        return ShadowNow(report=None, unreadable=())
    since, unreadable = route.at, list[str]()
    try:
        for one in dropwhile(lambda newer: newer.revision > route.revision, registry.routes.back(route.model)):
            if one.shadow is None or one.shadow.version != there.version:
                break
            since = one.at
    except Unreadable as error:
        unreadable.append(str(error))
    pairs = registry.traffic.pairs(route.model, there.version, since=since, first=FIRST)
    return ShadowNow(report=compared(there, since, pairs), unreadable=(*unreadable, *pairs.unreadable))


def compared(shadow: Shadow, since: AwareDatetime, pairs: Iterable[Pair]) -> ShadowReport:
    """What these pairs show; intervals hold at every look while pairs are only added, were requests independent.

    A time or length counts where both were answered.
    """
    fair = [pair for pair in pairs if not (_spoilt(pair.status) or _spoilt(pair.shadow_status))]
    answered = [pair for pair in fair if not (_live_failed(pair) or _failed(pair))]

    def ratio(both: Callable[[Pair], tuple[float | None, float | None]]) -> Interval | None:
        values = [both(pair) for pair in answered]
        logs = [math.log(copy / live) for copy, live in values if copy and live and min(copy, live) > 0]
        return _exp(_mean(logs, _RATIO))

    return ShadowReport(
        version=shadow.version,
        share_bp=shadow.share_bp,
        since=since,
        pairs=len(fair),
        failed=sum(map(_failed, fair)),
        live_failed=sum(map(_live_failed, fair)),
        failures=_mean([float(_failed(pair) - _live_failed(pair)) for pair in fair], _FAILURES),
        engine_time=ratio(lambda p: (_after(p.shadow_total_ms, p.shadow_queue_ms), _after(p.total_ms, p.queue_ms))),
        first_token=ratio(lambda p: (_after(p.shadow_ttft_ms, p.shadow_queue_ms), _after(p.ttft_ms, p.queue_ms))),
        tokens=ratio(lambda p: (p.shadow_completion_tokens, p.completion_tokens)),
        length=ratio(lambda p: (p.shadow_answer_chars, p.answer_chars)),
    )


def _spoilt(status: int) -> bool:
    return CLIENT_FAULT <= status < SERVER_FAULT


def _failed(pair: Pair) -> bool:
    return pair.shadow_status >= SERVER_FAULT or pair.shadow_error is not None


def _live_failed(pair: Pair) -> bool:
    return pair.status >= SERVER_FAULT or pair.error is not None


def _after(end_ms: float | None, sent_ms: float | None) -> float | None:
    return None if end_ms is None or sent_ms is None else end_ms - sent_ms


def _mean(values: Sequence[float], effect: float) -> Interval | None:
    """The mean of paired differences, always valid (`statistics.sequences`); None with fewer than two."""
    if len(values) < 2:
        return None
    estimate = fmean(values)
    spread = drawn_variance(sum((value - estimate) ** 2 for value in values), float(len(values) - 1)) / len(values)
    reach = radius(spread, alpha=ALPHA, effect=effect)
    return Interval(estimate=estimate, low=estimate - reach, high=estimate + reach, level=1 - ALPHA)


def _exp(logs: Interval | None) -> Interval | None:
    if logs is None:
        return None
    return logs.model_copy(update={name: math.exp(getattr(logs, name)) for name in ("estimate", "low", "high")})
