"""Preferences and questions are read strictly, and tokenised as they would be served.

What a pair teaches is the difference of two answers: if the question, the cut or the mask differ between the sides, it
teaches something else, without an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_base import make_small_base
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data import preference
from tuneloop.train.data.files import read_records
from tuneloop.train.data.label_audit import label_pairs, label_prompts
from tuneloop.train.data.labels import IGNORED, Labeller
from tuneloop.train.data.preference import PreferenceRow, PromptRow, preferences
from tuneloop.train.tuning import models


def written(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


@pytest.fixture(scope="module")
def labeller(tmp_path_factory: pytest.TempPathFactory) -> Labeller:
    return Labeller(models.load_tokenizer(make_small_base(tmp_path_factory.mktemp("base"))), 24)


def read_preferences(path: Path) -> tuple[PreferenceRow, ...]:
    return preferences(read_records(path), str(path))


def read_prompts(path: Path) -> tuple[PromptRow, ...]:
    read = preference.read_prompts(read_records(path))
    assert read.broken + read.empty == []
    return tuple(read.rows)


def test_texts_and_turns_are_the_same_preference(tmp_path: Path) -> None:
    texts = written(tmp_path / "a.jsonl", {"prompt": "w1", "chosen": "w2", "rejected": "w3"})
    both = written(tmp_path / "b.jsonl", {"chosen": turns("w1", "w2"), "rejected": turns("w1", "w3")})
    mixed = {"prompt": turns("w1"), "chosen": turns("w0", "w2")[1:], "rejected": "w3"}
    found = {read_preferences(path) for path in (texts, both, written(tmp_path / "c.jsonl", mixed))}
    assert len(found) == 1
    (row,) = found.pop()
    assert json.loads(row.line()) == {
        "prompt": turns("w1"),
        "chosen": turns("", "w2")[1:],
        "rejected": turns("", "w3")[1:],
    }


def test_every_broken_preference_is_named_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.jsonl",
        {"prompt": "w1", "chosen": "w2", "rejected": "w3"},
        {"prompt": "w1", "chosen": "w2"},
        {"prompt": "w1", "chosen": "same", "rejected": " same "},
        {"chosen": turns("w1", "w2"), "rejected": turns("w9", "w3")},
        {"prompt": "w1", "chosen": "w2", "rejected": "w3", "margin": 2},
        {"instruction": "w1", "output": "w2"},
        "not json",
    )
    with pytest.raises(InvalidInput) as caught:
        read_preferences(path)
    found = [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]
    assert [line.split(":")[0] for line in found] == ["2", "3", "4", "5", "6", "7"]
    for line, said in zip(
        found,
        (
            "lacks rejected",
            "the same answer",
            "different conversations",
            "margin: nothing reads it",
            "of format instruction",
            "not JSON",
        ),
        strict=True,
    ):
        assert said in line


def test_questions_keep_what_rewards_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "q.jsonl",
        {"prompt": "w1", "answer": "w2", "unit": "m"},
        {"messages": turns("w3", "w4")},
        {"instruction": "w5", "input": "w6", "output": "w7"},
    )
    found = read_prompts(path)
    assert [row.messages[-1].content for row in found] == ["w1", "w3", "w5\n\nw6"]
    assert [dict(row.fields) for row in found] == [{"answer": "w2", "unit": "m"}, {"answer": "w4"}, {"answer": "w7"}]


def test_both_sides_share_the_served_question_and_learn_their_last_answer_alone(
    tmp_path: Path, labeller: Labeller
) -> None:
    asked = turns("w1 w2", "w3", "w4")
    path = written(tmp_path / "p.jsonl", {"prompt": asked, "chosen": "w5 w6", "rejected": "w7"})
    (pair,), audit = label_pairs(labeller, read_preferences(path), "sha256:t")
    served = labeller.ask(PromptRow(tuple(Message.model_validate(turn) for turn in asked))).ids
    for side in (pair.chosen, pair.rejected):
        assert side.ids[: side.prompt_length] == served
        assert set(side.labels[: side.prompt_length]) == {IGNORED}
        assert side.ids == served + side.answer_ids
        assert [label for label in side.labels if label != IGNORED] == list(side.answer_ids)
    assert len(pair.chosen.answer_ids) == 3  # two words and the end of turn
    assert (audit.rows, audit.trained_tokens, audit.rows_without_end) == (2, 5, 0)


def test_a_pair_that_is_cut_to_the_same_answer_is_an_error(tmp_path: Path, labeller: Labeller) -> None:
    same = "w1 " * 40
    path = written(tmp_path / "p.jsonl", {"prompt": "w1", "chosen": same + "w2", "rejected": same + "w3"})
    with pytest.raises(InvalidInput, match=r"p\.jsonl:1: cut to objective\.max_length.* are the same"):
        label_pairs(labeller, read_preferences(path), "sha256:t")


def test_long_questions_are_left_out_and_counted(tmp_path: Path, labeller: Labeller) -> None:
    path = written(tmp_path / "q.jsonl", {"prompt": "w1"}, {"prompt": "w1 " * 30})
    kept, audit = label_prompts(labeller, read_prompts(path), 10, "sha256:t")
    assert (len(kept), audit.rows, audit.left_out) == (1, 1, 1)
    with pytest.raises(InvalidInput, match=r"every question is longer than objective\.max_prompt_length 2"):
        label_prompts(labeller, read_prompts(path), 2, "sha256:t")
