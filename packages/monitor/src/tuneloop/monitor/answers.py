"""Quality of answers where a model's owner asks for more: BLEU against users' corrections, whether those can be learned
from, and parity between groups of people, of refusals and of lengths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from tuneloop.monitor import where
from tuneloop.monitor.bleu import sentence_bleus, signature
from tuneloop.monitor.comparison import ENOUGH_CORRECTED, ENOUGH_TEXT, Comparison, Judgement, examples_of
from tuneloop.monitor.detectors import Outcome, mean_rise_test
from tuneloop.monitor.late_corrections import LOOKED_UNTIL, SEEN, SEEN_LATE
from tuneloop.monitor.parity import groups_of
from tuneloop.monitor.parity_gaps import gaps_of, said_of
from tuneloop.monitor.quality import is_broken, is_refusal, log_lengths, share_rise_test
from tuneloop.registry.nouns import RequestRecord

Sides = Mapping[str, Sequence[RequestRecord]]  # "reference" and "window": the answers of either that were corrected


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

    What came too late for its own window is held apart, against what of the reference came late too: where there is
    enough of both kinds each is tested at half the level (the p-value is twice the smaller). Late ones that are too few
    wait for more; of its own a window that has too few is over.
    """
    sides, late = held.corrected(), _late_sides(held)
    parts = [part for part in (sides, late) if all(len(records) >= ENOUGH_CORRECTED for records in part.values())]
    seen: dict[str, Any] = {SEEN: [record.id for record in sides["window"]]}
    if late in parts:
        seen[SEEN_LATE] = [record.id for record in late["window"]]
    if held.belated.until is not None:
        seen[LOOKED_UNTIL] = held.belated.until.isoformat()
    if not parts:
        what, few = next((what, len(r)) for what, r in sides.items() if len(r) < ENOUGH_CORRECTED)
        reason = f"{few} answers of the {what} were corrected; {ENOUGH_CORRECTED} are needed"
        said = {"reason": reason, "too_few_corrections": True, "not_measured": True}
        return Judgement("not enough data", len(sides["window"]), None, said | seen)
    corrections = {**held.belated.texts, **held.corrections}
    asked: dict[str, set[str]] = {}  # correction → the questions it was given for
    for record in chain.from_iterable(records for part in parts for records in part.values()):
        asked.setdefault(_plain(corrections[record.id]), set()).add(_plain(record.question))
    tested = [_tested(part, corrections, asked, alpha / len(parts)) for part in parts]
    worst = min(range(len(parts)), key=lambda place: tested[place].result.p_value)
    part, found = parts[worst], tested[worst]
    result = replace(found.result, p_value=min(1.0, len(parts) * found.result.p_value), alpha=alpha)
    counts = Counter(fault for fault in found.faults["window"] if fault)
    detail: dict[str, Any] = {
        "unit": "share of corrections that came late" if part is late else "share of corrections",
        "shares": found.shares,
        "faults": dict(counts),
    }
    if result.alarm:
        hits, now = [bool(fault) for fault in found.faults["window"]], part["window"]
        detail["worst"] = counts.most_common(1)[0][0]
        detail["examples"] = examples_of([r for r, hit in zip(now, hits, strict=True) if hit], [1.0] * sum(hits))
        earlier = [(r, float(bool(f))) for r, f in zip(part["reference"], found.faults["reference"], strict=True)]
        detail["slices"] = where.of_hits(now, hits, earlier)
    among = sum(len(part["window"]) for part in parts)
    return Judgement("drift" if result.alarm else "none", among, result, detail | seen)


def _late_sides(held: Comparison) -> Sides:
    """Corrections of earlier windows' answers that came late, and of the reference's; where of these too few did, all
    of the reference's: better held against another kind of answer than looked at by nobody."""
    against = [record for record in held.belated.reference if record.id in held.corrections]
    if len(against) < ENOUGH_CORRECTED:
        against = [record for record in held.reference.records if record.id in held.corrections]
    return {"reference": against, "window": held.belated.window}


@dataclass(frozen=True)
class _Tested:
    """What Fisher's test says of one kind of corrections."""

    result: Outcome
    faults: Mapping[str, Sequence[str]]  # by side, what is wrong with each; nothing
    shares: Mapping[str, float]  # by side


def _tested(
    sides: Sides, corrections: Mapping[str, str], asked: Mapping[str, AbstractSet[str]], alpha: float
) -> _Tested:
    faults = {
        what: [_fault(corrections[record.id], record, asked) for record in records] for what, records in sides.items()
    }
    (had, of), (has, among) = ((sum(map(bool, found)), len(found)) for found in faults.values())
    shares = {"reference": round(had / of, 4), "window": round(has / among, 4)}
    return _Tested(share_rise_test((had, of), (has, among), alpha), faults, shares)


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
