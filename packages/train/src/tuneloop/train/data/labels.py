"""Which tokens are learned: the assistant's turns and their end-of-turn token, nothing else; audited before step one.

Rows are rendered with the base's own chat template, turn by turn: what it writes for the conversation up to an answer
must be a prefix of what it writes with the answer. So each turn is tokenised just as it is when served, and this
works for any template that keeps earlier turns as they were; one that rewrites them is refused with what to do about
it.

Shapes: every list of a row is T tokens long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.data.rows import Row

IGNORED = -100  # the label PyTorch's cross entropy leaves out
_SHOWN = 5


@dataclass(frozen=True)
class LabelledRow:
    """One row as the model sees it; `labels` equal `ids` where a token is learned and `IGNORED` elsewhere."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool
    ends: int  # trained end-of-turn tokens
    prompt_length: int  # tokens before the last answer, generation prompt included

    @property
    def trained(self) -> int:
        """How many tokens are learned. The first token of a row has no prediction and is never one of them."""
        return sum(label != IGNORED for label in self.labels[1:])


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

    @property
    def trained_share(self) -> float:
        """Learned tokens among all."""
        return self.trained_tokens / self.tokens

    def as_json(self) -> dict[str, Any]:
        """Every figure, for `label_audit.json`."""
        return asdict(self) | {"trained_share": self.trained_share}


class Labeller:
    """Turns rows into token ids and labels with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        if tokenizer.eos_token_id is None:
            raise InvalidInput("the base's tokenizer names no end-of-sequence token; set eos_token in its config")
        self._end = int(tokenizer.eos_token_id)
        self._control = {str(token) for token in tokenizer.all_special_tokens}

    @property
    def end_of_turn(self) -> str:
        """The token that ends an answer."""
        return str(self._tokenizer.convert_ids_to_tokens(self._end))

    def label(self, row: Row) -> LabelledRow:
        """Render, tokenise and mask one row.

        Raises:
            InvalidInput: the row holds control tokens, or the template cannot be followed turn by turn.
        """
        self._refuse_control_tokens(row)
        turns = [{"role": message.role, "content": message.content} for message in row.messages]
        ids: list[int] = []
        labels: list[int] = []
        done, ends, prompt_length = "", 0, 0
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            asked = self.render(turns[:index], prompt=True)
            answered = self.render(turns[: index + 1], prompt=False)
            self._require_prefix(row, done, asked)
            self._require_prefix(row, asked, answered)
            given, learned = self._ids(asked[len(done) :]), self._ids(answered[len(asked) :])
            cut = self._after_last_end(row, learned)
            ids += given + learned
            labels += [IGNORED] * len(given) + learned[:cut] + [IGNORED] * (len(learned) - cut)
            prompt_length = len(ids) - len(learned)
            ends += 1
            done = answered
        if len(ids) > self._max_length:
            ids, labels = ids[: self._max_length], labels[: self._max_length]
            ends = min(ends, labels.count(self._end))
            return LabelledRow(tuple(ids), tuple(labels), True, ends, prompt_length)
        return LabelledRow(tuple(ids), tuple(labels), False, ends, prompt_length)

    def render(self, turns: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """The template's text for these turns; with `prompt`, up to where the assistant begins to speak."""
        return str(self._tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt))

    def prompt_ids(self, row: Row) -> list[int]:
        """The tokens an engine is given for this row's question."""
        turns = [{"role": message.role, "content": message.content} for message in row.messages[:-1]]
        return self._ids(self.render(turns, prompt=True))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

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

    def _refuse_control_tokens(self, row: Row) -> None:
        for message in row.messages:
            found = sorted(token for token in self._control if token in message.content)
            if found:
                raise InvalidInput(
                    f"{row.place or 'a row'}: the text holds the control token {found[0]}, which would open or close a "
                    "turn; remove it"
                )


def label_rows(labeller: Labeller, rows: Sequence[Row], template_digest: str) -> tuple[list[LabelledRow], LabelAudit]:
    """Label every row and audit the result.

    Raises:
        InvalidInput: a row would teach nothing (cut off before its answer), or none would teach to stop.
    """
    labelled: list[LabelledRow] = []
    errors: list[str] = []
    for row in rows:
        try:
            made = labeller.label(row)
        except InvalidInput as error:
            errors.append(str(error))
            continue
        if made.trained == 0:
            errors.append(
                f"{row.place or 'a row'}: no token of it would be learned: objective.max_length cuts it before the "
                f"answer (token {made.prompt_length + 1}); raise max_length or shorten the question"
            )
        labelled.append(made)
    if errors:
        more = f"\n… and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise InvalidInput("\n".join(errors[:_SHOWN]) + more)
    audit = LabelAudit(
        rows=len(labelled),
        tokens=sum(len(row.ids) for row in labelled),
        trained_tokens=sum(row.trained for row in labelled),
        truncated_rows=sum(row.truncated for row in labelled),
        rows_without_end=sum(row.ends == 0 or row.truncated for row in labelled),
        longest=max(len(row.ids) for row in labelled),
        end_of_turn=labeller.end_of_turn,
        template_digest=template_digest,
    )
    if audit.rows_without_end == audit.rows:
        raise InvalidInput(
            f"every row is cut off by objective.max_length before its {audit.end_of_turn}: the model would never learn "
            "to stop; raise max_length"
        )
    return labelled, audit
