"""Measuring a model on held-out sets: NLL of the answers row by row, and scores of its own greedy answers.

Rows go through the model in batches of like length, what all of them begin with (a system prompt) is read once, logits
are made only where something is learned, and none of that changes a score. On two CPU cores and 135M parameters in
float32: 60 rows of 66 tokens take 6 s, since 24 of these are shared, and 9 s otherwise; 8 answers of 40 tokens take
6 s, 24 at once 9 s.
"""

# ruff: noqa: N803, N806 (suffixes are shapes: B rows, T tokens, V vocabulary, N learned tokens)

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.data.labels import IGNORED, LabelledRow, Labeller
from tuneloop.train.data.rows import Row
from tuneloop.train.evaluation.batching import ANSWERS_AT_ONCE, BATCH_TOKENS, batches
from tuneloop.train.evaluation.bleu import bleu_of
from tuneloop.train.evaluation.logits import forward_parameters, nll_at
from tuneloop.train.evaluation.metrics import Metric
from tuneloop.train.evaluation.statistics import RowScore, mean_nll, perplexity

BATCH = 16
_SHARED_WORTH = 8  # tokens


@dataclass(frozen=True)
class EvaluationSet:
    """A named set, labelled and ready; `asked` are the rows that get a generated answer."""

    name: str
    rows: tuple[Row, ...]
    labelled: tuple[LabelledRow, ...]
    asked: tuple[Row, ...]
    digest: str


@dataclass(frozen=True)
class Answer:
    """What a model said; `ended` unless it was cut at the limit."""

    text: str
    ended: bool


@dataclass(frozen=True)
class SetScore:
    """What one model reached on one set; `by_row` holds each metric's score of each asked row."""

    rows: tuple[RowScore, ...]
    bleu: float | None
    bleu_signature: str | None
    answers: tuple[Answer, ...]
    by_row: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)  # metric → why it could not be measured

    def metrics(self, name: str) -> dict[str, float]:
        """`perplexity.<set>`, `nll.<set>` and, where answers were generated, `bleu.<set>` and `<metric>.<set>`."""
        found = {f"perplexity.{name}": perplexity(self.rows), f"nll.{name}": mean_nll(self.rows)}
        if self.bleu is not None:
            found[f"bleu.{name}"] = self.bleu
        return found | {f"{metric}.{name}": float(np.mean(scores)) for metric, scores in self.by_row.items()}


def score_rows(
    model: Any, rows: Sequence[LabelledRow], *, pad_id: int, check: Callable[[], None], batch: int = BATCH
) -> list[RowScore]:
    """Sum of NLL over each row's trained tokens, in the rows' order.

    Args:
        model: a causal language model; ids and mask of shape (B, T) in, logits of shape (B, T, V) out.
        rows: labelled rows.
        pad_id: fills rows of a batch up to its longest, masked out.
        check: called before each batch; raises to stop.
        batch: B at most; with half of it, half the tokens of long rows go into a batch, too.
    """
    tokens = BATCH_TOKENS * batch // BATCH
    scores: dict[int, RowScore] = {}
    with _measured(model):
        beginning = _Beginning.of(model, rows)
        skipped = beginning.tokens
        lengths = [len(row.ids) - skipped for row in rows]
        for chosen in batches(
            [len(row.ids) for row in rows], batch, tokens
        ):  # what is skipped lies in every row's cache
            check()
            longest = max(lengths[index] for index in chosen)
            ids_BT = padded([rows[index].ids[skipped:] for index in chosen], longest, pad_id).to(model.device)
            labels_BT = padded([rows[index].labels[skipped:] for index in chosen], longest, IGNORED).to(model.device)
            mask_BT = padded([[1] * lengths[index] for index in chosen], longest, 0).to(model.device)
            targets_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
            learned_BT = targets_BT != IGNORED
            nll_N = nll_at(model, ids_BT, targets_BT, learned_BT, beginning.before(mask_BT))
            counts = learned_BT.sum(dim=1).tolist()
            for index, part, count in zip(chosen, nll_N.split(counts), counts, strict=True):
                scores[index] = RowScore(float(part.double().sum()), count)
    return [scores[index] for index in range(len(rows))]


