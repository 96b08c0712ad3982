"""Whether a version that was trained for an episode helped: the figure of each signal at the alarm, on the version that
raised it, against the same figure on the new one, over its first windows. Pure.

Only fresh records of the new version are looked at: it has learned from those that alarmed. What users ask is no
version's doing, and other answers or another length no harm, so these are shown and decide nothing. How surprising a
version finds questions is not how well it answers them, since training moves that either way: it tells that a version
helped where it had alarmed and is better, and never that it did not. Where no signal of quality alarmed, those that
could be judged in that window stand in: better or worse they tell, and unchanged nothing, since nothing was wrong with
them. The window that alarmed was chosen for being bad: what was a false alarm looks mended afterwards whatever was
trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tuneloop.monitor.clearing import first
from tuneloop.monitor.detectors import mean_rise_test
from tuneloop.monitor.quality import share_rise_test
from tuneloop.monitor.signals import (
    ANSWER_DRIFT,
    ANSWER_LENGTH,
    BROKEN_ANSWERS,
    CORRECTION_BLEU,
    CORRECTION_PERPLEXITY,
    INVALID_FORMAT,
    LATENCY,
    PERPLEXITIES,
    PERPLEXITY,
    PROMPT_DRIFT,
    REFUSALS,
    THUMBS_DOWN,
)
from tuneloop.registry.evidence import part_of
from tuneloop.registry.nouns import WindowScore
from tuneloop.registry.statistics.intervals import wilson

SHARES = (THUMBS_DOWN, REFUSALS, BROKEN_ANSWERS, INVALID_FORMAT, LATENCY)
OF_QUALITY = (CORRECTION_PERPLEXITY, CORRECTION_BLEU, *SHARES)  # what another version answers for
SHOWN = (PROMPT_DRIFT, ANSWER_DRIFT, ANSWER_LENGTH)  # and no verdict rests on it
FOLLOWED = (*SHOWN, PERPLEXITY, *OF_QUALITY)
STAND_INS = tuple(signal for signal in OF_QUALITY if signal != LATENCY)
LEVEL = 0.025  # of either way the signals may have gone, shared out over them, so that together they are 5 %
_UNITS = dict.fromkeys(SHARES, "share") | dict.fromkeys(PERPLEXITIES, "nats per token")
_UNITS |= {CORRECTION_BLEU: "BLEU", ANSWER_LENGTH: "characters"}
_UNITS |= dict.fromkeys((PROMPT_DRIFT, ANSWER_DRIFT), "standard deviations")

Verdict = Literal["helped", "did not help", "not shown", "not enough data yet", "not enough data"]
# What alarmed and tells either way; questions' perplexity that alarmed, which tells of good alone; a signal of quality
# that did not alarm; what decides nothing.
Role = Literal["raised", "symptom", "stand-in", "shown"]
Moved = Literal["better", "worse", "no different", "not enough data yet", "not enough data", "decides nothing"]


@dataclass(frozen=True)
class Figure:
    """A figure of some windows of one version; `low` and `high` are its 95 % interval, where it has one."""

    value: float
    low: float | None
    high: float | None
    n: int  # records


@dataclass(frozen=True)
class Compared:
    """One signal before and after."""

    unit: str
    before: Figure
    after: Figure | None  # None: the new version has too few windows that could be judged
    moved: Moved
    role: Role


def roles_of(raised: Collection[str]) -> dict[str, Role]:
    """What each followed signal says of a version, by what the episode has raised."""
    of_quality = [signal for signal in OF_QUALITY if signal in raised]
    roles: dict[str, Role] = {signal: "shown" for signal in SHOWN if signal in raised}
    if PERPLEXITY in raised:
        roles[PERPLEXITY] = "shown" if of_quality else "symptom"
    elif not of_quality:
        roles[PERPLEXITY] = "shown"
    role: Role = "raised" if of_quality else "stand-in"
    return roles | dict.fromkeys(of_quality or STAND_INS, role)


def compared(
    signal: str,
    before: WindowScore,
    after: Sequence[WindowScore],
    needed: int,
    seed: int,
    records: int = 0,
    *,
    closed: bool,
    role: Role = "raised",
    among: int = 1,
) -> Compared | None:
    """One signal at the alarm against the new version's first windows.

    Args:
        signal: of `FOLLOWED`.
        before: the window that alarmed, of the old version.
        after: judged windows of the new one, in order.
        needed: how many of them are enough, if they hold `records`.
        seed: of the permutations; the same comparison is to give the same verdict whoever makes it.
        records: time may have closed some windows early.
        closed: no more of them will come.
        role: what it says of the version. among: how many signals are compared, and share the level.

    Returns:
        None where the window before could not be judged by that signal.
    """
    was = _figure(signal, [before])
    if before.verdict == "not enough data" or was is None:
        return None
    judged = first([score for score in after if score.verdict != "not enough data"], needed, records)
    enough = bool(judged)
    now = _figure(signal, judged) if enough else None
    moved: Moved = "not enough data" if closed else "not enough data yet"
    if role == "shown":
        moved = "decides nothing"
    elif now is not None:
        moved = _moved(signal, before, judged, seed, LEVEL / among)
    return Compared(_UNITS[signal], was, now, moved, role)


def verdict_of(found: Mapping[str, Compared], *, closed: bool) -> Verdict:
    """What all signals say together: it helped where one is better and none is worse.

    Nothing is said before every signal that tells was compared, or nothing more will come. Where none tells, those that
    are only shown are waited for.
    """
    moves = {(one.role, one.moved) for one in found.values()}
    waits = any(moved == "not enough data yet" for _, moved in moves)
    if all(one.role == "shown" for one in found.values()):
        waits = any(one.after is None for one in found.values())
    if waits and not closed:
        return "not enough data yet"
    if moves & {("raised", "worse"), ("stand-in", "worse")}:
        return "did not help"
    if any(moved == "better" for _, moved in moves):
        return "helped"
    if ("raised", "no different") in moves:
        return "did not help"
    told = any(moved in ("no different", "worse") for _, moved in moves)
    return "not shown" if told else "not enough data"


def written(found: Mapping[str, Compared]) -> dict[str, dict[str, Any]]:
    """As it is kept on the episode, by signal."""
    return {signal: asdict(one) for signal, one in found.items()}


def values_of(signal: str, score: WindowScore) -> list[float] | None:
    """What a window's figure is the mean of, one a record; None where that was not kept."""
    if signal in SHARES:
        share = score.statistic if signal == LATENCY else part_of(score.detail, "shares").get("window")
        if not isinstance(share, float | int):
            return None
        hits = round(share * score.n)
        return [1.0] * hits + [0.0] * (score.n - hits)
    if signal in PERPLEXITIES:
        return list(part_of(score.detail, "window_nats").values())
    if signal == CORRECTION_BLEU:
        return score.detail.get("window_bleu")
    return None


