"""What verbs print: a table for people, JSON for programs. Every package's verbs use this one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from pydantic import BaseModel


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart; `-` where there is nothing."""
    cells = [list(headers), *[["-" if cell is None or cell == "" else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def emit(value: Any, as_json: bool, text: str) -> None:
    """Print `value` as JSON when asked for, `text` otherwise."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False) if as_json else text)


def plain(value: Any) -> Any:
    """Nouns, and lists and dicts of them, as plain JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
