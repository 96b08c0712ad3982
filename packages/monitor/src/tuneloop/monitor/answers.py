"""Quality of answers where a model's owner asks for more: BLEU against users' corrections, whether those can be learned
from, and parity between groups of people, of refusals and of lengths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

import numpy as np

from tuneloop.monitor import where
from tuneloop.monitor.bleu import sentence_bleus, signature
from tuneloop.monitor.comparison import ENOUGH_CORRECTED, ENOUGH_TEXT, Comparison, Judgement, examples_of
from tuneloop.monitor.detectors import Outcome, mean_rise_test
from tuneloop.monitor.parity import groups_of
from tuneloop.monitor.parity_gaps import gaps_of, said_of
from tuneloop.monitor.quality import is_broken, is_refusal, log_lengths, share_rise_test
from tuneloop.registry.nouns import RequestRecord


def correction_bleu(held: Comparison, alpha: float, rng: np.random.Generator) -> Judgement:
    """Whether answers are further than the reference's from what users say they should have been."""
    sides = held.corrected()
    lost: dict[str, list[float]] = {}
    held_to: dict[str, list[RequestRecord]] = {}
    for what, records in sides.items():
        corrected = [record for record in records if record.answer is not None]
        if len(corrected) < ENOUGH_CORRECTED:
            reason = f"{len(corrected)} answers of the {what} are on record and corrected; {ENOUGH_CORRECTED} needed"
            return Judgement("not enough data", len(corrected), None, {"reason": reason, "too_few_corrections": True})
        texts, wanted = [r.answer or "" for r in corrected], [held.corrections[r.id] for r in corrected]
        held_to[what] = corrected
        lost[what] = [100.0 - score for score in sentence_bleus(texts, wanted)]
    before, now = (np.array(lost[what], dtype=np.float64) for what in sides)
    result = mean_rise_test(before, now, alpha, rng)
    detail: dict[str, Any] = {
        "unit": "mean BLEU of answers against corrections, below the reference's",
        "bleu": {what: round(100.0 - float(np.mean(values)), 2) for what, values in lost.items()},
        "signature": signature(),
        "window_bleu": [round(100.0 - value, 3) for value in lost["window"]],
    }
    if result.alarm:
        by_id = dict(zip((r.id for r in corrected), lost["window"], strict=True))
        detail["examples"] = examples_of(corrected, [by_id[record.id] for record in corrected])
        usual = list(zip(held_to["reference"], lost["reference"], strict=True))
        detail["slices"] = where.of_values(
            corrected, lost["window"], rng, usual, unit="BLEU", shown=detail["window_bleu"]
        )
    return Judgement("drift" if result.alarm else "none", len(now), result, detail)


def bad_corrections(held: Comparison, alpha: float, _rng: np.random.Generator) -> Judgement:
    """Whether more of users' corrections than of the reference's are such that nothing can be learned from them.

    Such are those that say what the answer said, that repeat themselves, that refuse, and that other
    questions, of either side, were corrected with word for word: as the same rule reads both sides together, records
    stay exchangeable while nothing changes.
    """
    sides = held.corrected()
    for what, records in sides.items():
        if len(records) < ENOUGH_CORRECTED:
            reason = f"{len(records)} answers of the {what} were corrected; {ENOUGH_CORRECTED} are needed"
            said = {"reason": reason, "too_few_corrections": True, "not_measured": True}
            return Judgement("not enough data", len(sides["window"]), None, said)
    asked: dict[str, set[str]] = {}  # correction → the questions it was given for
    for record in chain(*sides.values()):
        asked.setdefault(_plain(held.corrections[record.id]), set()).add(_plain(record.question))
    faults = {
        what: [_fault(held.corrections[record.id], record, asked) for record in records]
        for what, records in sides.items()
    }
    (had, of), (has, among) = ((sum(map(bool, found)), len(found)) for found in faults.values())
    result = share_rise_test((had, of), (has, among), alpha)
    counts = Counter(fault for fault in faults["window"] if fault)
    detail: dict[str, Any] = {
        "unit": "share of corrections",
        "shares": {"reference": round(had / of, 4), "window": round(has / among, 4)},
        "faults": dict(counts),
    }
    if result.alarm:
        hits, now = [bool(fault) for fault in faults["window"]], sides["window"]
        detail["worst"] = counts.most_common(1)[0][0]
        detail["examples"] = examples_of([r for r, hit in zip(now, hits, strict=True) if hit], [1.0] * has)
        earlier = [(r, float(bool(f))) for r, f in zip(sides["reference"], faults["reference"], strict=True)]
        detail["slices"] = where.of_hits(now, hits, earlier)
    return Judgement("drift" if result.alarm else "none", among, result, detail)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _fault(correction: str, record: RequestRecord, asked: Mapping[str, AbstractSet[str]]) -> str:
    """What is wrong with a correction; nothing."""
    plain = _plain(correction)
    if is_broken(correction):
        return "repeating themselves"
    if record.answer is not None and plain == _plain(record.answer):
        return "what the answer said already"
    if is_refusal(correction):
        return "refusals"
    return "the same text for several questions" if len(asked[plain]) > 1 else ""


def parity(held: Comparison, alpha: float, rng: np.random.Generator) -> Judgement:
    """Whether one group of people is refused more than everybody else, or answered at a length that has changed for it
    alone; this window and the ones before it together."""
    sides = {"reference": held.reference.records, "window": held.window.records}
    said: dict[str, list[list[Any]]] = {}
    for what, records in sides.items():
        texts = [record for record in records if record.answer is not None]
        if len(texts) < ENOUGH_TEXT * len(records):
            missing = len(records) - len(texts)
            reason = f"{missing} of the {what}'s {len(records)} answers are on record without their text"
            return Judgement("not enough data", len(texts), None, {"reason": reason, "too_little_text": True})
        lengths = [round(float(value), 4) for value in log_lengths(texts)]
        said[what] = [
            [sorted(groups_of(record.question).values()), int(is_refusal(record.answer or "")), length]
            for record, length in zip(texts, lengths, strict=True)
        ]
    earlier, accepted = (
        [row for score in scores for row in score.detail.get("said", ())]
        for scores in (held.pool.earlier, held.pool.accepted)
    )
    pooled = earlier + said["window"]
    detail: dict[str, Any] = {"unit": "minus the decimal logarithm of Holm's p", "said": said["window"]}
    gaps = gaps_of(said["reference"], pooled, alpha, rng, accepted)
    if not gaps:
        reason = f"no group of people is spoken of in ten of the newest {len(pooled)} questions"
        return Judgement("not enough data", len(pooled), None, detail | {"reason": reason, "too_few_of_a_group": True})
    worst = min(gaps, key=lambda gap: (gap.p_holm, gap.p_value))
    detail["gaps"] = [vars(gap) for gap in gaps]
    detail["worst"] = said_of(worst)
    result = Outcome(-math.log10(worst.p_holm), -math.log10(alpha), worst.p_holm, alpha, worst.permutations)
    if result.alarm:
        hit = [worst.group in groups_of(record.question).values() for record in held.window.records]
        theirs = [record for record, its in zip(held.window.records, hit, strict=True) if its]
        detail["examples"] = examples_of(theirs, [float(is_refusal(record.answer or "")) for record in theirs])
    return Judgement("drift" if result.alarm else "none", len(pooled), result, detail)
