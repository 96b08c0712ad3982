"""Labelled rows as a fit's owner hands them to the processes that train: one JSON line each, whatever they teach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, cast

from tuneloop.registry.nouns import Message
from tuneloop.train.data.labelled import LabelledStore
from tuneloop.train.data.labels import LabelledPair, LabelledPrompt, LabelledRow
from tuneloop.train.data.preference import PromptRow
from tuneloop.train.fit.trainers import Labelled

_ROWS = "rows.jsonl"
_One = LabelledRow | LabelledPair | LabelledPrompt


def hand_over(store: Path, rows: Labelled, places: Sequence[str], validation: Sequence[LabelledRow]) -> None:
    """Write rows with where each came from, then the validation rows, into a run's folder."""
    asked = bool(len(rows)) and isinstance(rows[0], LabelledPrompt)  # they know it themselves, and some were left out
    pairs: Iterable[tuple[_One, str]] = zip(rows, repeat("") if asked else places, strict=not asked)
    with (store / _ROWS).open("w", encoding="utf-8") as file:
        for row, place in pairs:
            file.write(json.dumps({"place": place, **_written(row)}) + "\n")
        for row in validation:
            file.write(json.dumps({"place": None, **_written(row)}) + "\n")


def handed_over(store: Path, *, on_disk: bool = False) -> tuple[Labelled, list[str], list[LabelledRow]]:
    """Rows, their places, and validation rows; the rows `on_disk` where the owner kept them there."""
    places, validation = list[str](), list[LabelledRow]()

    def read() -> Iterator[_One]:
        with (store / _ROWS).open(encoding="utf-8") as file:
            for line in file:
                found = json.loads(line)
                row = _read(found)
                if found["place"] is None:
                    assert isinstance(row, LabelledRow)
                    validation.append(row)
                else:
                    places.append(found["place"])
                    yield row

    if on_disk:  # of supervised fine-tuning alone
        return LabelledStore(cast("Iterator[LabelledRow]", read())), places, validation
    return cast("Labelled", list(read())), places, validation


def _written(row: _One) -> dict[str, Any]:
    if isinstance(row, LabelledRow):
        return {"row": _tokens(row)}
    if isinstance(row, LabelledPair):
        return {"pair": [_tokens(row.chosen), _tokens(row.rejected)]}
    turns = [[message.role, message.content] for message in row.row.messages]
    return {"asked": [row.ids, turns, dict(row.row.fields), row.row.place]}


def _read(found: dict[str, Any]) -> _One:
    if "row" in found:
        return _labelled(found["row"])
    if "pair" in found:
        return LabelledPair(*map(_labelled, found["pair"]))
    ids, turns, fields, place = found["asked"]
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return LabelledPrompt(PromptRow(messages, fields, place), tuple(ids))


def _tokens(row: LabelledRow) -> list[Any]:
    return [row.ids, row.labels, row.truncated, row.ends, row.prompt_length]


def _labelled(found: list[Any]) -> LabelledRow:
    ids, labels, truncated, ends, prompt_length = found
    return LabelledRow(tuple(ids), tuple(labels), truncated, ends, prompt_length)
