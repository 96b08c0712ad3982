"""What is told about rows: counts, lengths, languages, scores and their parts, every check, and the worst rows.

Made of columns; only the rows that are shown are read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.registry.printing import table
from tuneloop.train.data.quality.advice import size_advice
from tuneloop.train.data.quality.bias import LengthBias, length_bias
from tuneloop.train.data.quality.findings import Findings
from tuneloop.train.data.quality.look import PARTS, Columns
from tuneloop.train.data.rows import Row, data_digest
from tuneloop.train.data.sources import Gathered

_WORST = 20
_SHOWN_ANSWERS = 8
_CUT_CHARACTERS = 600
_BINS = 30


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values lie from `edges[i]` up to `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ShownRow:
    """A row that a person should look at."""

    place: str
    score: float
    parts: dict[str, float]
    language: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class QualityReport:
    """Everything that `tuneloop data check` tells."""

    name: str
    rows: int
    kept: int
    formats: dict[str, int]
    ignored: dict[str, int]
    turns: int
    prompt_words: tuple[int, float, int]  # least, median, most
    answer_words: tuple[int, float, int]
    rejected_words: tuple[int, float, int] | None  # of preferences; None where there are none
    length_bias: LengthBias | None  # likewise, among the rows that are kept
    duplicate_rows: int
    repeated_prompts: int  # rows whose question has another answer before
    languages: dict[str, int]
    distinct_answers: int
    commonest_answers: tuple[tuple[str, int], ...]
    score: tuple[float, float, float]  # least, median, most
    min_score: float | None
    mean_parts: dict[str, float]
    findings: Findings
    advice: tuple[str, ...]
    histograms: dict[str, Histogram]
    worst: tuple[ShownRow, ...]
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Every figure; the pictures' counts included."""
        apart = {"findings", "histograms", "worst", "length_bias"}
        shown = {key: value for key, value in self.__dict__.items() if key not in apart}
        bias = self.length_bias
        return shown | {
            "length_bias": None if bias is None else asdict(bias) | {"share": bias.share},
            "findings": self.findings.as_json(),
            "dropped": self.findings.dropped,
            "histograms": {name: asdict(one) for name, one in self.histograms.items()},
            "worst": [asdict(row) for row in self.worst],
        }

    def text(self) -> str:
        """Two tables and the advice."""
        lengths = [
            (f"{what} (words: least, median, most)", " / ".join(f"{n:g}" for n in spread))
            for what, spread in (
                ("question", self.prompt_words),
                ("answer" if self.rejected_words is None else "chosen answer", self.answer_words),
                ("rejected answer", self.rejected_words),
            )
            if spread is not None and (self.distinct_answers or what == "question")  # bare questions have no other
        ]
        whole = [
            ("rows", self.rows),
            ("formats", ", ".join(f"{kind} {n}" for kind, n in self.formats.items())),
            ("turns", self.turns),
            *lengths,
            ("languages", ", ".join(f"{code} {n}" for code, n in list(self.languages.items())[:6])),
            *([("different answers", self.distinct_answers)] if self.distinct_answers else []),
            ("score (least, median, most)", " / ".join(f"{n:.2f}" for n in self.score)),
            ("its parts (mean)", ", ".join(f"{part} {value:.2f}" for part, value in self.mean_parts.items())),
            ("fields nothing reads", ", ".join(f"{name} ({n} rows)" for name, n in self.ignored.items()) or "none"),
            ("digest", self.digest),
        ]
        checks = [
            (one.check, one.rows, one.action, _first(one.examples) or one.detail)
            for one in self.findings.findings
            if one.action != "off"
        ]
        parts = [table((self.name, ""), whole), table(("CHECK", "ROWS", "DOES", "FOR EXAMPLE"), checks)]
        if self.advice:
            parts.append("\n".join(f"advice: {line}" for line in self.advice))
        return "\n\n".join(parts)


