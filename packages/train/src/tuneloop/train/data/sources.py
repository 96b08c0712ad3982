"""Where rows come from: files, hub data sets, and what users said back; each read one record after the other.

What cannot be learned from is handed on with its place and its reason; nothing is left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import RequestRecord
from tuneloop.train.data.files import Record, read_records
from tuneloop.train.data.formats import EmptyText, parse
from tuneloop.train.data.rows import SHOWN_ERRORS, Row, group_of
from tuneloop.train.data.store import RowStore
from tuneloop.train.recipe.data import Source
from tuneloop.train.retraining.fresh import corrected_rows


@dataclass(frozen=True)
class Places:
    """What sources are read with: where paths begin, and where traffic is on record."""

    folder: Path
    registry: Registry | None = None
    streaming: bool = False
    inputs: bool = False  # keep instruction rows' inputs, for the template that gives them a heading of their own


@dataclass
class Gathered:
    """Rows of several sources, one after the other, with what was met on the way."""

    rows: Sequence[Row]
    ends: list[int] = field(default_factory=list)  # where each source ends in `rows`
    formats: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    ignored: Counter[str] = field(default_factory=Counter)  # field → rows that carry it though nothing reads it
    broken: list[str] = field(default_factory=list)  # the first faults, as `file:line: what`
    broken_rows: int = 0
    empty: list[str] = field(default_factory=list)
    empty_rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason → traffic that no row could be made of


def gather(
    sources: Sequence[Source],
    places: Places,
    *,
    answers_only: bool = True,
    on_disk: bool | None = None,
    group_by: str | None = None,
) -> Gathered:
    """Read all sources.

    Args:
        sources: in the recipe's order.
        places: what they are read with.
        answers_only: refuse preferences and bare prompts as broken; see `formats.parse`.
        on_disk: whether rows are kept on disk; as `places.streaming` says if not given.
        group_by: a field whose value is kept as each row's `group`; rows on disk keep none.

    Raises:
        InvalidInput: a source cannot be read at all.
        Unavailable: the hub does not answer.
    """
    keep_on_disk = places.streaming if on_disk is None else on_disk
    store, held = RowStore(), list[Row]()
    append = store.append if keep_on_disk else held.append
    found = Gathered(store if keep_on_disk else held)
    for source in sources:
        before = len(found.rows) + found.broken_rows + found.empty_rows
        for row in _rows_of(source, places, found, answers_only, group_by):
            append(row)
            found.turns += len(row.messages)
        if len(found.rows) + found.broken_rows + found.empty_rows == before:
            why = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items())
            raise InvalidInput(
                f"{_called(source, places)}: holds no rows{f' ({why})' if why else ''}; write one JSON object a line"
                if source.path is not None
                else f"{source.label}: holds no rows{f' ({why})' if why else ''}"
            )
        found.ends.append(len(found.rows))
    if not keep_on_disk:
        found.rows = tuple(held)
    return found


def records(source: Source, places: Places) -> Iterator[Record]:
    """Every record of a source that is a file or a hub data set.

    Raises:
        InvalidInput: it cannot be read at all, or is traffic, which has rows and no records.
        Unavailable: the hub does not answer.
    """
    if source.path is not None:
        yield from islice(read_records(places.folder / source.path), source.rows)
    elif source.hub is not None:
        yield from islice(_hub(source, places), source.rows)
    else:
        raise InvalidInput(f"{source.label}: holds conversations with an answer; it teaches no preference")


def _called(source: Source, places: Places) -> str:
    return source.label if source.path is None else str(places.folder / source.path)


def _rows_of(
    source: Source, places: Places, found: Gathered, answers_only: bool, group_by: str | None
) -> Iterator[Row]:
    if source.traffic is not None:
        for row in islice(_traffic(source, places, found.left_out), source.rows):
            found.formats[source.kind] += 1
            yield row
        return
    for record in records(source, places):
        try:
            if record.fields is None:
                raise ValueError(record.problem)
            parsed = parse(record.fields, answers_only=answers_only)
        except EmptyText as error:
            found.empty_rows += 1
            if found.empty_rows <= SHOWN_ERRORS:
                found.empty.append(f"{record.place}: {error}")
        except ValueError as error:
            found.broken_rows += 1
            if found.broken_rows <= SHOWN_ERRORS:
                found.broken.append(f"{record.place}: {error}")
        else:
            found.formats[parsed.format] += 1
            if parsed.ignored:
                found.ignored.update(name for name in parsed.ignored if name != group_by)
            yield Row(
                parsed.turns,
                record.place,
                parsed.input if places.inputs else "",
                group_of(record.fields, group_by),
                parsed.rejected,
            )


def _hub(source: Source, places: Places) -> Iterator[Record]:
    """Rows of a data set by its id, or of a folder that holds one.

    While streaming a set is read in passing; otherwise `datasets` downloads it once into its own cache, under its
    revision. Only rows as they were published are cached, nothing tokenised.
    """
    import datasets  # noqa: PLC0415 (a second, and only for who reads a hub set)
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    folder = places.folder / (source.hub or "")
    name = str(folder) if folder.is_dir() else source.hub
    try:
        data: Any = datasets.load_dataset(
            name, source.name, split=source.split, revision=source.revision, streaming=places.streaming
        )
        for number, fields in enumerate(data, start=1):
            yield Record(f"{source.label}:{number}", fields)
    except ConnectionError as error:
        raise Unavailable(
            f"{source.label}: the hub does not answer, and no copy is kept here ({_first_line(error)}); "
            "try again, unset HF_HUB_OFFLINE, or give a file's path"
        ) from error
    except (DatasetsError, OSError, ValueError) as error:
        raise InvalidInput(
            f"{source.label}: cannot be read ({_first_line(error)}); look at its id, name, split and revision, and "
            "set HF_TOKEN if it is gated"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _traffic(source: Source, places: Places, left_out: Counter[str]) -> Iterator[Row]:
    """Corrected conversations, and for feedback also those whose answer got a thumb up; redacted when recorded."""
    if places.registry is None:
        raise InvalidInput(
            f"{source.label}: needs the registry; `tuneloop train` has it, `tuneloop data check` does not"
        )
    registry, model = places.registry, source.traffic or ""
    until = registry.clock()
    found = registry.traffic.corrections(
        model, since=until - timedelta(days=source.days), until=until, by=until, liked=source.kind == "feedback"
    )

    def answered() -> Iterator[tuple[RequestRecord, str]]:
        for request, correction in found:
            answer = request.answer if correction is None else correction
            if answer is None or not answer.strip():
                left_out["answer was not stored"] += 1
            else:
                yield request, answer

    yield from corrected_rows(answered(), left_out)
