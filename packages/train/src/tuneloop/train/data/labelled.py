"""Labelled rows on disk instead of in memory: for sets larger than that. Audited in the same single pass.

A store is a sequence like a list of labelled rows. Its file is a memory-mapped Arrow table in a temporary folder
(TMPDIR) that nothing names any more once it is written, so that it goes away with the process however that ends: about
8 bytes for a token's id and label. Held are 4 bytes a row; the pages of the map are the system's to take back.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

from tuneloop.train.data.label_audit import LabelAudit, Tally, teaching_rows
from tuneloop.train.data.labels import LabelledRow, Labeller
from tuneloop.train.data.rows import Row
from tuneloop.train.data.store import close_scratch, scratch_written

_WRITTEN_TOGETHER = 256  # rows that are held while they are written


class LabelledStore(Sequence[LabelledRow]):
    """Filled once, then read; for one thread."""

    def __init__(self, rows: Iterable[LabelledRow]) -> None:
        from datasets import Dataset, Features, Value  # noqa: PLC0415 (seconds of imports, only where they are needed)
        from datasets import Sequence as ListOf  # noqa: PLC0415
        from datasets.arrow_writer import ArrowWriter  # noqa: PLC0415

        features = Features(
            {
                "input_ids": ListOf(Value("int32")),
                "labels": ListOf(Value("int32")),
                "truncated": Value("bool"),
                "ends": Value("int32"),
                "prompt_length": Value("int32"),
                "unlearned_answers": Value("int32"),
            }
        )
        self.lengths = array("I")
        with ExitStack() as held:
            with scratch_written("tokens and labels"):
                folder = held.enter_context(tempfile.TemporaryDirectory(prefix="tuneloop-labels-"))
                path = str(Path(folder) / "rows.arrow")
                writer = ArrowWriter(path=path, features=features, writer_batch_size=_WRITTEN_TOGETHER)
            held.callback(close_scratch, writer)
            for row in rows:
                with scratch_written("tokens and labels"):
                    writer.write(
                        {
                            "input_ids": row.ids,
                            "labels": row.labels,
                            "truncated": row.truncated,
                            "ends": row.ends,
                            "prompt_length": row.prompt_length,
                            "unlearned_answers": row.unlearned_answers,
                        }
                    )
                self.lengths.append(len(row.ids))
            with scratch_written("tokens and labels"):
                writer.finalize()
            self._data = Dataset.from_file(path)

    @property
    def dataset(self) -> Any:
        """`input_ids` and `labels` as a `datasets.Dataset` that reads from the same file."""
        return self._data.select_columns(["input_ids", "labels"])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> LabelledRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LabelledRow]: ...
    def __getitem__(self, index: int | slice) -> LabelledRow | Sequence[LabelledRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return _row(self._data[index])

    def __iter__(self) -> Iterator[LabelledRow]:
        return map(_row, self._data)


def _row(found: dict[str, Any]) -> LabelledRow:
    counted = (found[name] for name in ("truncated", "ends", "prompt_length", "unlearned_answers"))
    return LabelledRow(tuple(found["input_ids"]), tuple(found["labels"]), *counted)


def label_rows_on_disk(
    labeller: Labeller, rows: Iterable[Row], template_digest: str
) -> tuple[LabelledStore, LabelAudit]:
    """As `label_rows`, with no more than some rows in memory at a time."""
    tally = Tally()
    store = LabelledStore(tally.counted(teaching_rows(labeller, rows)))
    return store, tally.audit(labeller, template_digest)