def _figure(signal: str, scores: Sequence[WindowScore]) -> Figure | None:
    if signal in (PROMPT_DRIFT, ANSWER_DRIFT):
        return Figure(
            round(float(np.mean([score.statistic for score in scores])), 5), None, None, sum(s.n for s in scores)
        )
    if signal == ANSWER_LENGTH:
        medians = [part_of(score.detail, "characters").get("window") for score in scores]
        lengths = [median for median in medians if isinstance(median, float | int)]
        return Figure(round(float(np.median(lengths)), 5), None, None, sum(s.n for s in scores)) if lengths else None
    values = _pooled(signal, scores)
    if not values:
        return None
    if signal in SHARES:
        share = wilson(round(sum(values)), len(values))
        return Figure(round(share.estimate, 5), round(share.low, 5), round(share.high, 5), len(values))
    mean = float(np.mean(values))
    if len(values) < 2:
        return Figure(round(mean, 5), None, None, len(values))
    from scipy.stats import t  # noqa: PLC0415 (slow to import)

    radius = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Figure(round(mean, 5), round(mean - radius, 5), round(mean + radius, 5), len(values))


def _pooled(signal: str, scores: Sequence[WindowScore]) -> list[float]:
    found = [values_of(signal, score) for score in scores]
    return [value for values in found if values for value in values]


def _moved(signal: str, before: WindowScore, after: Sequence[WindowScore], seed: int, level: float) -> Moved:
    """Which way a signal went; more of each is worse, but of BLEU."""
    was, now = np.array(_pooled(signal, [before])), np.array(_pooled(signal, after))
    if len(was) == 0 or len(now) == 0:
        return "not enough data"
    if signal == CORRECTION_BLEU:
        was, now = -was, -now
    if signal in SHARES:
        had, has = (round(was.sum()), len(was)), (round(now.sum()), len(now))
        fell, rose = share_rise_test(has, had, level).alarm, share_rise_test(had, has, level).alarm
    else:
        rng = np.random.default_rng(seed)
        fell, rose = mean_rise_test(now, was, level, rng).alarm, mean_rise_test(was, now, level, rng).alarm
    return "better" if fell else "worse" if rose else "no different"
