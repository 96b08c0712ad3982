"""How one window of a signal is judged against its reference: which records each looks at, how many it needs, what its
test says, and what is kept of that as evidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np

from tuneloop.monitor import where
from tuneloop.monitor.answers import bad_corrections, correction_bleu, parity
from tuneloop.monitor.comparison import ENOUGH_CORRECTED, ENOUGH_TEXT, Comparison, Judgement, examples_of
from tuneloop.monitor.detectors import mean_rise_test, window_alpha
from tuneloop.monitor.embeddings import Embed, embeddings_of
from tuneloop.monitor.features import new_words, witness
from tuneloop.monitor.fields import ENGINE
from tuneloop.monitor.guarded import finds
from tuneloop.monitor.latency import engines_of, is_slow, percentiles, slow_share_test
from tuneloop.monitor.parity import by_group
from tuneloop.monitor.quality import is_broken, is_no_json, is_refusal, length_change_test, log_lengths, share_rise_test
from tuneloop.monitor.scorer import Scored, Scorer
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import (
    ANSWER_DRIFT,
    ANSWER_LENGTH,
    BAD_CORRECTIONS,
    BROKEN_ANSWERS,
    CORRECTION_BLEU,
    CORRECTION_PERPLEXITY,
    GUARDED,
    INVALID_FORMAT,
    LATENCY,
    PARITY,
    PERPLEXITIES,
    QUALITIES,
    REFUSALS,
    THROUGHPUT,
    THUMBS_DOWN,
    budget_share,
)
from tuneloop.monitor.textdrift import text_test
from tuneloop.monitor.throughput import throughput
from tuneloop.monitor.windows import Window
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import RequestRecord, version_name

ENOUGH_SCORED = (
    0.8  # of a window's or reference's questions; a test on fewer would look at a chosen part of the traffic
)
ENOUGH_THUMBS = 10  # on either side
_UNITS = {
    THUMBS_DOWN: "share of thumbs down",
    REFUSALS: "share of refusals",
    BROKEN_ANSWERS: "share of broken answers",
    INVALID_FORMAT: "share of answers that do not parse",
}
_HAS: dict[str, Callable[[str], bool]] = {REFUSALS: is_refusal, BROKEN_ANSWERS: is_broken, INVALID_FORMAT: is_no_json}
_BY_SIGNAL: dict[str, Callable[[Comparison, float, np.random.Generator], Judgement]] = {
    BAD_CORRECTIONS: bad_corrections,
    CORRECTION_BLEU: correction_bleu,
    PARITY: parity,
    **{signal: partial(throughput, signal) for signal in THROUGHPUT},
}


class Judge:
    """Judges windows of one monitor; deterministic but for what engines answer."""

    def __init__(self, settings: MonitorSettings, scorer: Scorer) -> None:
        self._settings = settings
        self._scorer = scorer
        self._embed = embeddings_of(settings.embeddings)

    def alpha(self, signal: str, window: Window) -> float:
        """The level at which one window of a stream is tested, by what it was cut with: records, and of what guards
        find also what they stopped, a full one's records at most."""
        settings, size = self._settings, window.size
        if signal in GUARDED:
            size = max(size, min(size + window.stopped, settings.window))
        return window_alpha(size, settings.mean_run_length, 1) * budget_share(signal, settings)

    def judge(self, signal: str, held: Comparison) -> Judgement:
        """One signal of one window."""
        alpha = self.alpha(signal, held.window)
        if signal == LATENCY:
            return self._latency(held, alpha)
        if signal in GUARDED:
            return finds(signal, held, alpha)
        rng = np.random.default_rng(int(sha256(held.score_id(signal).encode()).hexdigest()[:16], 16))
        if signal in PERPLEXITIES:
            return self._perplexity(signal, held, alpha, rng)
        if (judged := _BY_SIGNAL.get(signal)) is not None:
            return judged(held, alpha, rng)
        if signal in QUALITIES:
            return quality(signal, held, alpha, rng, self._embed)
        return prompt_drift(held, alpha, rng, self._embed)

    def _perplexity(self, signal: str, held: Comparison, alpha: float, rng: np.random.Generator) -> Judgement:
        of_corrections = signal == CORRECTION_PERPLEXITY
        sides = {"reference": held.reference.records, "window": held.window.records}
        if of_corrections:
            sides = held.corrected()
            for what, records in sides.items():
                if len(records) < ENOUGH_CORRECTED:
                    reason = f"{len(records)} answers of the {what} were corrected; {ENOUGH_CORRECTED} are needed"
                    said = {"reason": reason, "too_few_corrections": True}
                    return Judgement("not enough data", len(sides["window"]), None, said)
        nats: dict[str, dict[str, float]] = {}
        for what, records in sides.items():
            try:
                scored = self._scorer.score(version_name(held.model, held.version), records, held.corrections)
            except Unavailable as error:
                return Judgement("not enough data", 0, None, {"reason": str(error)})
            values = {i: s.correction_nats if of_corrections else s.nats for i, s in scored.items()}
            nats[what] = {i: round(value, 5) for i, value in values.items() if value is not None}
            if len(nats[what]) < ENOUGH_SCORED * len(records):
                return Judgement("not enough data", len(nats[what]), None, {"reason": _unscored(what, scored, signal)})
        before, now = (np.array(list(nats[what].values()), dtype=np.float64) for what in sides)
        result = mean_rise_test(before, now, alpha, rng)
        detail: dict[str, Any] = {
            "unit": f"nats per token of the {'correction' if of_corrections else 'question'}, above the reference",
            "nats": {"reference": round(float(before.mean()), 5), "window": round(float(now.mean()), 5)},
            "window_nats": nats["window"],
            "reference_nats": nats["reference"],
            "examples": examples_of(sides["window"], [nats["window"].get(r.id, -1.0) for r in sides["window"]]),
        }
        if result.alarm:
            read = {
                what: [(r, nats[what][r.id]) for r in records if r.id in nats[what]] for what, records in sides.items()
            }
            detail["slices"] = where.of_values(*_apart(read["window"]), rng, read["reference"], unit="nats per token")
        return Judgement("drift" if result.alarm else "none", len(now), result, detail)

    def _latency(self, held: Comparison, alpha: float) -> Judgement:
        settings, records = self._settings, held.window.records
        late = partial(is_slow, latency_ms=settings.latency_ms, ttft_ms=settings.ttft_ms)
        slow = [record for record in records if late(record)]
        result = slow_share_test(len(slow), len(records), alpha)
        ttft = [record.ttft_ms for record in records if record.ttft_ms is not None]
        detail: dict[str, Any] = {
            "unit": "share of answers over the objective",
            "objective_ms": {"total": settings.latency_ms, "ttft": settings.ttft_ms},
            "total_ms": percentiles([record.total_ms for record in records]),
            "ttft_ms": percentiles(ttft),
            "engines": engines_of(records, slow),
            "examples": examples_of(slow, [record.total_ms for record in slow]),
        }
        if result.alarm:
            usual = [(record, float(late(record))) for record in held.reference.records]
            detail["slices"] = where.of_hits(records, [late(record) for record in records], usual)
        return Judgement("drift" if result.alarm else "none", len(records), result, detail)


