"""Broken data is named by file and line, all of it at once; what is read does not depend on how a file spells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.data.near import NearIndex, normal
from tuneloop.train.data.rows import data_digest, read_rows, summarise, write_rows


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
        '{"prompt": "a", "completion": "b"}',
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
    assert "lacks instruction and output (it has prompt, completion)" in found[1]
    assert "output is int, not text" in found[2]


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("\n\n", "holds no rows")])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=reason):
        read_rows(path)


def test_the_summary_counts_lengths_doubles_and_unread_fields(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    values = [
        {"instruction": "one two", "output": "a"},
        {"instruction": "One  two", "output": "A", "source": "web"},
        {"instruction": "one two", "output": "another answer"},
        {"instruction": "one two three four", "output": "b c d"},
    ]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    found = summarise(read_rows(path))
    assert (found.rows, found.duplicate_rows, found.repeated_prompts) == (4, 1, 1)
    assert found.prompt_words == (2, 2.0, 4)
    assert found.answer_words == (1, 1.5, 3)
    assert found.ignored == {"source": 1}


def test_nearness_is_the_jaccard_index_of_character_5_grams() -> None:
    index = NearIndex()
    assert index.similarity("anything") == 0.0
    index.add("abcdefgh")  # abcde bcdef cdefg defgh
    assert index.similarity("ABCDEFGH") == 1.0
    assert index.similarity("abcdefgx") == 3 / 5
    assert index.similarity("zzzzzzzz") == 0.0
    assert normal("  Ｆull\twidth ") == "full width"
