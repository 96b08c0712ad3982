"""Answers sampled from the policy, with what each of their tokens was worth to it, to its reference and to the critic.

The policy is the base with its adapter; the critic is one linear layer on the same last hidden states; the reference
is the same model again (`fit.reference`). So one base is in memory.
"""

# ruff: noqa: N802, N803, N806, N815 (suffixes are shapes)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from tuneloop.train.data.labels import LabelledPrompt
from tuneloop.train.evaluation.measure import end_ids, pad_token_id, padded
from tuneloop.train.fit.reference import as_reference
from tuneloop.train.fit.sampling import asking_before_each_pass, its_own_probabilities
from tuneloop.train.rewards import Answer


@dataclass(frozen=True)
class Rollout:
    """One batch of answers."""

    answers: tuple[Answer, ...]
    ids_BT: torch.Tensor
    attention_BT: torch.Tensor
    mask_BA: torch.Tensor  # the answers' tokens, their end-of-turn included
    old_BA: torch.Tensor  # log-probabilities under the policy that sampled
    reference_BA: torch.Tensor
    values_BA: torch.Tensor

    @property
    def kl_B(self) -> torch.Tensor:
        """Nats of each answer: the sum over its tokens of log π(token) − log π_ref(token)."""
        return ((self.old_BA - self.reference_BA) * self.mask_BA).sum(dim=1)


@dataclass(frozen=True)
class Actor:
    """The policy with its critic, and how it samples."""

    model: Any
    critic: torch.nn.Linear  # H → 1
    temperature: float
    autocast: Callable[[], Any]  # context manager of the run's precision

    def read(
        self, ids_BT: torch.Tensor, attention_BT: torch.Tensor, answer_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the last A tokens, and the critic's values before each of them; (B, A) each."""
        with self.autocast():
            made = self.model(
                input_ids=ids_BT,
                attention_mask=attention_BT,
                position_ids=(attention_BT.cumsum(dim=1) - 1).clamp(min=0),
                logits_to_keep=answer_tokens + 1,
                output_hidden_states=True,
                use_cache=False,
            )
        before_BAH = made.hidden_states[-1][:, -answer_tokens - 1 : -1]
        logits_BAV = made.logits[:, :-1].float() / self.temperature
        taken_BA = ids_BT[:, -answer_tokens:]
        log_probabilities_BA = torch.log_softmax(logits_BAV, dim=-1).gather(2, taken_BA.unsqueeze(2)).squeeze(2)
        return log_probabilities_BA, self.critic(before_BAH.float()).squeeze(2)


def roll_out(
    actor: Actor,
    tokenizer: Any,
    prompts: Sequence[LabelledPrompt],
    *,
    max_new_tokens: int,
    micro_batch: int,
    check: Callable[[], None],
) -> Rollout:
    """Sample one answer to each prompt and read it as policy, reference and critic do.

    Args:
        actor: its model is in evaluation mode: dropout would make the ratio of probabilities noise.
        tokenizer: the base's.
        prompts: B of them.
        max_new_tokens: at most, an answer.
        micro_batch: answers per forward pass.
        check: called before each forward pass, so before each token; raises to stop.
    """
    pad, ends = pad_token_id(tokenizer), end_ids(actor.model, tokenizer)
    device = actor.model.device
    settings = GenerationConfig(
        do_sample=True,
        temperature=actor.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(ends),
    )
    longest = max(len(prompt.ids) for prompt in prompts)
    ids_BP = padded([prompt.ids for prompt in prompts], longest, pad, left=True).to(device)
    asked_BP = padded([[1] * len(prompt.ids) for prompt in prompts], longest, 0, left=True).to(device)
    spoken: list[list[int]] = []
    with torch.no_grad(), asking_before_each_pass(actor.model, check):
        for start in range(0, len(prompts), micro_batch):
            part = slice(start, start + micro_batch)
            with actor.autocast(), its_own_probabilities(actor.model):
                made = actor.model.generate(
                    input_ids=ids_BP[part], attention_mask=asked_BP[part], generation_config=settings
                )
            spoken += [_until_end(ids, ends) for ids in made[:, longest:].tolist()]
        width = max(map(len, spoken))
        mask_BA = padded([[1] * len(ids) for ids in spoken], width, 0).to(device)
        ids_BT = torch.cat([ids_BP, padded(spoken, width, pad).to(device)], dim=1)
        attention_BT = torch.cat([asked_BP, mask_BA], dim=1)
        read = []
        for start in range(0, len(prompts), micro_batch):
            part = slice(start, start + micro_batch)
            old_BA, values_BA = actor.read(ids_BT[part], attention_BT[part], width)
            with as_reference(actor.model):
                reference_BA, _ = actor.read(ids_BT[part], attention_BT[part], width)
            read.append((old_BA, reference_BA, values_BA))
    old_BA, reference_BA, values_BA = (torch.cat(parts) for parts in zip(*read, strict=True))
    texts = tokenizer.batch_decode(spoken, skip_special_tokens=True)
    answers = tuple(
        Answer(prompt.row.messages, text.strip(), ids[-1] in ends, prompt.row.fields, prompt.ids, tuple(ids))
        for prompt, text, ids in zip(prompts, texts, spoken, strict=True)
    )
    return Rollout(answers, ids_BT, attention_BT, mask_BA.float(), old_BA, reference_BA, values_BA)


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in ends), ids)
