"""Which tokens are learned: the assistant's turns and their end-of-turn token, nothing else.

Rows are rendered with the chat template (`data.templates`), turn by turn: what it writes for the conversation up to an
answer must be a prefix of what it writes with the answer, in text and in tokens. So each prompt is tokenised whole, as
it is when served, and an answer is what the tokens of both together have more: on its own it would get the mark of a
text's beginning from a SentencePiece tokenizer. This works for any template that keeps earlier turns as they were;
what does not is refused with what to do about it. Preferences are two such rows; questions alone are rendered up to
where the assistant begins to speak.

Shapes: every list of a row is T tokens long.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.rows import Row
from tuneloop.train.data.templates import control_tokens, template_text, turns_of
from tuneloop.train.recipe.objective import Template

IGNORED = -100  # the label PyTorch's cross entropy leaves out
APART = (
    "remove spaces and newlines at the beginning and end of what the assistant says, or give one question and one "
    "answer per row"
)


@dataclass(frozen=True)
class LabelledRow:
    """One row as the model sees it; `labels` equal `ids` where a token is learned and `IGNORED` elsewhere."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool
    ends: int  # trained end-of-turn tokens
    prompt_length: int  # tokens before the last answer, generation prompt included
    unlearned_answers: int = 0  # whose edge the tokenizer joins to what stands beside it

    @property
    def trained(self) -> int:
        """How many tokens are learned. The first token of a row has no prediction and is never one of them."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The last answer with its end-of-turn token, and nothing of what the template writes after it."""
        learned = len(self.ids)
        while learned > self.prompt_length and self.labels[learned - 1] == IGNORED:
            learned -= 1
        return self.ids[self.prompt_length : learned]


@dataclass(frozen=True)
class LabelledPair:
    """A preference as the model sees it: the same question with two answers."""

    chosen: LabelledRow
    rejected: LabelledRow


@dataclass(frozen=True)
class LabelledPrompt:
    """A question as an engine would be given it."""

    row: PromptRow
    ids: tuple[int, ...]