def report(
    name: str, gathered: Gathered, columns: Columns, findings: Findings, min_score: float | None = None
) -> QualityReport:
    """Sum up what was found.

    Args:
        name: how the data are called.
        gathered: the rows, and what was met while reading them.
        columns: what `look` found.
        findings: what was judged.
        min_score: the threshold rows were judged by.
    """
    kept = int(findings.kept.sum())
    by_check = {one.check: one.rows for one in findings.findings}
    answers = _commonest(columns, gathered.rows)
    rejected = columns.rejected_words[columns.preferred]
    scores = columns.scores
    return QualityReport(
        name=name,
        rows=len(columns),
        kept=kept,
        formats=dict(gathered.formats),
        ignored=dict(gathered.ignored),
        turns=gathered.turns,
        prompt_words=_spread(columns.prompt_words),
        answer_words=_spread(columns.answer_words),
        rejected_words=_spread(rejected) if len(rejected) else None,
        length_bias=length_bias(columns, findings.kept),
        duplicate_rows=by_check["duplicates"],
        repeated_prompts=by_check["conflicts"],
        languages=_languages(columns),
        distinct_answers=len(np.unique(columns.answer_keys[columns.answered])),
        commonest_answers=answers,
        score=(float(scores.min()), float(np.median(scores)), float(scores.max())),
        min_score=min_score,
        mean_parts={part: float(mean) for part, mean in zip(PARTS, columns.parts.mean(axis=0), strict=True)},
        findings=findings,
        advice=tuple(size_advice(kept, gathered.formats)),
        histograms={
            "score": _histogram(scores, np.linspace(0.0, 1.0, _BINS + 1)),
            "question words": _histogram(columns.prompt_words, _word_edges(columns.prompt_words)),
            "answer words": _histogram(columns.answer_words, _word_edges(columns.answer_words)),
            "rejected words": _histogram(rejected, _word_edges(rejected)),
            "probability of offensive language": _histogram(columns.toxicity, np.linspace(0.0, 1.0, _BINS + 1)),
        },
        worst=_worst(columns, gathered.rows),
        digest=data_digest(gathered.rows),
    )


def _spread(values: NDArray[np.uint32]) -> tuple[int, float, int]:
    return int(values.min()), float(np.median(values)), int(values.max())


def _languages(columns: Columns) -> dict[str, int]:
    counts = np.bincount(columns.languages, minlength=len(columns.language_codes))
    found = dict(zip(columns.language_codes, counts.tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _commonest(columns: Columns, rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    answered = np.flatnonzero(columns.answered)
    _, first, counts = np.unique(columns.answer_keys[answered], return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))[:_SHOWN_ANSWERS]
    return tuple((_cut(rows[int(answered[first[n]])].answer), int(counts[n])) for n in order)


def _word_edges(values: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Whole numbers, further apart as they grow."""
    most = max(2, int(values.max(initial=0)) + 1)
    return np.unique(np.geomspace(1, most, _BINS + 1).round()).astype(float)


def _histogram(values: NDArray[Any], edges: NDArray[np.float64]) -> Histogram:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _worst(columns: Columns, rows: Sequence[Row]) -> tuple[ShownRow, ...]:
    scores = columns.scores
    order = np.argsort(scores, kind="stable")[:_WORST]
    return tuple(
        ShownRow(
            place=rows[n].place,
            score=float(scores[n]),
            parts={part: float(value) for part, value in zip(PARTS, columns.parts[n], strict=True)},
            language=columns.language_codes[columns.languages[n]],
            prompt=_cut(rows[n].prompt),
            answer=_cut(rows[n].answer),
        )
        for n in order.tolist()
    )


def _cut(text: str) -> str:
    return text if len(text) <= _CUT_CHARACTERS else f"{text[:_CUT_CHARACTERS]}…"


def _first(examples: Sequence[str]) -> str:
    return examples[0] if examples else ""
