"""What a score does not say by itself: rows that are cut or count twice, answers that are empty, all alike, or cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.data.near import normal
from tuneloop.train.evaluation.measure import EvaluationSet, SetScore

_ALIKE = 0.5  # share of answers that are one and the same, from where on a model is taken for collapsed
_FEW = 4  # answers; among fewer, equal ones say little


def duplicate_rows(chosen: EvaluationSet) -> int:
    """Rows that repeat another of the same set, question and answer, up to case and spacing."""
    return len(chosen.rows) - len({(normal(row.prompt), normal(row.answer)) for row in chosen.rows})


def remarks_on_set(chosen: EvaluationSet) -> list[str]:
    """About the set itself."""
    twice = duplicate_rows(chosen)
    rows = f"{twice} of {len(chosen.rows)} rows repeat another and count again; its intervals are too narrow"
    return [
        *([f"{chosen.name}: {rows}"] if twice else []),
        *remarks_on_labelled(chosen.name, chosen.labelled),
    ]


def remarks_on_labelled(name: str, rows: Sequence[LabelledRow]) -> list[str]:
    """About what of a held-out set is not measured."""
    unread = sum(row.unlearned_answers for row in rows)
    joined = f"{unread} earlier answers are not measured: the tokenizer joins their beginning or end to its neighbour"
    return [*remarks_on_cut(name, [row.truncated for row in rows]), *([f"{name}: {joined}"] if unread else [])]


def remarks_on_cut(name: str, cut: Sequence[bool]) -> list[str]:
    """About rows of a held-out set that are longer than what is read of them."""
    rows = f"{sum(cut)} of {len(cut)} rows were cut at objective.max_length and are measured up to there; raise it"
    return [f"{name}: {rows}"] if any(cut) else []


def remarks_on_answers(chosen: EvaluationSet, score: SetScore) -> list[str]:
    """About what a model answered; a model that answers everything alike has collapsed, whatever its perplexity."""
    total, name = len(score.answers), chosen.name
    found = [f"{name}: {reason}" for reason in score.failed.values()]
    if empty := sum(not answer.text for answer in score.answers):
        found.append(f"{name}: {empty} of {total} answers are empty; look at the end-of-turn token and the template")
    references = Counter(row.answer for row in chosen.asked)
    text, times = Counter(answer.text for answer in score.answers).most_common(1)[0] if total else ("", 0)
    if total >= _FEW and text and times > _ALIKE * total and references[text] < times:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        found.append(
            f"{name}: {times} of {total} answers are the same, {shown!r}: the model has collapsed; "
            "lower optim.learning_rate or train fewer steps"
        )
    if cut := sum(not answer.ended for answer in score.answers):
        found.append(
            f"{name}: {cut} of {total} answers were cut at evaluate.max_new_tokens and are scored as they stand; "
            "raise it if answers are longer than that, else the model has not learned to stop"
        )
    return found
