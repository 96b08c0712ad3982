"""The loop: sample a batch of answers, judge them, and take several clipped steps on what they taught.

`run.steps` counts batches of `run.batch_size` answers; each is learned from in `objective.passes` passes of
`objective.minibatches` updates, `run.micro_batch` answers a forward pass. One process; the same seed on the same CPU
gives the same run.
"""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import get_scheduler

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.data.labels import LabelledPrompt
from tuneloop.train.fit.arguments import schedule_arguments
from tuneloop.train.fit.ppo.advantages import generalised_advantages, token_rewards, whitened
from tuneloop.train.fit.ppo.losses import KlControl, policy_loss, value_loss
from tuneloop.train.fit.ppo.rollout import Actor, Rollout, roll_out
from tuneloop.train.fit.progress import FitResult, Watch, peak_memory_bytes
from tuneloop.train.fit.reference import hold_reference, release_reference
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge


def fit_ppo(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[LabelledPrompt],
    recipe: Recipe,
    *,
    device: str,
    steps: int,
    judge: Judge,
    watch: Watch,
) -> FitResult:
    """Train the adapter of `model` in place over `steps` batches of answers.

    Raises:
        TuneloopError: the loss is no longer a number; or whatever `watch.check` raises.
    """
    objective = recipe.objective
    assert isinstance(objective, PpoObjective)
    torch.manual_seed(recipe.run.seed)
    amp = recipe.run.dtype == "bfloat16"
    was_training = model.training
    model.eval()
    watch.screen.say(f"reference: {hold_reference(model)}")
    with disable_input_dtype_casting(model) if amp else nullcontext():
        learner = _Learner(model, tokenizer, recipe, objective, device, steps, watch)
        try:
            made = learner.learn(prompts, judge)
        finally:
            release_reference(model)
            model.train(was_training)
    return made


@dataclass(frozen=True)
class _Update:
    """What one batch's updates did, in the mean."""

    policy_loss: float
    value_loss: float
    clipped_share: float
    grad_norm: float


