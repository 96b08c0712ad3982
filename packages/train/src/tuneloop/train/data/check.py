"""`tuneloop data check`: files looked at as a training run looks at them, without a recipe and without a model.

Rows are kept on disk while they are looked at, so that files may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tuneloop.train.data.load import read_measured, refuse_unread, unread
from tuneloop.train.data.quality.findings import judge_rows
from tuneloop.train.data.quality.look import look
from tuneloop.train.data.quality.report import QualityReport, report
from tuneloop.train.data.sources import Places, gather
from tuneloop.train.recipe.data import QualitySection, Source

_HERE = Places(Path())


def check_files(
    files: Sequence[Path],
    against: Sequence[Path],
    quality: QualitySection,
    *,
    tell: Callable[[int], None] = lambda _: None,
) -> QualityReport:
    """Look at files together, as one set of training rows.

    Args:
        files: of rows in any format, preferences (by their chosen answer) and bare prompts as well.
        against: files that are measured; each is a set of its own.
        quality: what each fault leads to.
        tell: called with the number of rows looked at.

    Raises:
        InvalidInput: a file cannot be read; every broken row is named.
    """
    measured = [read_measured(str(path), [Source(path=str(path))], _HERE, answers_only=False)[0] for path in against]
    gathered = gather([Source(path=str(path)) for path in files], _HERE, answers_only=False, on_disk=True)
    refuse_unread(gathered, quality)
    columns = look(gathered.rows, quality, tell=tell)
    findings = judge_rows(columns, gathered.rows, quality, measured, unread(gathered))
    return report(", ".join(map(str, files)), gathered, columns, findings, quality.min_score)
