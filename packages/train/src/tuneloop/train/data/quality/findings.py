"""What was found in rows, and what the recipe says to do about it: each row dropped is counted under one reason.

Checks are judged in the order of `CHECKS`; a row that several of them would drop counts under the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.train.data.quality import overlap
from tuneloop.train.data.quality.bias import length_bias
from tuneloop.train.data.quality.look import Columns, foreign
from tuneloop.train.data.quality.overlap import Matches
from tuneloop.train.data.rows import Row
from tuneloop.train.recipe.data import QualitySection

_EXAMPLES = 5
_BALANCE_ROWS = 10  # fewer rows have no commonest answer worth a word
_LONGEST_ROWS = 50  # fewer rows have no longest tenth worth a word
CHECKS = {
    "format": "rows that cannot be read",
    "empty": "rows without a question or an answer",
    "identical": "preferences between two equal answers",
    "duplicates": "rows that say the same as an earlier one",
    "leakage": "rows that are also measured",
    "near_leakage": "rows that nearly equal a measured one, or ask its question",
    "conflicts": "rows whose question has another answer, or the opposite preference, before",
    "near_duplicates": "rows that nearly equal an earlier one",
    "long": "answers over max_words",
    "language": "rows in another language",
    "toxicity": "rows that look offensive",
    "pii": "rows with personal data",
    "score": "rows under min_score",
    "balance": "rows that share the commonest answer",
    "length_balance": "answers of the longest tenth, which outweigh the others",
    "length_bias": "preferences that length alone would tell",
}


@dataclass(frozen=True)
class Finding:
    """One check: how many rows it is about, what was done, and where to look."""

    check: str
    action: str  # drop, warn, refuse, off
    rows: int
    dropped: int
    detail: str = ""
    examples: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """In words."""
        return CHECKS[self.check]

    @property
    def refuses(self) -> bool:
        """Whether it stops the run."""
        return self.action == "refuse" and self.rows > 0


@dataclass(frozen=True)
class Measured:
    """A set that is measured, and so must not be learned."""

    name: str
    rows: Sequence[Row]
    columns: Columns


@dataclass(frozen=True)
class Unread:
    """Rows that never became rows: how many, and the first of them."""

    broken: int = 0
    broken_places: tuple[str, ...] = ()
    empty: int = 0
    empty_places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """All checks, and which rows are kept."""

    findings: tuple[Finding, ...]
    kept: NDArray[np.bool_]

    @property
    def dropped(self) -> dict[str, int]:
        """Check → rows dropped for it."""
        return {finding.check: finding.dropped for finding in self.findings if finding.dropped}

    @property
    def refusals(self) -> list[str]:
        """One paragraph a check that refuses."""
        return [refusal(finding) for finding in self.findings if finding.refuses]

    @property
    def warnings(self) -> list[str]:
        """One line a check that found something and only says so."""
        return [
            f"warning: {one.meaning}: {one.rows}{f' ({one.detail})' if one.detail else ''}"
            + (f"; for example {one.examples[0]}" if one.examples else "")
            for one in self.findings
            if one.action == "warn" and one.rows
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Every check as a plain object."""
        return [asdict(finding) for finding in self.findings]


def judge_rows(
    columns: Columns,
    rows: Sequence[Row],
    quality: QualitySection,
    measured: Sequence[Measured] = (),
    unread: Unread | None = None,
) -> Findings:
    """Judge rows that were looked at.

    Args:
        columns: what `look` found.
        rows: the same rows, read again by number where two texts are compared.
        quality: what to do about each fault.
        measured: sets whose rows must not be learned.
        unread: rows that could not be read.
    """
    judged = _Judging(columns, rows, quality, unread or Unread())
    judged.unread()
    judged.equal_answers()
    judged.repeats()
    judged.leaks(measured)
    judged.near_repeats()
    judged.texts()
    judged.balance()
    judged.length_balance()
    judged.length_bias()
    return Findings(tuple(judged.found), judged.kept)


