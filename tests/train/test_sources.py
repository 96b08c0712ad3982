"""Rows from every kind of source are the same rows; what a source cannot give is said; mixing does what is written."""

from __future__ import annotations

import csv
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tests_support import request_record
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import Feedback, Message, utc_now
from tuneloop.train.data.mixture import mix
from tuneloop.train.data.rows import Row
from tuneloop.train.data.sources import Gathered, Places, gather
from tuneloop.train.data.store import Chosen, RowStore
from tuneloop.train.recipe.data import Source

VALUES = [
    {"instruction": "Add", "input": "2 and 3", "output": "5"},
    {"instruction": 'Say, "hello"', "input": "", "output": "line one\nline two, with a comma"},
    {"instruction": "Ünï¢ode\u2028", "input": "", "output": "x"},
]


def row(number: int) -> Row:
    return Row(
        (Message(role="user", content=f"q{number}"), Message(role="assistant", content=f"a\n{number}\u2028")),
        f"f:{number}",
    )


def read(folder: Path, *sources: dict[str, Any], **places: Any) -> Gathered:
    return gather([Source(**source) for source in sources], Places(folder, **places))


def test_a_parquet_value_that_python_has_none_for_is_one_clear_error(tmp_path: Path) -> None:
    table = pa.table({"instruction": ["a"], "output": ["b"], "took": pa.array([2**62], pa.duration("s"))})
    parquet.write_table(table, tmp_path / "long.parquet")
    with pytest.raises(InvalidInput, match=r"long\.parquet: cannot be read as Parquet after row 0: "):
        read(tmp_path, {"path": "long.parquet"})


def test_jsonl_parquet_csv_and_tsv_of_the_same_rows_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(value) + "\n" for value in VALUES))
    parquet.write_table(pa.Table.from_pylist(VALUES), tmp_path / "b.parquet")
    for name, delimiter in (("c.csv", ","), ("d.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(VALUES[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(VALUES)
    names = ["a.jsonl", "b.parquet", "c.csv", "d.tsv"]
    found = [read(tmp_path, {"path": name}) for name in names]
    assert all(one.rows == found[0].rows and len(one.rows) == 3 for one in found)
    assert found[2].rows[1].place == f"{tmp_path}/c.csv:4"  # its answer has a line break
    assert read(tmp_path, *({"path": name} for name in names)).ends == [3, 6, 9, 12]


def test_chats_in_parquet_and_as_json_in_csv_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parquet.write_table(pa.Table.from_pylist([{"messages": turns, "id": 7}]), tmp_path / "a.parquet")
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(turns)]])
    one, two = read(tmp_path, {"path": "a.parquet"}), read(tmp_path, {"path": "b.csv"})
    assert one.rows == two.rows
    assert one.ignored == {"id": 1}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.parquet", b"not parquet at all", "x.parquet: cannot be read as Parquet after row 0"),
        ("x.csv", b'instruction,output\n"a,b\n', "x.csv:2: cannot be read as a table"),
        ("x.csv", b"output,output\na,b\n", "x.csv:1: the column output stands twice"),
        ("x.zip", b"PK", "x.zip: .zip is not read"),
        ("x.csv", b"", "x.csv: holds no rows"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, {"path": name})
    assert reason in str(caught.value)


def test_broken_and_blank_table_rows_are_counted_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"instruction,output\na,b\nc\nd,\n\xff,e\nf,g\n")
    found = read(tmp_path, {"path": "x.csv"})
    assert (len(found.rows), found.broken_rows, found.empty_rows) == (2, 2, 1)
    assert [text.removeprefix(f"{tmp_path}/") for text in found.broken + found.empty] == [
        "x.csv:3: has 1 values for 2 columns",
        "x.csv:5: not UTF-8 text",
        "x.csv:4: output is empty",
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_is_read_through_datasets(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(value) + "\n" for value in VALUES))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = read(tmp_path, {"hub": "set", "split": "train"}, streaming=streaming)
    assert [one.answer for one in found.rows] == [value["output"] for value in VALUES]
    assert found.rows[1].place == "set:train:2"
    with pytest.raises(InvalidInput, match="set:nowhere: cannot be read"):
        read(tmp_path, {"hub": "set", "split": "nowhere"}, streaming=streaming)


def test_a_hub_that_does_not_answer_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match=r"org/set@abc:train: the hub does not answer.*try again"):
        read(tmp_path, {"hub": "org/set", "revision": "abc"})


