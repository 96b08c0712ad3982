"""What verbs print: a table for people, JSON for programs. Every package's verbs use this one."""

from __future__ import annotations

import getpass
import json
import math
import os
import unicodedata
from collections.abc import Sequence
from typing import Any

import click
from pydantic import BaseModel

from tuneloop.registry.access.roles import ACTOR_PREFIX

# Control, format, surrogate and private characters and line separators: a terminal may obey them, a reader never sees
# them, and users' text is full of them when somebody wants it to be.
_OWN_NAMES = frozenset({"gate", "unknown"})
_LONGEST_NAME = 200
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart; `-` where there is nothing."""
    cells = [
        list(headers),
        *[["-" if cell is None or cell == "" else one_line(str(cell)) for cell in row] for row in rows],
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def emit(value: Any, as_json: bool, text: str) -> None:
    """Print `value` as JSON when asked for, `text` otherwise; neither gives a terminal commands.

    The front door may keep standard output for answers alone; then the stream is the click context's object.
    """
    context = click.get_current_context(silent=True)
    said = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) if as_json else text
    click.echo(_seen(said), file=context.obj if context else None)


def tell_unreadable(rows: Sequence[str]) -> None:
    """Name, on standard error, the rows that a list leaves out because they cannot be read."""
    for row in rows:
        click.echo(f"cannot be read: {one_line(row)}", err=True)


def tell_more(found: list[Any], newest: int) -> None:
    """Keep of a list that was asked for one more than `newest` only those, the first, and say on standard error that
    there are more."""
    if len(found) > newest:
        del found[newest:]
        click.echo(f"these are the newest {newest:,}; --newest shows more", err=True)


def one_line(text: str) -> str:
    """Somebody's text as one line: what breaks a line or is not seen is written as its escape."""
    return _seen(text.replace("\n", "\\n"))


def _seen(text: str) -> str:
    return "".join(_escape(c) if c != "\n" and unicodedata.category(c) in _UNSEEN else c for c in text)


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else json.dumps(character)[1:-1]


def plain(value: Any) -> Any:
    """Nouns, and lists and dicts of them, as plain JSON values; JSON has no NaN and no infinity, so they are null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def who(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A `--by` that is somebody's name: not blank, readable, and none that tuneloop's own parts go by."""
    value = _said(context, parameter, value)
    name = unicodedata.normalize("NFKC", value or "").strip().casefold()
    if name.startswith(ACTOR_PREFIX):
        raise click.BadParameter(f"{ACTOR_PREFIX}… names whoever came through the control plane", param=parameter)
    if name in _OWN_NAMES:
        raise click.BadParameter(f"{name} is what tuneloop itself goes by in the audit log", param=parameter)
    if len(name) > _LONGEST_NAME or any(unicodedata.category(c) in _UNSEEN for c in value or ""):
        raise click.BadParameter(f"a name has {_LONGEST_NAME} readable characters at most", param=parameter)
    return value


def _said(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is blank; it is kept for ever", param=parameter)
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return f"uid {os.getuid()}"


by_option = click.option("--by", required=True, callback=who, help="Who does it.")
by_user_option = click.option(
    "--by", default=_user, callback=who, show_default="the operating system's user", help="Who does it."
)
reason_option = click.option("--reason", required=True, callback=_said, help="Why; kept for ever.")
may_reason_option = click.option("--reason", callback=_said, help="Why; kept for ever.")
MOST_ROWS = 1_000_000_000  # a list may be asked for; beyond what any database counts to it is an error
newest_option = click.option(
    "--newest", type=click.IntRange(1, MOST_ROWS), default=50, show_default=True, help="At most so many, the newest."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