class _Judging:
    """The findings so far, and the rows that are left."""

    def __init__(self, columns: Columns, rows: Sequence[Row], quality: QualitySection, unread: Unread) -> None:
        self.found: list[Finding] = []
        self.kept = np.ones(len(columns), bool)
        self._columns = columns
        self._rows = rows
        self._quality = quality
        self._unread = unread

    def unread(self) -> None:
        """Rows that could not be read, or were blank."""
        given, quality = self._unread, self._quality
        for check, action, count, places in (
            ("format", quality.format, given.broken, given.broken_places),
            ("empty", quality.empty, given.empty, given.empty_places),
        ):
            dropped = count if action == "drop" else 0
            self.found.append(Finding(check, action, count, dropped, examples=places[:_EXAMPLES]))

    def equal_answers(self) -> None:
        """Preferences that prefer nothing."""
        if self._columns.preferred.any():
            self._judge("identical", self._columns.identical, lambda _: "chosen and rejected are the same answer")
        else:
            self.found.append(Finding("identical", "off", 0, 0))

    def repeats(self) -> None:
        """Rows that stand twice."""
        if self._off("duplicates"):
            return
        matches = overlap.repeats(self._columns)
        self._judge("duplicates", matches.found, lambda row: f"says what {self._place(matches, row)} says")

    def leaks(self, measured: Sequence[Measured]) -> None:
        """Rows that are measured, and rows near to them."""
        exact, near = self._none(), self._none()
        told: dict[tuple[str, int], str] = {}
        for chosen in measured:
            if self._quality.leakage != "off":
                same = overlap.shared_with(self._columns, chosen.columns)
                _tell(told, "leakage", same, chosen, lambda _: "is also in")
                exact |= same.found
            if self._quality.near_leakage != "off":
                alike = overlap.nearly_shared_with(
                    self._columns,
                    self._rows,
                    chosen.columns,
                    chosen.rows,
                    self._quality.near,
                    exact | ~self.kept | near,
                )
                _tell(
                    told,
                    "near_leakage",
                    alike,
                    chosen,
                    lambda n: f"is {n:.0%} like a row of" if n else "asks a question of",
                )
                near |= alike.found
        for check, mask in (("leakage", exact), ("near_leakage", near & ~exact)):
            if not self._off(check):
                self._judge(check, mask, lambda row, check=check: told.get((check, row), "is measured"))  # type: ignore[misc]

    def near_repeats(self) -> None:
        """Questions with two answers, and rows that nearly stand twice."""
        if not self._off("conflicts", unless=self._columns.answered.any()):
            matches, preferred = overlap.conflicts(self._columns), self._columns.preferred
            self._judge(
                "conflicts",
                matches.found,
                lambda row: f"{'prefers' if preferred[row] else 'answers'} otherwise than {self._place(matches, row)}",
            )
        if not self._off("near_duplicates"):
            near = overlap.near_repeats(self._columns, self._rows, self._quality.near, ~self.kept)
            self._judge(
                "near_duplicates",
                near.found,
                lambda row: f"is {near.similarity[row]:.0%} like {self._place(near, row)}",
            )

    def texts(self) -> None:
        """What each row is by itself."""
        columns, quality = self._columns, self._quality
        if not self._off("long"):
            words = np.maximum(columns.answer_words, columns.rejected_words)
            words = np.where(columns.answered, words, columns.prompt_words)
            self._judge(
                "long",
                words > quality.max_words,
                lambda row: f"{'answers' if columns.answered[row] else 'asks'} with {words[row]} words",
            )
        if not self._off("language"):
            codes = columns.language_codes
            wrong = np.array([foreign(code, quality) for code in codes], bool)
            mask = wrong[columns.languages] if len(codes) else self._none()
            self._judge("language", mask, lambda row: f"looks like {codes[columns.languages[row]]}")
        if not self._off("toxicity"):
            mask = columns.toxicity >= quality.max_toxicity
            self._judge("toxicity", mask, lambda row: f"is offensive with probability {columns.toxicity[row]:.2f}")
        if not self._off("pii"):
            kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(columns.personal_kinds.items()))
            self._judge("pii", columns.personal, lambda _: "", detail=kinds)
        scores, least = columns.scores, quality.min_score
        if least is None:
            self.found.append(Finding("score", "off", 0, 0))
        else:
            self._judge("score", scores < least, lambda row: f"scores {scores[row]:.2f}", action="drop")

    def balance(self) -> None:
        """Whether one answer outweighs the others, among the rows that are kept."""
        if self._off("balance", unless=self._columns.answered.any()):
            return
        keys = self._columns.answer_keys[self.kept & self._columns.answered]
        values, counts = np.unique(keys, return_counts=True)
        most = int(counts.max()) if len(counts) else 0
        share = most / len(keys) if len(keys) else 0.0
        over = len(keys) >= _BALANCE_ROWS and share > self._quality.max_answer_share
        detail = f"{share:.0%} of the rows; {len(values)} different answers"
        examples: tuple[str, ...] = ()
        if over:
            same = self._columns.answered & (self._columns.answer_keys == values[counts.argmax()])
            first = int(np.flatnonzero(self.kept & same)[0])
            examples = (f"{self._rows[first].place}: gives the answer of {share:.0%} of the rows",)
        self.found.append(Finding("balance", self._quality.balance, most if over else 0, 0, detail, examples))

    def length_balance(self) -> None:
        """Whether the longest tenth of the answers holds most of what is learned: each token weighs the same."""
        answered = self._columns.answered & ~self._columns.preferred
        if self._off("length_balance", unless=answered.any()):
            return
        words = np.where(self.kept & answered, self._columns.answer_words, 0)
        longest = np.argsort(-words, kind="stable")[: int((self.kept & answered).sum()) // 10]
        share = float(words[longest].sum() / max(1, words.sum()))
        over = len(longest) * 10 >= _LONGEST_ROWS and share > self._quality.max_long_share
        detail = f"they hold {share:.0%} of the answers' words" if len(longest) else ""
        examples = tuple(f"{self._rows[row].place}: {words[row]} words" for row in longest[:_EXAMPLES].tolist())
        action = self._quality.length_balance
        self.found.append(
            Finding("length_balance", action, len(longest) if over else 0, 0, detail, examples if over else ())
        )

    def length_bias(self) -> None:
        """Whether the longer answer is preferred, or the shorter, so often that length is what would be learned."""
        if self._off("length_bias", unless=self._columns.preferred.any()):
            return
        found = length_bias(self._columns, self.kept)
        most = self._quality.max_length_bias
        over = found is not None and max(found.low, 1 - found.high) > most
        action = self._quality.length_bias
        self.found.append(Finding("length_bias", action, found.pairs if found and over else 0, 0, str(found or "")))

    def _judge(
        self,
        check: str,
        mask: NDArray[np.bool_],
        why: Callable[[int], str],
        *,
        action: str | None = None,
        detail: str = "",
    ) -> None:
        """Count rows that are still there, and drop them if that is what the recipe says."""
        action = action or getattr(self._quality, check)
        mask = mask & self.kept
        count = int(mask.sum())
        examples = tuple(
            f"{self._rows[row].place}: {why(row)}".removesuffix(": ")
            for row in np.flatnonzero(mask)[:_EXAMPLES].tolist()
        )
        if action == "drop":
            self.kept = self.kept & ~mask
        self.found.append(
            Finding(check, action, count, count if action == "drop" else 0, detail if count else "", examples)
        )

    def _off(self, check: str, *, unless: bool | np.bool_ = True) -> bool:
        """Whether a check is off, or the rows hold nothing it could be made of."""
        off = bool(getattr(self._quality, check) == "off" or not unless)
        if off:
            self.found.append(Finding(check, "off", 0, 0))
        return off

    def _place(self, matches: Matches, row: int) -> str:
        return self._rows[int(matches.other[row])].place

    def _none(self) -> NDArray[np.bool_]:
        return np.zeros(len(self._columns), bool)


def refusal(finding: Finding) -> str:
    """Why a run does not begin, and the way out."""
    shown = "".join(f"\n  {example}" for example in finding.examples)
    more = f"\n  … and {finding.rows - len(finding.examples)} more" if finding.rows > len(finding.examples) else ""
    return (
        f"{finding.check}: {finding.meaning}: {finding.rows}"
        f"{f' ({finding.detail})' if finding.detail else ''}{shown}{more}\n"
        f"  mend the data, or set data.quality.{finding.check} to {_way_out(finding.check)}"
    )


def _way_out(check: str) -> str:
    drops, warns = {"format", "empty", "identical"}, {"balance", "length_balance", "length_bias"}
    return "drop" if check in drops else "warn" if check in warns else "drop or warn"


def _tell(
    told: dict[tuple[str, int], str],
    check: str,
    matches: Matches,
    measured: Measured,
    how: Callable[[float], str],
) -> None:
    """Keep the words for the first rows only; the counts are kept by mask."""
    for row in np.flatnonzero(matches.found)[: _EXAMPLES * 20].tolist():
        where = measured.rows[int(matches.other[row])].place
        told.setdefault((check, row), f"{how(float(matches.similarity[row]))} {measured.name} ({where})")
