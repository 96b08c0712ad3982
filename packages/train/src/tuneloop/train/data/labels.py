"""Which tokens are learned: the assistant's turns and their end-of-turn token, nothing else; audited before step one.

Rows are rendered with the chat template (`data.templates`), turn by turn: what it writes for the conversation up to an
answer must be a prefix of what it writes with the answer, in text and in tokens. So each prompt is tokenised whole, as
it is when served, and an answer is what the tokens of both together have more: on its own it would get the mark of a
text's beginning from a SentencePiece tokenizer. This works for any template that keeps earlier turns as they were;
what does not is refused with what to do about it. Preferences are two such rows; questions alone are rendered up to
where the assistant begins to speak.

Shapes: every list of a row is T tokens long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from jinja2 import TemplateError

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.rows import Row
from tuneloop.train.data.templates import control_tokens, template_text, turns_of
from tuneloop.train.recipe.objective import Template

IGNORED = -100  # the label PyTorch's cross entropy leaves out
_SHOWN = 5
_APART = (
    "remove spaces and newlines at the beginning and end of what the assistant says, or give one question and one "
    "answer per row"
)
R = TypeVar("R")
L = TypeVar("L")


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


@dataclass(frozen=True)
class LabelAudit:
    """What training will learn from; printed and logged before step one."""

    rows: int
    tokens: int
    trained_tokens: int
    truncated_rows: int
    rows_without_end: int  # rows whose last end-of-turn was cut off
    longest: int
    end_of_turn: str
    template_digest: str
    unlearned_answers: int = 0  # earlier ones that are read in other tokens than the model would write

    @property
    def trained_share(self) -> float:
        """Learned tokens among all."""
        return self.trained_tokens / self.tokens

    @property
    def warning(self) -> str | None:
        """What is read and should be learned, but is not, and what to do; None where all of it is."""
        if not self.unlearned_answers:
            return None
        return (
            f"answers with turns behind them that are read, but not learned: {self.unlearned_answers}; the base's "
            f"tokenizer joins what stands on both sides of their beginning or end into one token; {_APART}"
        )

    def as_json(self) -> dict[str, Any]:
        """Every figure, for `label_audit.json`."""
        return asdict(self) | {"trained_share": self.trained_share}


@dataclass(frozen=True)
class PromptAudit:
    """What the policy will be asked; printed and logged before step one."""

    rows: int
    tokens: int
    left_out: int  # questions longer than objective.max_prompt_length
    longest: int
    end_of_turn: str
    template_digest: str

    def as_json(self) -> dict[str, Any]:
        """Every figure, for `label_audit.json`."""
        return asdict(self)


class Labeller:
    """Turns rows into token ids and labels with one tokenizer and a chat template."""

    def __init__(self, tokenizer: Any, max_length: int, template: Template = "chat") -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        if tokenizer.eos_token_id is None:
            raise InvalidInput("the base's tokenizer names no end-of-sequence token; set eos_token in its config")
        self._end = int(tokenizer.eos_token_id)
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
            f"end into one token, so the model would learn from other tokens than it is asked with; {_APART}"
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
                f"{self.end_of_turn}, its end-of-sequence token: the model would never learn to stop; "
                "correct eos_token or the template"
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


def label_rows(labeller: Labeller, rows: Sequence[Row], template_digest: str) -> tuple[list[LabelledRow], LabelAudit]:
    """Label every row and audit the result.

    Raises:
        InvalidInput: a row would teach nothing (cut off before its answer), or none would teach to stop.
    """
    labelled = list(teaching_rows(labeller, rows))
    return labelled, _audited(labelled, labeller, template_digest)


def teaching_rows(labeller: Labeller, rows: Iterable[Row]) -> Iterator[LabelledRow]:
    """The same one by one; what is wrong with some of them is said behind the last."""
    return _each(rows, lambda row: _teaching(labeller.label(row), row.place))


def why_unlabelled(labeller: Labeller, row: Row) -> str | None:
    """What is wrong with a row that teaches nothing; None where it can be learned from."""
    try:
        _teaching(labeller.label(row), row.place)
    except InvalidInput as error:
        return str(error)
    return None


def label_pairs(
    labeller: Labeller, rows: Sequence[PreferenceRow], template_digest: str
) -> tuple[list[LabelledPair], LabelAudit]:
    """Label every preference and audit both its sides; raises as `label_rows`."""

    def made(row: PreferenceRow) -> LabelledPair:
        pair = labeller.pair(row)
        for side in (pair.chosen, pair.rejected):
            _teaching(side, row.place)
        return pair

    labelled = list(_each(rows, made))
    sides = [side for pair in labelled for side in (pair.chosen, pair.rejected)]
    return labelled, _audited(sides, labeller, template_digest)


def label_prompts(
    labeller: Labeller, rows: Sequence[PromptRow], max_prompt_length: int, template_digest: str
) -> tuple[list[LabelledPrompt], PromptAudit]:
    """Tokenise every question; those above `max_prompt_length` tokens are left out and counted.

    Raises:
        InvalidInput: a row holds control tokens, or none is short enough.
    """
    asked = list(_each(rows, labeller.ask))
    kept = [prompt for prompt in asked if len(prompt.ids) <= max_prompt_length]
    if not kept:
        shortest = min(len(prompt.ids) for prompt in asked)
        raise InvalidInput(
            f"every question is longer than objective.max_prompt_length {max_prompt_length} (the shortest has "
            f"{shortest} tokens); raise it"
        )
    audit = PromptAudit(
        rows=len(kept),
        tokens=sum(len(prompt.ids) for prompt in kept),
        left_out=len(asked) - len(kept),
        longest=max(len(prompt.ids) for prompt in kept),
        end_of_turn=labeller.end_of_turn,
        template_digest=template_digest,
    )
    return kept, audit


def _each(rows: Iterable[R], label: Callable[[R], L]) -> Iterator[L]:
    errors: list[str] = []
    wrong = 0
    for row in rows:
        try:
            made = label(row)
        except InvalidInput as error:
            wrong += 1
            errors += [str(error)] if wrong <= _SHOWN else []
        else:
            yield made
    if wrong:
        more = f"\n… and {wrong - _SHOWN} more" if wrong > _SHOWN else ""
        raise InvalidInput("\n".join(errors) + more)


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(ids), len(others)))


def _last_answer_only(row: LabelledRow) -> LabelledRow:
    before = min(row.prompt_length, len(row.ids))
    labels = (IGNORED,) * before + row.labels[before:]
    return replace(row, labels=labels, ends=int(not row.truncated), unlearned_answers=0)  # no other was to be


def _teaching(made: LabelledRow, place: str) -> LabelledRow:
    if made.trained == 0:
        raise InvalidInput(
            f"{place or 'a row'}: no token of it would be learned: objective.max_length cuts it before the "
            f"answer (token {made.prompt_length + 1}); raise max_length or shorten the question"
        )
    return made


def _audited(labelled: Iterable[LabelledRow], labeller: Labeller, template_digest: str) -> LabelAudit:
    tally = Tally()
    for _ in tally.counted(labelled):
        pass
    return tally.audit(labeller, template_digest)


class Tally:
    """What is learned, counted as rows go by."""

    def __init__(self) -> None:
        self._rows = self._tokens = self._trained = self._truncated = self._without_end = self._longest = 0
        self._unlearned = 0

    def counted(self, rows: Iterable[LabelledRow]) -> Iterator[LabelledRow]:
        """The rows, each counted as it passes."""
        for row in rows:
            self._rows += 1
            self._tokens += len(row.ids)
            self._trained += row.trained
            self._truncated += row.truncated
            self._without_end += row.ends == 0 or row.truncated
            self._longest = max(self._longest, len(row.ids))
            self._unlearned += row.unlearned_answers
            yield row

    def audit(self, labeller: Labeller, template_digest: str) -> LabelAudit:
        """Of all that passed.

        Raises:
            InvalidInput: none of them would teach to stop.
        """
        if self._without_end == self._rows:
            raise InvalidInput(
                f"every row is cut off by objective.max_length before its {labeller.end_of_turn}: the model would "
                "never learn to stop; raise max_length"
            )
        return LabelAudit(
            rows=self._rows,
            tokens=self._tokens,
            trained_tokens=self._trained,
            truncated_rows=self._truncated,
            rows_without_end=self._without_end,
            longest=self._longest,
            end_of_turn=labeller.end_of_turn,
            template_digest=template_digest,
            unlearned_answers=self._unlearned,
        )
