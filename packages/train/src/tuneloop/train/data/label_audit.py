"""Rows labelled, and what training will learn from them: counted, told and refused before step one.

What would teach nothing, or never to stop, is an error; what is read and not learned is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.data.labels import APART, LabelledPair, LabelledPrompt, LabelledRow, Labeller
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.rows import Row

_SHOWN = 5
R = TypeVar("R")
L = TypeVar("L")


@dataclass(frozen=True)
class LabelAudit:
    """What training will learn from; printed and logged before step one."""

    rows: int
    tokens: int
    trained_tokens: int
    truncated_rows: int
    rows_without_end: int  # rows whose last end-of-turn was cut off
    longest: int
    end_of_turn: str
    template_digest: str
    unlearned_answers: int = 0  # earlier ones that are read in other tokens than the model would write

    @property
    def trained_share(self) -> float:
        """Learned tokens among all."""
        return self.trained_tokens / self.tokens

    @property
    def warning(self) -> str | None:
        """What is read and should be learned, but is not, and what to do; None where all of it is."""
        if not self.unlearned_answers:
            return None
        return (
            f"answers with turns behind them that are read, but not learned: {self.unlearned_answers}; the base's "
            f"tokenizer joins what stands on both sides of their beginning or end into one token; {APART}"
        )

    def as_json(self) -> dict[str, Any]:
        """Every figure, for `label_audit.json`."""
        return asdict(self) | {"trained_share": self.trained_share}


@dataclass(frozen=True)
class PromptAudit:
    """What the policy will be asked; printed and logged before step one."""

    rows: int
    tokens: int
    left_out: int  # questions longer than objective.max_prompt_length
    longest: int
    end_of_turn: str
    template_digest: str

    def as_json(self) -> dict[str, Any]:
        """Every figure, for `label_audit.json`."""
        return asdict(self)


def label_rows(labeller: Labeller, rows: Sequence[Row], template_digest: str) -> tuple[list[LabelledRow], LabelAudit]:
    """Label every row and audit the result.

    Raises:
        InvalidInput: a row would teach nothing (cut off before its answer), or none would teach to stop.
    """
    labelled = list(teaching_rows(labeller, rows))
    return labelled, _audited(labelled, labeller, template_digest)


def teaching_rows(labeller: Labeller, rows: Iterable[Row]) -> Iterator[LabelledRow]:
    """The same one by one; what is wrong with some of them is said behind the last."""
    return _each(rows, lambda row: _teaching(labeller.label(row), row.place))


def why_unlabelled(labeller: Labeller, row: Row) -> str | None:
    """What is wrong with a row that teaches nothing; None where it can be learned from."""
    try:
        _teaching(labeller.label(row), row.place)
    except InvalidInput as error:
        return str(error)
    return None


def label_pairs(
    labeller: Labeller, rows: Sequence[PreferenceRow], template_digest: str
) -> tuple[list[LabelledPair], LabelAudit]:
    """Label every preference and audit both its sides; raises as `label_rows`."""

    def made(row: PreferenceRow) -> LabelledPair:
        pair = labeller.pair(row)
        for side in (pair.chosen, pair.rejected):
            _teaching(side, row.place)
        return pair

    labelled = list(_each(rows, made))
    sides = [side for pair in labelled for side in (pair.chosen, pair.rejected)]
    return labelled, _audited(sides, labeller, template_digest)


def label_prompts(
    labeller: Labeller, rows: Sequence[PromptRow], max_prompt_length: int, template_digest: str
) -> tuple[list[LabelledPrompt], PromptAudit]:
    """Tokenise every question; those above `max_prompt_length` tokens are left out and counted.

    Raises:
        InvalidInput: a row holds control tokens, or none is short enough.
    """
    asked = list(_each(rows, labeller.ask))
    kept = [prompt for prompt in asked if len(prompt.ids) <= max_prompt_length]
    if not kept:
        shortest = min(len(prompt.ids) for prompt in asked)
        raise InvalidInput(
            f"every question is longer than objective.max_prompt_length {max_prompt_length} (the shortest has "
            f"{shortest} tokens); raise it"
        )
    audit = PromptAudit(
        rows=len(kept),
        tokens=sum(len(prompt.ids) for prompt in kept),
        left_out=len(asked) - len(kept),
        longest=max(len(prompt.ids) for prompt in kept),
        end_of_turn=labeller.end_of_turn,
        template_digest=template_digest,
    )
    return kept, audit


def _each(rows: Iterable[R], label: Callable[[R], L]) -> Iterator[L]:
    errors: list[str] = []
    wrong = 0
    for row in rows:
        try:
            made = label(row)
        except InvalidInput as error:
            wrong += 1
            errors += [str(error)] if wrong <= _SHOWN else []
        else:
            yield made
    if wrong:
        more = f"\n… and {wrong - _SHOWN} more" if wrong > _SHOWN else ""
        raise InvalidInput("\n".join(errors) + more)


def _teaching(made: LabelledRow, place: str) -> LabelledRow:
    if made.trained == 0:
        raise InvalidInput(
            f"{place or 'a row'}: no token of it would be learned: objective.max_length cuts it before the "
            f"answer (token {made.prompt_length + 1}); raise max_length or shorten the question"
        )
    return made


def _audited(labelled: Iterable[LabelledRow], labeller: Labeller, template_digest: str) -> LabelAudit:
    tally = Tally()
    for _ in tally.counted(labelled):
        pass
    return tally.audit(labeller, template_digest)


class Tally:
    """What is learned, counted as rows go by."""

    def __init__(self) -> None:
        self._rows = self._tokens = self._trained = self._truncated = self._without_end = self._longest = 0
        self._unlearned = 0

    def counted(self, rows: Iterable[LabelledRow]) -> Iterator[LabelledRow]:
        """The rows, each counted as it passes."""
        for row in rows:
            self._rows += 1
            self._tokens += len(row.ids)
            self._trained += row.trained
            self._truncated += row.truncated
            self._without_end += row.ends == 0 or row.truncated
            self._longest = max(self._longest, len(row.ids))
            self._unlearned += row.unlearned_answers
            yield row

    def audit(self, labeller: Labeller, template_digest: str) -> LabelAudit:
        """Of all that passed.

        Raises:
            InvalidInput: none of them would teach to stop.
        """
        if self._without_end == self._rows:
            raise InvalidInput(
                f"every row is cut off by objective.max_length before its {labeller.end_of_turn}: the model would "
                "never learn to stop; raise max_length"
            )
        return LabelAudit(
            rows=self._rows,
            tokens=self._tokens,
            trained_tokens=self._trained,
            truncated_rows=self._truncated,
            rows_without_end=self._without_end,
            longest=self._longest,
            end_of_turn=labeller.end_of_turn,
            template_digest=template_digest,
            unlearned_answers=self._unlearned,
        )