class _Learner:
    """One run's moving parts: the actor, its optimiser, and how strongly it is held."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: Recipe,
        objective: PpoObjective,
        device: str,
        steps: int,
        watch: Watch,
    ) -> None:
        self._recipe, self._objective, self._steps, self._watch = recipe, objective, steps, watch
        self._tokenizer = tokenizer
        self._micro_batch = int(recipe.run.micro_batch)
        critic = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, device=device)
        torch.nn.init.zeros_(critic.weight)  # it expects nothing before it has seen anything
        torch.nn.init.zeros_(critic.bias)
        amp = recipe.run.dtype == "bfloat16"
        self._actor = Actor(
            model, critic, objective.temperature, lambda: torch.autocast(device, torch.bfloat16, enabled=amp)
        )
        self._trained = [value for value in model.parameters() if value.requires_grad] + list(critic.parameters())
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=recipe.learning_rate.value, weight_decay=recipe.optim.weight_decay
        )
        kind, warmup = schedule_arguments(recipe.optim, steps)
        self._scheduler = get_scheduler(kind, self._optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        self._random = torch.Generator().manual_seed(recipe.run.seed)

    def learn(self, prompts: Sequence[LabelledPrompt], judge: Judge) -> FitResult:
        """All steps."""
        objective, watch = self._objective, self._watch
        control = KlControl(objective.kl_coefficient, objective.target_kl)
        losses: list[float] = []
        tokens, started = 0, time.monotonic()
        for step, chosen in enumerate(self._batches(prompts), start=1):
            rollout = roll_out(
                self._actor,
                self._tokenizer,
                chosen,
                max_new_tokens=objective.max_new_tokens,
                micro_batch=self._micro_batch,
                check=watch.check,
            )
            parts = judge.parts(rollout.answers)
            scores_B = torch.tensor([sum(found) for found in zip(*parts.values(), strict=True)])
            update = self._improve(rollout, scores_B.to(rollout.old_BA), control.coefficient)
            loss = update.policy_loss + objective.value_coefficient * update.value_loss
            tokens += int(rollout.attention_BT.sum())
            elapsed, kl = time.monotonic() - started, float(rollout.kl_B.mean())
            metrics = {
                "loss": loss,
                "policy_loss": update.policy_loss,
                "value_loss": update.value_loss,
                "clipped_share": update.clipped_share,
                "grad_norm": update.grad_norm,
                "learning_rate": self._optimizer.param_groups[0]["lr"],
                "reward": float(scores_B.mean()),
                "kl": kl,
                "kl_coefficient": control.coefficient,
                "answer_tokens": float(rollout.mask_BA.sum(dim=1).mean()),
                "finished_share": sum(answer.finished for answer in rollout.answers) / len(chosen),
                "tokens_per_s": tokens / elapsed,
            } | {f"reward.{name}": sum(found) / len(found) for name, found in parts.items()}
            watch.log(metrics, step)
            if not math.isfinite(loss):
                raise TuneloopError(
                    f"step {step}: the loss is {loss}; lower optim.learning_rate, or use run.dtype float32"
                )
            losses.append(loss)
            watch.screen.progress(
                f"step {step}/{self._steps}  reward {metrics['reward']:.3f}  KL {kl:.2f} nats an answer  "
                f"loss {loss:.3f}  {metrics['tokens_per_s']:,.0f} tokens/s",
                keep=step % max(1, self._steps // 20) == 0 or step in {1, self._steps},
            )
            control = control.after(kl)
            self._scheduler.step()
        seconds = time.monotonic() - started
        return FitResult(
            len(losses),
            losses[0],
            losses[-1],
            seconds,
            tokens / seconds,
            micro_batch=self._micro_batch,
            peak_memory_bytes=peak_memory_bytes(),
            weights_step=len(losses),
            mfu=None,  # sampling, scoring and learning take turns: no one share of the peak says anything
        )

    def _batches(self, prompts: Sequence[LabelledPrompt]) -> Iterator[list[LabelledPrompt]]:
        """Every prompt once in a new order, then again; no batch is short."""
        waiting: list[LabelledPrompt] = []
        for _ in range(self._steps):
            while len(waiting) < self._recipe.run.batch_size:
                order = torch.randperm(len(prompts), generator=self._random).tolist()
                waiting += [prompts[index] for index in order]
            size = self._recipe.run.batch_size
            chosen, waiting = waiting[:size], waiting[size:]
            yield chosen

    def _improve(self, rollout: Rollout, scores_B: torch.Tensor, kl_coefficient: float) -> _Update:
        objective, size = self._objective, self._recipe.run.batch_size
        rewards_BA = token_rewards(scores_B, rollout.old_BA - rollout.reference_BA, rollout.mask_BA, kl_coefficient)
        advantages_BA, returns_BA = generalised_advantages(
            rewards_BA, rollout.values_BA, rollout.mask_BA, gamma=objective.gamma, gae_lambda=objective.gae_lambda
        )
        advantages_BA = whitened(advantages_BA, rollout.mask_BA)
        updates = []
        for _ in range(objective.passes):
            order_B = torch.randperm(size, generator=self._random)
            updates += [
                self._update(rollout, advantages_BA, returns_BA, chosen)
                for chosen in order_B.split(size // objective.minibatches)
            ]
        means = torch.tensor(updates, dtype=torch.float64).mean(dim=0).tolist()
        return _Update(*means)

    def _update(
        self, rollout: Rollout, advantages_BA: torch.Tensor, returns_BA: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[float, float, float, float]:
        objective = self._objective
        tokens = float(rollout.mask_BA[chosen].sum())
        sums = [0.0, 0.0, 0.0]
        self._optimizer.zero_grad(set_to_none=True)
        for part in chosen.split(self._micro_batch):
            self._watch.check()
            mask_BA, old_BA = rollout.mask_BA[part], rollout.old_BA[part]
            new_BA, values_BA = self._actor.read(rollout.ids_BT[part], rollout.attention_BT[part], mask_BA.shape[1])
            of_policy, clipped = policy_loss(
                new_BA, old_BA, advantages_BA[part], mask_BA, clip=objective.clip, tokens=tokens
            )
            of_values = value_loss(
                values_BA,
                rollout.values_BA[part],
                returns_BA[part],
                mask_BA,
                clip=objective.value_clip,
                tokens=tokens,
            )
            (of_policy + objective.value_coefficient * of_values).backward()
            found = (float(of_policy.detach()), float(of_values.detach()), float(clipped) / tokens)
            sums = [total + one for total, one in zip(sums, found, strict=True)]
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.optim.max_grad_norm)
        self._optimizer.step()
        return sums[0], sums[1], sums[2], float(norm)