def test_traffic_gives_corrections_and_liked_answers_and_counts_the_rest(registry: Registry, tmp_path: Path) -> None:
    now = utc_now()
    texts = {1: "plain", 2: "liked", 3: "corrected", 4: "disliked", 5: None}
    records = [request_record(n, now - timedelta(hours=n), model="bot", answer=text) for n, text in texts.items()]
    records.append(request_record(9, now - timedelta(days=40), model="bot", answer="old"))
    registry.traffic.add_requests(records)
    said = {2: ("up", None), 3: ("up", "Better."), 4: ("down", None), 5: ("up", None), 9: ("up", "Older.")}
    registry.traffic.add_feedback(
        [
            Feedback(id=f"f{n}", request_id=f"req-{n}", at=now, thumb=thumb, correction=text)
            for n, (thumb, text) in said.items()
        ]
    )
    corrections = read(tmp_path, {"traffic": "bot", "days": 30}, registry=registry)
    assert [(one.answer, one.place) for one in corrections.rows] == [("Better.", "request req-3")]
    both = read(tmp_path, {"traffic": "bot", "kind": "feedback"}, registry=registry)
    assert sorted(one.answer for one in both.rows) == ["Better.", "liked"]
    assert both.left_out == {"answer was not stored": 1}
    with pytest.raises(InvalidInput, match="traffic of nobody, corrections of 30 days: holds no rows"):
        read(tmp_path, {"traffic": "nobody"}, registry=registry)
    with pytest.raises(InvalidInput, match="needs the registry"):
        read(tmp_path, {"traffic": "bot"})


def test_rows_on_disk_are_the_rows_in_memory_however_they_are_read() -> None:
    rows = [row(number) for number in range(7)]
    store = RowStore(rows)
    assert list(store) == list(store) == rows
    assert (store[3], store[-1], len(store)) == (rows[3], rows[-1], 7)
    assert [one.place for one in store] == [one.place for one in rows]
    mixed = []
    for number, one in enumerate(store):  # reading elsewhere in between
        mixed += [one, store[6 - number]]
    assert mixed == [one for number in range(7) for one in (rows[number], rows[6 - number])]
    assert list(store[1:6:2]) == rows[1:6:2]
    chosen = Chosen(store, np.array([5, 0, 5]))
    assert list(chosen) == [rows[5], rows[0], rows[5]]
    assert list(chosen[1:]) == [rows[0], rows[5]]
    with pytest.raises(IndexError):
        store[7]


def test_streaming_reads_the_same_rows_and_holds_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(value) + "\n" for value in VALUES))
    held, streamed = read(tmp_path, {"path": "a.jsonl"}), read(tmp_path, {"path": "a.jsonl"}, streaming=True)
    assert isinstance(streamed.rows, RowStore)
    assert tuple(streamed.rows) == held.rows
    assert len(read(tmp_path, {"path": "a.jsonl", "rows": 2}).rows) == 2


def test_weights_are_shares_and_no_row_stands_twice_before_all_stood_once() -> None:
    large, small = np.arange(100), np.arange(100, 110)
    order, shares = mix([large, small], [3.0, 1.0], seed=0)
    assert [(share.taken, share.rows) for share in shares] == [(83, 100), (27, 10)]
    assert str(shares[1]) == "27 of 10 rows by weight 1, each 2.70 times"
    counts = Counter(order.tolist())
    assert {counts[n] for n in range(100)} == {0, 1}
    assert {counts[n] for n in range(100, 110)} == {2, 3}
    assert (mix([large, small], [3.0, 1.0], seed=0)[0] == order).all()
    assert (mix([large, small], [3.0, 1.0], seed=1)[0] != order).any()
    assert mix([large, small], [None, None], seed=0)[0].tolist() == list(range(110))


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 100.0)), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_mixture_is_as_long_as_its_sources_and_each_row_stands_as_often_as_any_of_its_source(
    given_: list[tuple[int, float]], seed: int
) -> None:
    ends = np.cumsum([count for count, _ in given_])
    sources = [np.arange(end - count, end) for end, (count, _) in zip(ends, given_, strict=True)]
    order, shares = mix(sources, [weight for _, weight in given_], seed)
    assert len(order) == ends[-1] == sum(share.taken for share in shares)
    counts = np.bincount(order, minlength=ends[-1]) if len(order) else np.zeros(0)
    for source, share in zip(sources, shares, strict=True):
        assert counts[source].sum() == share.taken
        assert not len(source) or np.ptp(counts[source]) <= 1
