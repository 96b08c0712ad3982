"""SentencePiece tokenizers mark the beginning of every text they are given: a piece on its own is other tokens.

Llama 2, Mistral and Gemma have such tokenizers. What is learned must be the tokens an engine is asked with, then those
the model would write. The tokenizers here are trained on the spot, in each of the forms that are met in bases.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.labels import IGNORED, Labeller
from tuneloop.train.data.rows import Row

END = "</s>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA = (  # as Llama 2 and Mistral write it: the answer on the question's line, behind a space
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    Message(role="user", content="what is a tide"),
    Message(role="assistant", content="answer the question now"),
    Message(role="user", content="hello there my friend"),
    Message(role="assistant", content="the cat sat"),
    Message(role="user", content="the mat"),
    Message(role="assistant", content="a tide"),
)


@cache
def tokenizer(kind: str) -> Any:
    made = Tokenizer(Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()  # pieces are learned within words
    made.train_from_iterator(
        [*(turn.content for turn in TURNS), "question", "[INST] [/INST]"] * 20,
        trainers.UnigramTrainer(
            vocab_size=130,
            special_tokens=["<unk>", END],
            unk_token="<unk>",
            initial_alphabet=[*map(chr, range(33, 127)), "▁", "\n"],
            show_progress=False,
        ),
    )
    if kind == "legacy":
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        made.decoder = decoders.Metaspace(prepend_scheme=kind, split=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, unk_token="<unk>")


@pytest.fixture(params=["first", "always", "legacy"])
def labeller(request: pytest.FixtureRequest) -> Labeller:
    tokenizer(request.param).chat_template = TEMPLATE
    return Labeller(tokenizer(request.param), 512)


def whole(labeller: Labeller, turns: tuple[Message, ...], *, prompt: bool = False) -> list[int]:
    """The tokens of all of it in one piece, as an engine makes them."""
    text = labeller.render([{"role": turn.role, "content": turn.content} for turn in turns], prompt=prompt)
    return list(labeller._tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", [TEMPLATE, LLAMA])
def test_what_is_learned_is_what_follows_the_served_prompt_turn_by_turn(labeller: Labeller, template: str) -> None:
    labeller._tokenizer.chat_template = template
    made = labeller.label(Row(TURNS))
    assert list(made.ids) == whole(labeller, TURNS)
    learned = []
    for index in (1, 3, 5):
        asked = whole(labeller, TURNS[:index], prompt=True)
        assert list(made.ids[: len(asked)]) == asked
        assert made.labels[len(asked) - 1] == IGNORED
        end = made.ids.index(labeller._end, len(asked))
        assert made.labels[len(asked) : end + 1] == made.ids[len(asked) : end + 1]
        learned += list(made.ids[len(asked) : end + 1])
    assert [label for label in made.labels if label != IGNORED] == learned
    assert list(made.ids[: made.prompt_length]) == labeller.prompt_ids(Row(TURNS))
    assert made.ends == 3


def test_an_answer_that_no_served_prompt_leads_to_is_refused_with_what_to_do(labeller: Labeller) -> None:
    """On one line without a space, the prompt's last word and the answer's first become one piece."""
    labeller._tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    turns = (Message(role="user", content="answer the quest"), Message(role="assistant", content="ion now"))
    with pytest.raises(InvalidInput, match=r"x\.jsonl:1: the base's tokenizer joins .* remove spaces"):
        labeller.label(Row(turns, "x.jsonl:1"))
