"""The rows of a retraining: old ones replayed, fresh ones from users' corrections, and nothing that is measured. Pure.

Order of work: the newest correction of each request → redact → look at their quality → drop what cannot be labelled →
drop doubles → split off the evaluation set `fresh` → drop from training whatever equals or nearly equals a row of any
evaluation set. The rows that early stopping looks at are held apart as those sets are. Every row dropped is counted
under its reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from tuneloop.registry.nouns import Message, RequestRecord
from tuneloop.train.data.near import NearIndex, normal
from tuneloop.train.data.quality.findings import Finding, Findings
from tuneloop.train.data.rows import Row

NEAR = 0.8  # Jaccard index of character 5-grams, question and answer together, from which two rows count as one
_SHOWN = 5
UNLABELLED = "cannot be labelled"
_MEASURED = "equals or nearly equals a row of an evaluation set"
NOT_STORED = "question was not stored"
FRESH_SHARE_PERCENT = 20  # of the fresh rows measured instead of learned
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "prompt": "user"}


@dataclass(frozen=True)
class RetrainingData:
    """What a retraining learns from and what it is measured on, with the count of every row left out."""

    train: tuple[Row, ...]
    sets: Mapping[str, tuple[Row, ...]]
    fresh_rows: int  # learned
    replayed_rows: int
    dropped: Mapping[str, int]
    quality: Findings  # of all fresh rows
    unlabelled: tuple[str, ...] = ()  # what is wrong with those that cannot be, row by row

    @property
    def shown_unlabelled(self) -> tuple[str, ...]:
        """What is wrong with the first of those that cannot be labelled."""
        return self.unlabelled[:_SHOWN]

    def said(self) -> list[str]:
        """What becomes of the rows, for the screen."""
        shown = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items()) or "none"
        told = f"data: {self.fresh_rows} fresh and {self.replayed_rows} old rows to learn; dropped: {shown}"
        return [told, *(f"warning: not learned: {why}" for why in self.shown_unlabelled), *self.quality.warnings]

    def quality_json(self) -> list[dict[str, Any]]:
        """The findings, with what stands in an evaluation set: all of that is dropped, old rows and near ones too."""
        measured = sum(count for reason, count in self.dropped.items() if reason.endswith(_MEASURED))
        apart = [
            Finding("leakage", "drop", measured, measured, _MEASURED),
            Finding("near_leakage", "drop", 0, 0, "counted under leakage"),
        ]
        others = [found for found in self.quality.findings if found.check not in {one.check for one in apart}]
        return [asdict(found) for found in (*others, *apart)]


def corrected_rows(found: Iterable[tuple[RequestRecord, str]], dropped: Counter[str]) -> Iterator[Row]:
    """The conversation of every corrected request, ended by the correction instead of the model's answer."""
    for record, correction in found:
        turns = tuple(Message(role=_ROLES.get(m.role, ""), content=m.content) for m in record.messages)
        if not turns:
            dropped[NOT_STORED] += 1
        elif turns[-1].role != "user" or any(not turn.role or not turn.content.strip() for turn in turns):
            dropped["conversation cannot be learned from"] += 1
        else:
            yield Row((*turns, Message(role="assistant", content=correction)), f"request {record.id}")


def build(
    fresh: Sequence[Row],
    replay: Sequence[Row],
    sets: Mapping[str, tuple[Row, ...]],
    *,
    validation: Sequence[Row] = (),
    fresh_name: str,
    replay_rows: int,
    redact: Callable[[str], str],
    good: Callable[[Sequence[Row]], Findings],
    wrong: Callable[[Row], str | None],
    dropped: Counter[str],
) -> RetrainingData:
    """Put a retraining's rows together.

    Args:
        fresh: corrected conversations, oldest first.
        replay: the training rows of the champion and its ancestors.
        sets: the evaluation sets so far; they stay as they are.
        validation: rows that are validated on; neither learned nor measured.
        fresh_name: what the additional evaluation set is called.
        replay_rows: how many old rows to keep, chosen by the hash of their text.
        redact: takes personal data out of a text.
        good: judges redacted rows as any training rows are judged.
        wrong: why a row cannot be labelled as the run will; None where it can.
        dropped: reasons and counts so far.
    """
    redacted = [_redacted(row, redact) for row in fresh]
    findings = good(redacted)
    dropped.update(findings.dropped)
    unlabelled: list[str] = []

    def is_labelled(row: Row, count: Counter[str]) -> bool:
        why = wrong(row)
        if why is not None:
            unlabelled.append(why)
            count[UNLABELLED] += 1
        return why is None

    good_rows = [row for row, kept in zip(redacted, findings.kept, strict=True) if kept]
    single = without_doubles([row for row in good_rows if is_labelled(row, dropped)], dropped)
    kept_apart = [*(row for rows in sets.values() for row in rows), *validation]
    measured, learned = split_off(_apart(single, kept_apart, dropped))
    kept_apart += measured
    new_sets = {**sets, fresh_name: tuple(measured)} if measured else dict(sets)
    kept_fresh = _apart(learned, kept_apart, dropped)
    of_old: Counter[str] = Counter()
    kept_old = _replayed(replay, set(learned), kept_apart, replay_rows, of_old, is_labelled)
    dropped.update({f"old row: {reason}": count for reason, count in of_old.items() if count})
    counts = dict(sorted(dropped.items()))
    learned_rows = (*kept_fresh, *kept_old)
    return RetrainingData(learned_rows, new_sets, len(kept_fresh), len(kept_old), counts, findings, tuple(unlabelled))


