"""A base's tokenizer and chat template without transformers, whose import takes longer than a whole plan.

Reads `tokenizer.json`, `tokenizer_config.json` and the template as transformers does; a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from tuneloop.registry.errors import InvalidInput

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What tells of tokens beyond these: a list of them, or a mapping of names; the second is what it was called before.
_MORE = ("extra_special_tokens", "additional_special_tokens")


class LightTokenizer:
    """What `data.labels.Labeller` asks of a tokenizer.

    Raises:
        InvalidInput: a file is missing or broken, or there is no chat template.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = _config(folder)
            self._named, more = _special(config)
            self._add(config, [*self._named.values(), *more])
            self.chat_template = _template(folder, config)
            self._environment = _environment()
            self._template = None if self.chat_template is None else self._environment.from_string(self.chat_template)
        except Exception as error:  # tokenizers raises bare Exception
            raise InvalidInput(f"the tokenizer in {folder} cannot be read: {error}") from error
        if self._template is None:
            raise InvalidInput(f"{folder} holds no chat template")
        self._tokenizer.no_truncation()  # whatever the file says: rows are cut, and counted, where they are labelled
        self._tokenizer.no_padding()
        self.all_special_tokens = list(dict.fromkeys([*self._named.values(), *more]))
        eos = self._named.get("eos_token")
        self.eos_token_id: int | None = self._tokenizer.token_to_id(eos) if eos else None

    def _add(self, config: Mapping[str, Any], special: Sequence[str]) -> None:
        """Tokens that the config alone knows of, or knows otherwise, in its order."""
        listed = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
        known = {repr(token) for token in self._tokenizer.get_added_tokens_decoder().values()}
        for token in (AddedToken(**fields) for _, fields in listed):
            if repr(token) not in known:
                token.special = token.special or token.content in special
                self._tokenizer.add_tokens([token])
        there = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        self._tokenizer.add_special_tokens([token for token in special if token not in there])

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens beside the vocabulary's own, by number."""
        found: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        return found

    def convert_ids_to_tokens(self, number: int) -> str | None:
        """The token of that number."""
        found: str | None = self._tokenizer.id_to_token(number)
        return found

    def apply_chat_template(
        self,
        turns: Sequence[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        chat_template: str | None = None,
    ) -> str:
        """The template's text, or that of `chat_template`; it is never tokenised here.

        Raises:
            jinja2.TemplateError: the template refuses these turns.
        """
        assert not tokenize
        template = self._template if chat_template is None else self._environment.from_string(chat_template)
        assert template is not None
        return template.render(
            messages=turns, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **self._named
        )

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
        """`input_ids` of a text."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens, special ones included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; where it lists no added tokens, what `special_tokens_map.json` names goes before."""
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and named.is_file():
        config |= json.loads(named.read_text(encoding="utf-8"))
    return config


def _special(config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Special tokens by their names, as a template is given them, and those that have none.

    Not every token that `tokenizer.json` flags as special: a user may write those that are named nowhere, unless the
    template does (`data.templates.control_tokens`).
    """
    named = {key: _content(config[key]) for key in _NAMES if config.get(key) is not None}
    listed: Any = next((config[key] for key in _MORE if config.get(key)), [])
    own = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    if isinstance(listed, dict):
        own |= listed
    named |= {key: _content(value) for key, value in own.items() if key not in _NAMES}
    return named, [] if isinstance(listed, dict) else [_content(token) for token in listed]


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    alone, found = folder / "chat_template.jinja", config.get("chat_template")
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    if isinstance(found, list):  # several by name; without tools the usual one is asked with
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found if isinstance(found, str) else None


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return made


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for trainers that mask by it; nothing of it is written."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Its body in its place; what is set inside stays inside."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 (the machine's own day, as transformers tells it)


def _refuse(message: str) -> str:
    raise TemplateError(message)
