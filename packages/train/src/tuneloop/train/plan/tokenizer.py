"""A base's tokenizer and chat template without transformers, whose import takes longer than a whole plan.

Reads `tokenizer.json`, `tokenizer_config.json` and the template as transformers does; a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tuneloop.registry.errors import InvalidInput


class LightTokenizer:
    """What `data.labels.Labeller` asks of a tokenizer.

    Raises:
        InvalidInput: a file is missing, or there is no chat template.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            alone = folder / "chat_template.jinja"
            template = alone.read_text(encoding="utf-8") if alone.is_file() else config.get("chat_template")
        except Exception as error:  # tokenizers raises bare Exception
            raise InvalidInput(f"the tokenizer in {folder} cannot be read: {error}") from error
        if not isinstance(template, str):
            raise InvalidInput(f"{folder} holds no chat template")
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        self._environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._environment.globals["raise_exception"] = _refuse
        self._template = self._environment.from_string(template)
        self._named = {key: _content(config.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.all_special_tokens = sorted(
            {token.content for token in added if token.special} | {text for text in self._named.values() if text}
        )
        eos = self._named["eos_token"]
        self.eos_token_id: int | None = self._tokenizer.token_to_id(eos) if eos else None

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
        """The template's text, or that of `chat_template`; it is never tokenised here."""
        assert not tokenize
        template = self._template if chat_template is None else self._environment.from_string(chat_template)
        try:
            return template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._named)
        except TemplateError as error:
            raise InvalidInput(f"the base's chat template refuses a row: {error}") from error

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
        """`input_ids` of a text."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens, special ones included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _refuse(message: str) -> str:
    raise TemplateError(message)