def prompt_drift(held: Comparison, alpha: float, rng: np.random.Generator, embed: Embed | None = None) -> Judgement:
    """Whether the window's questions are other questions than the reference's."""
    return _text_drift(held.reference.records, held.window.records, _question, alpha, rng, embed, without=(ENGINE,))


def _question(record: RequestRecord) -> str:
    return record.question


def _answer(record: RequestRecord) -> str:
    return record.answer or ""


def _text_drift(
    reference: Sequence[RequestRecord],
    window: Sequence[RequestRecord],
    text: Callable[[RequestRecord], str],
    alpha: float,
    rng: np.random.Generator,
    embed: Embed | None,
    without: Collection[str] = (),
) -> Judgement:
    before, now = list(map(text, reference)), list(map(text, window))
    found = text_test(before + now, len(before), alpha, rng, embed)
    result = found.outcome
    detail: dict[str, Any] = {"unit": "standard deviations", "looks": found.looks}
    if result.alarm:
        detail["words"] = [vars(word) for word in new_words(before, now)]
        detail["examples"] = examples_of(window, list(witness(found.kernel, len(before))))
        detail["slices"] = where.of_texts(reference, window, found.kernel, rng, without)
    return Judgement("drift" if result.alarm else "none", len(now), result, detail)


def quality(
    signal: str, held: Comparison, alpha: float, rng: np.random.Generator, embed: Embed | None = None
) -> Judgement:
    """Whether answers are worse than the reference's, or other, by one of the signals in `QUALITIES`."""
    before, now = held.reference.records, held.window.records
    if signal == THUMBS_DOWN:
        before, now = (tuple(r for r in side if r.id in held.thumbs) for side in (before, now))
        for what, side in (("reference", before), ("window", now)):
            if len(side) < ENOUGH_THUMBS:
                reason = f"{len(side)} answers of the {what} have a thumb; {ENOUGH_THUMBS} are needed"
                return Judgement("not enough data", len(now), None, {"reason": reason, "too_few_thumbs": True})
    else:
        all_of = {"reference": before, "window": now}
        before, now = (tuple(r for r in side if r.answer is not None) for side in (before, now))
        for (what, records), side in zip(all_of.items(), (before, now), strict=True):
            if len(side) < ENOUGH_TEXT * len(records):
                missing = len(records) - len(side)
                reason = f"{missing} of the {what}'s {len(records)} answers are on record without their text"
                return Judgement("not enough data", len(now), None, {"reason": reason, "too_little_text": True})
    if signal == ANSWER_DRIFT:
        return _text_drift(before, now, _answer, alpha, rng, embed)
    if signal == ANSWER_LENGTH:
        result = length_change_test(before, now, alpha, rng)
        lengths = [len(record.answer or "") for record in now]
        usual = float(np.median([len(record.answer or "") for record in before]))
        detail: dict[str, Any] = {
            "unit": "difference of mean log lengths",
            "characters": {"reference": usual, "window": float(np.median(lengths))},
        }
        if result.alarm:
            detail["examples"] = examples_of(now, [abs(np.log1p(n) - np.log1p(usual)) for n in lengths])
            far = [
                [abs(float(value) - log_lengths(before).mean()) for value in log_lengths(side)]
                for side in (now, before)
            ]
            detail["slices"] = where.of_values(
                now, far[0], rng, list(zip(before, far[1], strict=True)), unit="characters", shown=lengths
            )
        return Judgement("drift" if result.alarm else "none", len(now), result, detail)
    hits = [[_has(signal, record, held.thumbs) for record in side] for side in (before, now)]
    (had, of), (has, among) = ((sum(side), len(side)) for side in hits)
    result = share_rise_test((had, of), (has, among), alpha)
    detail = {"unit": _UNITS[signal], "shares": {"reference": round(had / of, 4), "window": round(has / among, 4)}}
    if signal == REFUSALS:
        detail["groups"] = by_group([record.question for record in now], hits[1])
    if result.alarm:
        detail["examples"] = examples_of([r for r, hit in zip(now, hits[1], strict=True) if hit], [1.0] * has)
        detail["slices"] = where.of_hits(now, hits[1], list(zip(before, hits[0], strict=True)))
    return Judgement("drift" if result.alarm else "none", among, result, detail)


def _has(signal: str, record: RequestRecord, thumbs: Mapping[str, bool]) -> bool:
    if signal == THUMBS_DOWN:
        return thumbs[record.id]
    return _HAS[signal](record.answer or "")


def _apart(pairs: Sequence[tuple[RequestRecord, float]]) -> tuple[list[RequestRecord], list[float]]:
    return [record for record, _ in pairs], [value for _, value in pairs]


def _unscored(what: str, scored: Mapping[str, Scored], signal: str) -> str:
    if signal == CORRECTION_PERPLEXITY:
        missing = sum(s.correction_nats is None for s in scored.values())
        return (
            f"{missing} of the {what}'s {len(scored)} corrections cannot be scored: too long, or refused by the engine"
        )
    reasons = [s.reason for s in scored.values() if s.nats is None]
    return f"{len(reasons)} of the {what}'s {len(scored)} questions cannot be scored, for example: {reasons[0]}"
