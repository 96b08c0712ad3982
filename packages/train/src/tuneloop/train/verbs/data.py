"""`tuneloop data`: look at training data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tuneloop.registry.printing import emit, json_option, table

_EXISTING = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Look at training data."""


@data.command("check")
@click.argument("file", type=_EXISTING)
@json_option
def data_check(file: Path, as_json: bool) -> None:
    """Check a JSONL file: every broken line, or counts, lengths and duplicates."""
    from tuneloop.train.data.rows import read_rows, summarise

    found = summarise(read_rows(file))
    lengths = [
        (f"{what} (words: least, median, most)", " / ".join(f"{n:g}" for n in spread))
        for what, spread in (("question", found.prompt_words), ("answer", found.answer_words))
    ]
    rows = [
        ("rows", found.rows),
        ("formats", ", ".join(f"{kind} {n}" for kind, n in found.formats.items())),
        ("turns", found.turns),
        *lengths,
        ("duplicate rows", found.duplicate_rows),
        ("questions with more than one answer", found.repeated_prompts),
        ("fields nothing reads", ", ".join(f"{name} ({n} rows)" for name, n in found.ignored.items()) or "none"),
        ("digest", found.digest),
    ]
    emit(asdict(found), as_json, table((str(file), ""), rows))