def without_doubles(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """Rows without exact and near doubles; of several answers to one question the newest (last) stays."""
    kept: list[Row] = []
    prompts: set[str] = set()
    index = NearIndex()
    for row in reversed(rows):
        if normal(row.prompt) in prompts:
            dropped["same question again"] += 1
        elif index.similarity(_text(row)) >= NEAR:
            dropped["nearly the same row again"] += 1
        else:
            prompts.add(normal(row.prompt))
            index.add(_text(row))
            kept.append(row)
    return kept[::-1]


def split_off(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(measured, learned): about a fifth of the rows by the hash of their question, the same ones every time.

    Rows with one and the same answer stay on one side: the first question by alphabet decides for all of them.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[normal(row.answer)].append(row)
    leader = {answer: min(normal(row.prompt) for row in group) for answer, group in groups.items()}
    measured: list[Row] = []
    learned: list[Row] = []
    for row in rows:
        aside = _hash(leader[normal(row.answer)]) % 100 < FRESH_SHARE_PERCENT
        (measured if aside else learned).append(row)
    return measured, learned


def _apart(rows: Sequence[Row], measured: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    is_measured = _matcher(measured)
    kept = [row for row in rows if not is_measured(row)]
    if len(kept) < len(rows):
        dropped[_MEASURED] += len(rows) - len(kept)
    return kept


def _replayed(
    replay: Sequence[Row],
    learned: Set[Row],
    measured: Sequence[Row],
    most: int,
    dropped: Counter[str],
    is_labelled: Callable[[Row, Counter[str]], bool],
) -> list[Row]:
    """At most so many old rows, by the hash of their text; of however many, only these are looked at in full."""
    newest = list({normal(row.prompt): row for row in replay}.values())
    dropped["same question again"] += len(replay) - len(newest)
    waiting = sorted((row for row in newest if row not in learned), key=lambda row: _hash(row.line()))
    dropped["learned as a fresh one"] += len(newest) - len(waiting)
    is_measured, index = _matcher(measured), NearIndex()
    kept: list[Row] = []
    for looked, row in enumerate(waiting):
        if len(kept) == most:
            dropped["beyond the rows to replay"] += len(waiting) - looked
            break
        if is_measured(row):
            dropped[_MEASURED] += 1
        elif index.similarity(_text(row)) >= NEAR:
            dropped["nearly the same row again"] += 1
        elif is_labelled(row, dropped):
            index.add(_text(row))
            kept.append(row)
    return kept


def _matcher(measured: Sequence[Row]) -> Callable[[Row], bool]:
    """Whether a row equals or nearly equals one that is measured."""
    prompts = {normal(row.prompt) for row in measured}
    answers = {normal(row.answer) for row in measured}
    index = NearIndex()
    for row in measured:
        index.add(_text(row))
    return lambda row: (
        normal(row.prompt) in prompts or normal(row.answer) in answers or index.similarity(_text(row)) >= NEAR
    )


def _redacted(row: Row, redact: Callable[[str], str]) -> Row:
    turns = tuple(Message(role=turn.role, content=redact(turn.content)) for turn in row.messages)
    return Row(turns, row.place)


def _text(row: Row) -> str:
    return f"{row.prompt}\n{row.answer}"


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")
