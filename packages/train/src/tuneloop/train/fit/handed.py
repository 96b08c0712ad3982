"""Labelled rows as a fit's owner hands them to the processes that train: one JSON line each, whatever they teach."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast, overload

from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import Message
from tuneloop.train.data.labelled import LabelledStore
from tuneloop.train.data.labels import LabelledPair, LabelledPrompt, LabelledRow
from tuneloop.train.data.preference import PromptRow
from tuneloop.train.fit.trainers import Labelled

_ROWS = "rows.jsonl"
_One = LabelledRow | LabelledPair | LabelledPrompt


def hand_over(store: Path, rows: Labelled, places: Sequence[str], validation: Sequence[LabelledRow]) -> None:
    """Write rows with where each came from, then the validation rows, into a run's folder.

    Raises:
        TuneloopError: the disk is full, or refuses.
    """
    asked = bool(len(rows)) and isinstance(rows[0], LabelledPrompt)  # they know it themselves, and some were left out
    pairs: Iterable[tuple[_One, str]] = zip(rows, repeat("") if asked else places, strict=not asked)
    rest: Iterable[tuple[_One, str | None]] = zip(validation, repeat(None))
    try:
        with (store / _ROWS).open("w", encoding="utf-8") as file:
            for row, place in chain(pairs, rest):
                file.write(json.dumps({"place": place, **_written(row)}) + "\n")
    except OSError as error:
        with suppress(OSError):
            (store / _ROWS).unlink()
        raise TuneloopError(
            f"rows could not be handed over in {store}: {error}; free disk space there, then run it again with --resume"
        ) from error


def handed_over(store: Path, *, on_disk: bool = False) -> tuple[Labelled, Sequence[str], list[LabelledRow]]:
    """Rows, their places, and validation rows; the rows `on_disk` where the owner kept them there.

    Raises:
        TuneloopError: they shall be on disk, and it is full.
    """
    places, validation = _Places(store / _ROWS), list[LabelledRow]()

    def read() -> Iterator[_One]:
        end = 0
        with (store / _ROWS).open("rb") as file:
            for line in file:
                found = json.loads(line)
                row = _read(found)
                if found["place"] is None:
                    assert isinstance(row, LabelledRow)
                    validation.append(row)
                else:
                    places.starts.append(end)
                    yield row
                end += len(line)

    if on_disk:  # of supervised fine-tuning alone
        return LabelledStore(cast("Iterator[LabelledRow]", read())), places, validation
    return cast("Labelled", list(read())), places, validation


class _Places(Sequence[str]):
    """Where each row came from, read when it is asked for: 8 bytes a row are held."""

    def __init__(self, path: Path) -> None:
        self.starts = array("Q")
        self._path = path

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        with self._path.open("rb") as file:
            file.seek(self.starts[index])
            return str(json.loads(file.readline())["place"])


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
    return [row.ids, row.labels, row.truncated, row.ends, row.prompt_length, row.unlearned_answers]


def _labelled(found: list[Any]) -> LabelledRow:
    ids, labels, *counted = found
    return LabelledRow(tuple(ids), tuple(labels), *counted)
