"""Broken data is named by file and line, all of it at once; what is read does not depend on how a file spells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.near import NearIndex, normal
from tuneloop.train.data.rows import Row, data_digest, read_rows, write_rows


def test_both_formats_become_the_same_conversation(tmp_path: Path) -> None:
    instruction, chat = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    instruction.write_text(json.dumps({"instruction": "Add", "input": "2 and 3", "output": "5"}) + "\n\n")
    turns = [{"role": "user", "content": "Add\n\n2 and 3"}, {"role": "assistant", "content": "5"}]
    chat.write_text(json.dumps({"messages": turns}) + "\n")
    one, two = read_rows(instruction), read_rows(chat)
    assert one.rows == two.rows
    assert (one.formats, two.formats) == ({"instruction": 1}, {"chat": 1})
    assert data_digest(one.rows) == data_digest(two.rows)
    write_rows(tmp_path / "c" / "again.jsonl", one.rows)
    assert read_rows(tmp_path / "c" / "again.jsonl").rows == one.rows


def test_every_broken_line_is_named_with_its_number(tmp_path: Path) -> None:
    good = '{"instruction": "a", "output": "b"}'
    lines = [
        good,
        '{"instruction": "a", "output": ',
        '{"question": "a", "answer": "b"}',
        '{"instruction": "a", "output": 5}',
        '{"instruction": "a", "output": " "}',
        '["a"]',
        '{"messages": []}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}',
        good,
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"instruction": "\xff", "output": "b"}\n')
    with pytest.raises(InvalidInput) as caught:
        read_rows(path)
    found = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in found] == ["2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "13"]
    assert "lacks instruction and output (it has question, answer)" in found[1]
    assert "output is int, not text" in found[2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "a\\ud800", "output": "b"}', "instruction holds half of a surrogate pair at character 2"),
        (b'{"instruction": "a", "output": "b\\u0000"}', "output holds a NUL character at position 2"),
        (b'{"instruction": "a", "output": "b", "id": ' + b"9" * 9000 + b"}", "holds a number of 9000 digits"),
        (b'{"instruction": "a", "output": "b", "score": NaN}', "NaN is no JSON number"),
        (b'{"instruction": "a", "output": "b", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"instruction": "a", "output": "b", "output": "c"}', "the field output stands twice"),
        (b'{"instruction": "a", "output": null}', "lacks output"),
        (b'{"instruction": "a", "\\ud800": "b"}', "lacks output"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c"}', "is a preference row"),
        (b'{"prompt": "a"}', "is a prompt row"),
        (b'{"prompt": "a", "chosen": "b"}', "lacks rejected"),
    ],
)
def test_hostile_rows_are_told_with_their_line_and_never_reach_training(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"instruction": "a", "output": "b"}\n' + line + b"\n")
    with pytest.raises(InvalidInput) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)
    str(caught.value).encode()  # any terminal can show it


def test_line_ends_and_marks_of_other_systems_change_nothing(tmp_path: Path) -> None:
    plain, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    text = '{"instruction": "one\u2028line", "output": "b\u0085c"}\n{"instruction": "d", "output": "e"}\n'
    plain.write_text(text, encoding="utf-8", newline="")
    other.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_rows(plain).rows == read_rows(other).rows
    assert [row.place for row in read_rows(other).rows] == [f"{other}:1", f"{other}:2"]
    write_rows(tmp_path / "c.jsonl", read_rows(plain).rows)
    assert read_rows(tmp_path / "c.jsonl").rows == read_rows(plain).rows
    (tmp_path / "wide.jsonl").write_text(text, encoding="utf-16")
    with pytest.raises(InvalidInput, match=r"wide.jsonl:1: is UTF-16 text"):
        read_rows(tmp_path / "wide.jsonl")


def test_prompt_and_completion_as_text_or_turns_are_the_same_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    values = [
        {"prompt": "a", "completion": "b"},
        {"prompt": turns[0], "completion": turns[1]},
        {"prompt": turns[0], "completion": "b"},
        {"messages": turns[0] + turns[1]},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    found = read_rows(path)
    assert found.formats == {"prompt-completion": 3, "chat": 1}
    assert len(set(found.rows)) == 1


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old\n")

    def rows() -> Iterator[Row]:
        yield Row((Message(role="user", content="a"), Message(role="assistant", content="b")))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_rows(path, rows())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.jsonl", "old\n")]


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("\n\n", "holds no rows")])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=reason):
        read_rows(path)


def test_nearness_is_the_jaccard_index_of_character_5_grams() -> None:
    index = NearIndex()
    assert index.similarity("anything") == 0.0
    index.add("abcdefgh")  # abcde bcdef cdefg defgh
    assert index.similarity("ABCDEFGH") == 1.0
    assert index.similarity("abcdefgx") == 3 / 5
    assert index.similarity("zzzzzzzz") == 0.0
    assert normal("  Ｆull\twidth ") == "full width"
