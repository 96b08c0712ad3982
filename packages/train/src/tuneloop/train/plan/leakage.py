"""Whether rows that would be learned are also measured: told by a plan, because the run refuses them.

Rows are compared as the run compares them, exactly and nearly, in about a second: of a larger set a sample is. Sets
that are no files on this machine are named as not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.train.data.load import COMPARED, read_measured, shared_among
from tuneloop.train.data.quality.findings import Measured, judge_rows
from tuneloop.train.data.quality.look import look
from tuneloop.train.data.rows import Row
from tuneloop.train.data.sources import Places
from tuneloop.train.recipe.data import QualitySection, Source

SAMPLE = 5_000  # rows


@dataclass(frozen=True)
class Leakage:
    """What was found among the rows that were compared."""

    rows: int  # there are
    compared: int  # of them
    exact: int  # are also measured
    near: int  # nearly equal a measured one, or ask its question
    examples: tuple[str, ...]  # place and what it equals
    refused: tuple[str, ...]  # what the run will say instead of beginning
    left_out: tuple[str, ...]  # sets that were not compared

    def as_json(self) -> dict[str, Any]:
        """Every figure."""
        return asdict(self)


def leakage_of(
    rows: Sequence[Row],
    measured: Mapping[str, Sequence[Source]],
    places: Places,
    quality: QualitySection,
    read: Callable[[str, Sequence[Source], Places], Measured] = lambda *named: read_measured(*named)[0],
) -> Leakage:
    """Compare rows with every measured set that is a file; `read` reads one, conversations if nothing is said.

    Raises:
        InvalidInput: a set cannot be read.
    """
    here = {name: found for name, found in measured.items() if all(source.path is not None for source in found)}
    count = min(SAMPLE, len(rows))
    chosen = rows if count == len(rows) else [rows[number * len(rows) // count] for number in range(count)]
    against = [read(name, found, places) for name, found in here.items()]
    section = COMPARED.model_copy(update={"leakage": quality.leakage, "near_leakage": quality.near_leakage})
    found = judge_rows(look(chosen, section), chosen, section, against)
    of = {one.check: one for one in found.findings}
    return Leakage(
        len(rows),
        count,
        of["leakage"].rows,
        of["near_leakage"].rows,
        (*of["leakage"].examples, *of["near_leakage"].examples),
        (*found.refusals, *shared_among(against, quality)),
        tuple(name for name in measured if name not in here),
    )