def ends_of(folder: Path) -> frozenset[int]:
    """The tokens at which an engine ends an answer on this base, beside its tokenizer's end-of-sequence token.

    As transformers and vLLM read them: those of `generation_config.json`, else of `config.json`. Gemma's turns end so.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            return frozenset(found if isinstance(found, list) else [] if found is None else [found])
    return frozenset()


class Labeller:
    """Turns rows into token ids and labels with one tokenizer and a chat template.

    `other_ends` are tokens that end an answer beside the tokenizer's end-of-sequence token, as `ends_of` names them.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, template: Template = "chat", other_ends: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        if tokenizer.eos_token_id is None:
            raise InvalidInput("the base's tokenizer names no end-of-sequence token; set eos_token in its config")
        self._end = self._end_written({int(tokenizer.eos_token_id), *other_ends})
        self._control = control_tokens(tokenizer, template)

    @property
    def end_of_turn(self) -> str:
        """The token that ends an answer."""
        return str(self._tokenizer.convert_ids_to_tokens(self._end))

    def label(self, row: Row) -> LabelledRow:
        """Render, tokenise and mask one row.

        Raises:
            InvalidInput: the row holds control tokens, or the template cannot be followed turn by turn.
        """
        self._refuse_control_tokens(row.messages, row.place)
        turns = turns_of(row, self._template)
        ids: list[int] = []
        answers: list[slice] = []  # of ids, those that are learned
        after: list[int] = []
        done, unlearned, prompt_length = "", 0, 0
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            asked = self.render(turns[:index], prompt=True)
            answered = self.render(turns[: index + 1], prompt=False)
            self._require_prefix(row, done, asked)
            self._require_prefix(row, asked, answered)
            prompt = self._ids(asked)
            if prompt[: len(ids)] != ids:  # an earlier answer's edge joins its neighbour: as it is served, unlearned
                same = _shared(ids, prompt)
                unlearned += sum(answer.stop > same and answer.start < self._max_length for answer in answers)
                answers = [answer for answer in answers if answer.stop <= same]
            learned = self._answer_ids(row, prompt, asked, answered)
            cut = self._after_last_end(row, learned)
            ids, after = prompt + learned[:cut], learned[cut:]
            answers.append(slice(len(prompt), len(ids)))
            prompt_length = len(prompt)
            done = answered
        ids += after  # what the template writes behind an answer; before another turn that is part of its prompt
        labels = [IGNORED] * len(ids)
        for answer in answers:
            labels[answer] = ids[answer]
        truncated, ends = len(ids) > self._max_length, len(answers)
        if truncated:
            ids, labels = ids[: self._max_length], labels[: self._max_length]
            ends = min(ends, labels.count(self._end))
        return LabelledRow(tuple(ids), tuple(labels), truncated, ends, prompt_length, unlearned)

    def render(self, turns: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """The template's text for these turns; with `prompt`, up to where the assistant begins to speak.

        Raises:
            InvalidInput: the template refuses them.
        """
        template = template_text(self._template)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns), chat_template=template, tokenize=False, add_generation_prompt=prompt
                )
            )
        except TemplateError as error:
            raise InvalidInput(f"the base's chat template refuses a row: {error}") from error

    def prompt_ids(self, row: Row) -> list[int]:
        """The tokens an engine is given for this row's question."""
        return self._ids(self.render(turns_of(row, self._template)[:-1], prompt=True))

    def ask(self, row: PromptRow) -> LabelledPrompt:
        """Render and tokenise a question alone.

        Raises:
            InvalidInput: the row holds control tokens.
        """
        self._refuse_control_tokens(row.messages, row.place)
        turns = [{"role": message.role, "content": message.content} for message in row.messages]
        return LabelledPrompt(row, tuple(self._ids(self.render(turns, prompt=True))))

    def pair(self, row: PreferenceRow) -> LabelledPair:
        """Render, tokenise and mask a preference: of either side the last answer alone is learned.

        Raises:
            InvalidInput: as `label`; or what is left of the two answers within max_length is the same.
        """
        made = LabelledPair(_last_answer_only(self.label(row.chosen)), _last_answer_only(self.label(row.rejected)))
        if made.chosen.answer_ids == made.rejected.answer_ids:
            raise InvalidInput(
                f"{row.place or 'a row'}: cut to objective.max_length, chosen and rejected are the same; raise "
                "max_length"
            )
        return made

    def _end_written(self, ends: Collection[int]) -> int:
        """The one that the template writes last; the end-of-sequence token where it writes none."""
        asked = [{"role": "user", "content": "x"}]
        with suppress(InvalidInput):  # one that refuses this says so of a row
            answered = self._ids(self.render([*asked, {"role": "assistant", "content": "x"}], prompt=False))
            prompt = self._ids(self.render(asked, prompt=True))
            return next(
                (token for token in reversed(answered[len(prompt) :]) if token in ends),
                int(self._tokenizer.eos_token_id),
            )
        return int(self._tokenizer.eos_token_id)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _answer_ids(self, row: Row, prompt: list[int], asked: str, answered: str) -> list[int]:
        """The tokens of an answer, as they follow those of its prompt.

        Most tokenizers read prompt and answer together as the prompt's own tokens and the rest. Where one joins the
        prompt's last character to the answer's first (a newline to spaces), the answer is tokenised alone, as the
        model would write it, if together they still say what was written.
        """
        whole = self._ids(answered)
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        alone = self._ids(answered[len(asked) :])
        if self._tokenizer.decode(prompt + alone) != self._tokenizer.decode(whole):
            raise self._served_otherwise(row)
        return alone

    def _served_otherwise(self, row: Row) -> InvalidInput:
        return InvalidInput(
            f"{row.place or 'a row'}: the base's tokenizer joins what stands on both sides of an answer's beginning or "
            f"end into one token, so the model would learn from other tokens than it is asked with; {APART}"
        )

    def _require_prefix(self, row: Row, start: str, whole: str) -> None:
        if not whole.startswith(start):
            raise InvalidInput(
                f"{row.place or 'a row'}: the base's chat template rewrites earlier turns when later ones follow, so "
                "what the assistant said cannot be told from what it was told; give one question and one answer per "
                "row, or put a chat_template.jinja that keeps earlier turns as they are into the base's folder"
            )

    def _after_last_end(self, row: Row, learned: list[int]) -> int:
        if self._end not in learned:
            raise InvalidInput(
                f"{row.place or 'a row'}: the base's chat template does not end an assistant turn with "
                f"{self.end_of_turn}, its end-of-sequence token, nor with one that its generation_config.json names as "
                "eos_token_id: the model would never learn to stop; correct eos_token, eos_token_id or the template"
            )
        return len(learned) - learned[::-1].index(self._end)

    def _refuse_control_tokens(self, messages: Sequence[Message], place: str) -> None:
        for message in messages:
            found = sorted(token for token in self._control if token in message.content)
            if found:
                raise InvalidInput(
                    f"{place or 'a row'}: the text holds the control token {found[0]}, which would open or close a "
                    "turn; remove it"
                )


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(ids), len(others)))


def _last_answer_only(row: LabelledRow) -> LabelledRow:
    before = min(row.prompt_length, len(row.ids))
    labels = (IGNORED,) * before + row.labels[before:]
    return replace(row, labels=labels, ends=int(not row.truncated), unlearned_answers=0)  # no other was to be
