"""Records of a local file, one after the other and never all at once: JSONL, Parquet, CSV and TSV by their ending.

A record that cannot be read is handed on with what is wrong and where (`file:line`, for Parquet `file:row`), so that
all of a file's faults can be told at once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import cannot_read
from tuneloop.train.data.formats import shown

_LINE_LIMIT_BYTES = 64 * 2**20
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".xlsx", ".xls", ".arrow", ".feather"}
_BATCH_ROWS = 256
_DIGITS = 1000  # of a number; nothing reads numbers, and Python refuses to print huge ones


@dataclass(frozen=True)
class Record:
    """The fields of one row, or what is wrong with it."""

    place: str
    fields: Mapping[str, Any] | None
    problem: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """Every record of a file.

    Raises:
        InvalidInput: the file cannot be read as what its ending says.
    """
    ending = path.suffix.lower()
    if ending in _PACKED:
        raise InvalidInput(f"{path}: {ending} is not read; give .jsonl, .parquet, .csv or .tsv")
    if ending in {".yaml", ".yml"}:
        raise InvalidInput(f"{path}: this is a recipe, no rows; give the files that its `data` names")
    try:
        if ending in {".parquet", ".pq"}:
            yield from _parquet(path)
        elif ending in {".csv", ".tsv"}:
            yield from _table(path, "\t" if ending == ".tsv" else ",")
        else:
            with path.open("rb") as file:
                yield from _json_lines(path, file)
    except OSError as error:
        raise cannot_read(path, error, "give a file of rows: .jsonl, .parquet, .csv or .tsv") from None


def _json_lines(path: Path, file: BinaryIO) -> Iterator[Record]:
    """Lines end with \\n alone: a text may hold U+2028 and its like."""
    number = 0
    while line := file.readline(_LINE_LIMIT_BYTES + 1):
        number += 1
        place = f"{path}:{number}"
        if len(line) > _LINE_LIMIT_BYTES:
            raise InvalidInput(f"{place}: is longer than {_LINE_LIMIT_BYTES >> 20} MiB; write one row a line")
        if number == 1:
            if line[:2] in _BOMS:
                raise InvalidInput(f"{place}: is {_BOMS[line[:2]]} text; save the file as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")  # editors put it before UTF-8
        if line.strip():
            yield _json_record(place, line)


def _json_record(place: str, line: bytes) -> Record:
    try:
        value = json.loads(line, parse_int=_integer, parse_constant=_no_json_number, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        return Record(place, None, f"not JSON: {error.msg} at column {error.colno}")
    except UnicodeDecodeError:
        return Record(place, None, "not UTF-8 text")
    except RecursionError:
        return Record(place, None, "is nested too deeply to be a row")
    except ValueError as error:
        return Record(place, None, str(error))
    if not isinstance(value, dict):
        return Record(place, None, "a row is a JSON object, {…}")
    return Record(place, value)


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"holds a number of {len(digits)} digits; write it as a text, or leave it out")
    return int(digits)


def _no_json_number(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no JSON number; write null")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {shown(twice)} stands twice")
    return found


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa  # noqa: PLC0415 (half a second, and only for who reads Parquet)
    from pyarrow import parquet  # noqa: PLC0415

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:{number}", fields)
    except (pa.ArrowException, ValueError, OverflowError) as error:  # Overflow: a time Python has no value for
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"{path}: cannot be read as Parquet after row {number}: {reason}") from None


def _table(path: Path, delimiter: str) -> Iterator[Record]:
    """Every value is a text; a `messages` column holds JSON. A row's place is the line it ends on."""
    csv.field_size_limit(_LINE_LIMIT_BYTES)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] = []
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if not names:
                    names = _header(place, values)
                elif values:
                    yield _table_record(place, names, values)
        except csv.Error as error:
            raise InvalidInput(f"{path}:{reader.line_num}: cannot be read as a table: {error}") from None


def _header(place: str, names: list[str]) -> list[str]:
    if doubled := sorted({shown(name) for name in names if names.count(name) > 1}):
        raise InvalidInput(f"{place}: the column {doubled[0]} stands twice")
    return names


def _table_record(place: str, names: list[str], values: list[str]) -> Record:
    if len(values) != len(names):
        return Record(place, None, f"has {len(values)} values for {len(names)} columns")
    if any("\udc80" <= character <= "\udcff" for value in values if not value.isascii() for character in value):
        return Record(place, None, "not UTF-8 text")
    fields: dict[str, Any] = dict(zip(names, values, strict=True))
    for name in ("messages", "prompt", "completion", "chosen", "rejected"):
        if str(fields.get(name, "")).lstrip().startswith(('[{"', "[{'")):
            turns = _json_record(place, f'{{"turns": {fields[name]}}}'.encode())
            if turns.fields is None:
                return Record(place, None, f"{name}: {turns.problem}")
            fields[name] = turns.fields["turns"]
    return Record(place, fields)