def greedy_answers(
    model: Any,
    tokenizer: Any,
    labeller: Labeller,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    check: Callable[[], None],
    batch: int = ANSWERS_AT_ONCE,
) -> list[Answer]:
    """The model's own answers to the rows' questions, `batch` at a time, without sampling, padded on the left; they
    stop where an engine would: at the tokenizer's end token, or at another that the base's generation config names."""
    pad_id, ends = pad_token_id(tokenizer), end_ids(model, tokenizer)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad_id, eos_token_id=sorted(ends)
    )
    prompts = [labeller.prompt_ids(row) for row in rows]
    tokens = BATCH_TOKENS * batch // ANSWERS_AT_ONCE
    answers: dict[int, Answer] = {}
    with _measured(model):
        for chosen in batches([len(prompt) + max_new_tokens for prompt in prompts], batch, tokens):
            check()
            longest = max(len(prompts[index]) for index in chosen)
            ids_BT = padded([prompts[index] for index in chosen], longest, pad_id, left=True).to(model.device)
            mask_BT = padded([[1] * len(prompts[index]) for index in chosen], longest, 0, left=True).to(model.device)
            made_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)
            for index, ids in zip(chosen, made_BT[:, longest:].tolist(), strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                answers[index] = Answer(text.strip(), ended=not ends.isdisjoint(ids))
    return [answers[index] for index in range(len(rows))]


@contextmanager
def _measured(model: Any) -> Iterator[None]:
    """In evaluation mode, and as it was once it is over, whatever happens: a pass may be begun again with less."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def score_set(
    model: Any,
    tokenizer: Any,
    chosen: EvaluationSet,
    answers: Sequence[Answer],
    *,
    check: Callable[[], None],
    metrics: Sequence[Metric] = (),
    tolerant: bool = False,
    batch: int = BATCH,
) -> SetScore:
    """NLL of every row of a set; BLEU and metrics of the answers to its `asked` rows.

    Args:
        model: what is measured.
        tokenizer: its tokenizer.
        chosen: the set.
        answers: the model's own, one for each of the `asked` rows.
        check: called between batches; raises to stop.
        metrics: what else is measured on the answers.
        tolerant: put down a metric that fails instead of raising; a trained model is not lost to it.
        batch: rows at a time, as `score_rows` takes them.

    Raises:
        InvalidInput: a metric fails.
    """
    rows = tuple(score_rows(model, chosen.labelled, pad_id=pad_token_id(tokenizer), check=check, batch=batch))
    if not answers:
        return SetScore(rows, None, None, ())
    texts, references = [answer.text for answer in answers], [row.answer for row in chosen.asked]
    bleu, signature = bleu_of(texts, references)
    by_row, failed = {}, {}
    for metric in metrics:
        try:
            by_row[metric.name] = metric.rows(texts, references)
        except InvalidInput as error:
            if not tolerant:
                raise
            failed[metric.name] = str(error)
    return SetScore(rows, bleu, signature, tuple(answers), by_row, failed)


def pad_token_id(tokenizer: Any) -> int:
    """What fills a batch; the end token where the tokenizer names none (masked out either way)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def padded(rows: Sequence[Sequence[int]], length: int, value: int, *, left: bool = False) -> torch.Tensor:
    """Rows of ids as one tensor (B, length), filled up with `value` on the right, or on the left."""
    filled = [
        ([value] * (length - len(r)) + list(r)) if left else (list(r) + [value] * (length - len(r))) for r in rows
    ]
    return torch.tensor(filled, dtype=torch.long)


@dataclass(frozen=True)
class _Beginning:
    """The tokens that all rows begin with and none learns, with what the model makes of them."""

    tokens: int
    cache: DynamicCache | None = None

    @classmethod
    def of(cls, model: Any, rows: Sequence[LabelledRow]) -> _Beginning:
        """None where it would not pay, or where a model's state after a text is more than keys and values."""
        shared = sum(
            1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*(row.ids for row in rows), strict=False))
        )
        unlearned = [
            next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.labels)) for row in rows
        ]
        tokens = min([shared, *(at - 1 for at in unlearned)])  # the token before a learned one has logits to give
        tried = getattr(model.config, "_attn_implementation", None) in {"sdpa", "eager"}  # flash attention is not
        if len(rows) == 1 or tokens < _SHARED_WORTH or not tried or "past_key_values" not in forward_parameters(model):
            return cls(0)
        given = {"input_ids": torch.tensor([rows[0].ids[:tokens]], device=model.device), "use_cache": True}
        if "logits_to_keep" in forward_parameters(model):
            given["logits_to_keep"] = 1
        with torch.no_grad():
            cache = model(**given).past_key_values
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return cls(0)
        return cls(tokens, cache)

    def before(self, mask_BT: torch.Tensor) -> dict[str, Any]:
        """What the model is given beside the rest of a batch's rows, whose mask this is."""
        if self.cache is None:
            return {"attention_mask": mask_BT, "use_cache": False}
        cache = copy.deepcopy(self.cache)  # the model appends to it
        cache.batch_repeat_interleave(len(mask_BT))
        mask_BT = torch.nn.functional.pad(mask_BT, (self.tokens, 0), value=1)
        return {"attention_mask": mask_BT, "past_key_values": cache, "use_cache": True}


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's own, and those that the base's generation config names."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    others = named if isinstance(named, list) else [named] if named is not None else []
    return {int(tokenizer.eos_token_id), *map(int, others)}
