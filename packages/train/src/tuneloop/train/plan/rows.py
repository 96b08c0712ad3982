"""What a plan must know of the data: how many rows, how long, how much of them is learned; and the label audit.

A base whose tokenizer is on this machine labels a sample: the longest rows by characters, and others spread over the
file. Otherwise lengths are guessed from characters, and the plan says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.artifacts import template_digest
from tuneloop.train.data.label_audit import LabelAudit, PromptAudit, label_rows
from tuneloop.train.data.labels import LabelledRow, Labeller, ends_of
from tuneloop.train.data.load import refuse_unread
from tuneloop.train.data.rows import Row
from tuneloop.train.data.sources import Places, gather
from tuneloop.train.plan.leakage import Leakage, leakage_of
from tuneloop.train.plan.tokenizer import LightTokenizer
from tuneloop.train.recipe.data import QualitySection, Source
from tuneloop.train.recipe.objective import Template

SAMPLE = 200
_LONGEST = 20
GUESSED = "guessed from characters: the tokenizer is not on this machine ({})"
_CHARACTERS_A_TOKEN = 3.5  # English and code; fewer would be more tokens


@dataclass(frozen=True)
class RowFacts:
    """Lengths in tokens, cut at objective.max_length: of rows, pairs' longer sides, or questions with their answers."""

    rows: int
    longest: int
    mean: float
    lengths: tuple[int, ...]  # of the spread sample
    learned_share: float
    source: str
    audit: LabelAudit | PromptAudit | None = None
    leakage: Leakage | None = None  # none: no file to compare

    @property
    def differ(self) -> bool:
        """Whether some are, or may be, shorter than others; of one length alone nothing is known."""
        return len(self.lengths) == 1 or min(self.lengths) < max(self.lengths)

    def padded_mean(self, rows: int) -> float:
        """Mean length of a micro-batch of `rows`, each padded to its longest."""
        if rows <= 1 or len(self.lengths) < 2:
            return self.mean
        ordered = sorted(self.lengths)
        n = len(ordered)  # the expected maximum of `rows` draws from the sample
        return sum(x * (((i + 1) / n) ** rows - (i / n) ** rows) for i, x in enumerate(ordered))


def facts_of(
    sources: Sequence[Source],
    places: Places,
    folder: Path | None,
    max_length: int,
    template: Template = "chat",
    *,
    measured: Mapping[str, Sequence[Source]] | None = None,
    quality: QualitySection | None = None,
) -> RowFacts:
    """Read the files that rows come from, and compare them with what is `measured` as `quality` wants it.

    Raises:
        InvalidInput: a file is broken, a sampled row would teach nothing, or a source is no file on this machine.
    """
    require_files(sources)
    gathered = gather(sources, places)
    refuse_unread(gathered, quality or QualitySection())
    facts = facts_of_rows(gathered.rows, name_of(sources), folder, max_length, template)
    return replace(facts, leakage=leakage_of(gathered.rows, measured or {}, places, quality or QualitySection()))


def facts_of_rows(
    rows: Sequence[Row], name: str, folder: Path | None, max_length: int, template: Template = "chat"
) -> RowFacts:
    """Of rows that are at hand, as `name` calls them.

    Raises:
        InvalidInput: a sampled row would teach nothing.
    """
    characters = [_characters(row) for row in rows]
    spread, sample = sampled(characters)
    if folder is None:
        lengths = tuple(guessed_length(characters[i], max_length) for i in spread)
        share = sum(len(row.answer) for row in rows) / max(1, sum(characters))
        longest = guessed_length(max(characters), max_length)
        return RowFacts(len(rows), longest, statistics.fmean(lengths), lengths, share, GUESSED.format(name))
    labeller = Labeller(LightTokenizer(folder), max_length, template, ends_of(folder))
    labelled, audit = label_rows(labeller, [rows[i] for i in sample], template_digest(folder))
    first: Sequence[LabelledRow] = labelled[: len(spread)]
    lengths = tuple(len(row.ids) for row in first)
    share = sum(row.trained for row in first) / sum(lengths)
    source = f"{len(labelled)} of {len(rows)} rows of {name}, labelled"
    return RowFacts(len(rows), audit.longest, statistics.fmean(lengths), lengths, share, source, audit)


def require_files(sources: Sequence[Source]) -> None:
    """Refuse what a plan cannot read.

    Raises:
        InvalidInput: a source is no file on this machine.
    """
    away = [source.label for source in sources if source.path is None]
    if away:
        raise InvalidInput(f"data.train {away[0]}: a plan reads files only; say how many rows there are with --rows")


def name_of(sources: Sequence[Source]) -> str:
    """What a plan calls them."""
    return ", ".join(Path(source.label).name for source in sources)


def sampled(characters: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of rows of so many characters: some, evenly over the file; and the same with the longest of all behind them."""
    count = min(SAMPLE, len(characters))
    spread = [i * len(characters) // count for i in range(count)]
    longest = sorted(range(len(characters)), key=characters.__getitem__)[-_LONGEST:]
    return spread, [*spread, *sorted(set(longest) - set(spread))]  # each row once


def guessed_length(characters: int, most: int) -> int:
    """Tokens of a text, with its template's."""
    return min(most, int(characters / _CHARACTERS_A_TOKEN) + 8)


def assumed(rows: int, max_length: int, why: str) -> RowFacts:
    """Where there is no file to read: every row as long as it may be, all of it learned."""
    return RowFacts(rows, max_length, float(max_length), (max_length,), 1.0, why)


def _characters(row: Row) -> int:
    return sum(len(message.content) for message in row.messages)
