"""The tokenizer that plans read without transformers is the one that a run labels with, in all that labels depend on:
which texts are control tokens, what a template writes, which tokens that becomes and what they say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from small_base import make_small_base
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.labels import Labeller
from tuneloop.train.data.rows import Row
from tuneloop.train.plan.tokenizer import LightTokenizer

TURNS = [
    {"role": "user", "content": "Was heißt «tide»?\n  please good w4 <filename> <|mark|> "},
    {"role": "assistant", "content": "Gezeiten 🌊 w1 w2"},
]
PLAIN = "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + eos_token }}{% endfor %}"
UNNAMED = ("<|user|>", "<|file|>")
Change = Callable[[Path, dict[str, Any]], Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_base(tmp_path_factory.mktemp("base")).folder


def templated(text: str) -> Change:
    return lambda folder, _: (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def set_to(**values: Any) -> Change:
    return lambda _, config: config.update(values)


def in_the_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": PLAIN}]
    config["chat_template"] = named


def cuts_and_fills(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|end|>",
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def names_in_a_file_of_their_own(folder: Path, config: dict[str, Any]) -> None:
    named = {"eos_token": {"content": "<|mark|>", "lstrip": False}, "sep_token": "w1"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    del config["eos_token"]


def flagged_but_not_named(folder: Path, config: dict[str, Any]) -> None:
    for name in ("extra_special_tokens", "additional_special_tokens"):
        config.pop(name, None)


def listed_with_other_flags(_: Path, config: dict[str, Any]) -> None:
    flags = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    config["added_tokens_decoder"] = {"64": {"content": "<|mark|>", **flags}, "5": {"content": "w1", **flags}}


CHANGES: dict[str, Change] = {
    "as it is": set_to(),
    "flagged, not named": flagged_but_not_named,
    "named by the recipe of its own": set_to(image_token="w4", bos_token="<|mark|>"),
    "named by a mapping": set_to(extra_special_tokens={"image_token": "<|mark|>", "call_token": "w4"}),
    "objects": set_to(bos_token={"__type": "AddedToken", "content": "<|mark|>", "special": True}),
    "a file of names": names_in_a_file_of_their_own,
    "other flags": listed_with_other_flags,
    "cuts and fills": cuts_and_fills,
    "templates by name": in_the_config,
    "no beginning": templated("{{ bos_token }}{% if sep_token is defined %}!{% endif %}" + PLAIN),
    "the day": templated("{{ strftime_now('%C') }}" + PLAIN),
    "generation": templated(
        "{% for m in messages %}\n  {% generation %}{% set x = 1 %}\n  {{- m['content'] -}}{% endgeneration %}\n{{ x }}"
        "{% endfor %}"
    ),
    "tools": templated("{% if tools is not none %}tools{% endif %}{{ tools }}{{ documents is defined }}" + PLAIN),
    "json": templated("{{ messages | tojson(indent=2, sort_keys=true) }}{{ messages | tojson }}"),
    "loops": templated("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m }}{% endfor %}"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_light_tokenizer_is_the_one_that_a_run_labels_with(change: Change, small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(folder, config)
    path.write_text(json.dumps(config), encoding="utf-8")
    is_the_same(folder)


def test_so_it_is_for_a_base_that_people_have(smollm2: Path) -> None:
    is_the_same(smollm2)
    assert "<filename>" not in LightTokenizer(smollm2).all_special_tokens
    written = "Put it under <filename>."
    row = Row((Message(role="user", content="Where?"), Message(role="assistant", content=written)))
    assert Labeller(LightTokenizer(smollm2), 64).label(row).trained > 0


@pytest.mark.parametrize("template", ["{{ '<|' + m['role'] + '|> ' }}", "<|user|> "])
def test_what_a_template_writes_opens_a_turn_though_nobody_names_it(template: str, small: Path, tmp_path: Path) -> None:
    """As Llama 3's does; a token that is flagged too and that no template writes, anybody may."""
    from transformers import AutoTokenizer

    folder = tmp_path / "base"
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    flagged_but_not_named(folder, config)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": 900 + at, "content": token, **flags} for at, token in enumerate(UNNAMED)]
    path.write_text(json.dumps(content), encoding="utf-8")
    text = "{% for m in messages %}" + template + "{{ m['content'] + eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    for tokenizer in (LightTokenizer(folder), AutoTokenizer.from_pretrained(folder)):
        assert not set(UNNAMED) & set(tokenizer.all_special_tokens)
        labeller = Labeller(tokenizer, 64)
        with pytest.raises(InvalidInput, match=r"control token <\|user\|>"):
            labeller.label(row_of("w1 <|user|> w2"))
        assert labeller.label(row_of("w1 <|file|> w2")).trained > 0


def row_of(answer: str) -> Row:
    return Row((Message(role="user", content="w3"), Message(role="assistant", content=answer)))


def is_the_same(folder: Path) -> None:
    from transformers import AutoTokenizer

    light, real = LightTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert sorted(light.all_special_tokens) == sorted(real.all_special_tokens)
    assert light.eos_token_id is not None
    assert light.eos_token_id == real.eos_token_id
    assert light.convert_ids_to_tokens(light.eos_token_id) == real.convert_ids_to_tokens(real.eos_token_id)
    for count, prompt in ((1, True), (2, False)):
        text = real.apply_chat_template(TURNS[:count], tokenize=False, add_generation_prompt=prompt)
        assert light.apply_chat_template(TURNS[:count], tokenize=False, add_generation_prompt=prompt) == text
        ids = real(text, add_special_tokens=False)["input_ids"]
        assert light(text, add_special_tokens=False)["input_ids"] == ids
        assert light.decode(ids) == real.decode(ids)


def test_a_template_that_cannot_be_read_or_refuses_a_row_is_the_readers_error(small: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "base"
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(InvalidInput, match=re.escape(f"the tokenizer in {folder} cannot be read: ")):
        LightTokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no systems here') }}")
    with pytest.raises(TemplateError):
        LightTokenizer(folder).apply_chat_template(TURNS, tokenize=False, add_generation_prompt=False)
    row = Row(tuple(Message.model_validate(turn) for turn in TURNS))
    for tokenizer in (LightTokenizer(folder), AutoTokenizer.from_pretrained(folder)):
        with pytest.raises(InvalidInput, match="the base's chat template refuses a row: no systems here"):
            Labeller(tokenizer, 64).render([{"role": m.role, "content": m.content} for m in row.messages], prompt=True)
