"""`tuneloop data`: look at training data."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tuneloop.registry.printing import emit, json_option

_EXISTING = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Look at training data."""


@data.command("check")
@click.argument("files", type=_EXISTING, nargs=-1, required=True, metavar="FILE…")
@click.option(
    "--against", type=_EXISTING, multiple=True, help="A file of rows that are measured; may stand repeatedly."
)
@click.option("--language", "languages", multiple=True, help="A language that is wanted (en, de, …); repeatedly.")
@click.option("--min-score", type=click.FloatRange(0.0, 1.0), help="Count rows that score less (the guide: 0.8).")
@click.option("--html", "page", type=_EXISTING, help="Write a page with histograms and the worst rows.")
@json_option
def data_check(
    files: tuple[Path, ...],
    against: tuple[Path, ...],
    languages: tuple[str, ...],
    min_score: float | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """Check files of rows (JSONL, Parquet, CSV, TSV) as a training run would: every fault, or how they are."""
    from tuneloop.registry.errors import InvalidInput, Refused
    from tuneloop.train.data.check import check_files
    from tuneloop.train.recipe.data import QualitySection
    from tuneloop.train.screen import Screen

    if page is not None and not page.absolute().parent.is_dir():
        raise InvalidInput(f"{page.parent} is no folder; make it first")
    if page is not None and (page.is_dir() or page.resolve() in [path.resolve() for path in (*files, *against)]):
        raise InvalidInput(f"--html {page} is {'a folder' if page.is_dir() else 'one of the files'}; name a new file")
    screen = Screen(sys.stderr)
    found = check_files(
        files,
        against,
        QualitySection(languages=languages, min_score=min_score),
        tell=lambda rows: screen.progress(f"{rows:,} rows looked at", keep=False),
    )
    screen.end_progress()
    if page is not None:
        from tuneloop.train.data.quality.page import write_page

        write_page(found, page)
    emit(found.as_json(), as_json, found.text() + (f"\n\n{page} shows them" if page else ""))
    if found.findings.refusals:
        raise Refused("\n".join(found.findings.refusals))
