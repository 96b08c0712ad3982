"""The loop: sample a batch of answers, judge them, and take several clipped steps on what they taught.

`run.steps` counts batches of `run.batch_size` answers; each is learned from in `objective.passes` passes of
`objective.minibatches` updates, `run.micro_batch` answers a forward pass. One process; the same seed on the same CPU
gives the same run.
"""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import get_scheduler

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.data.labels import LabelledPrompt
from tuneloop.train.fit.arguments import schedule_arguments
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.ppo.advantages import generalised_advantages, token_rewards, whitened
from tuneloop.train.fit.ppo.keeping import Keeper, Learned
from tuneloop.train.fit.ppo.losses import KlControl, policy_loss, value_loss
from tuneloop.train.fit.ppo.rollout import Actor, Rollout, roll_out
from tuneloop.train.fit.progress import FitResult, Watch, peak_memory_bytes
from tuneloop.train.fit.reference import hold_reference, release_reference
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge
from tuneloop.train.stopping import Stopped


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
    store: CheckpointStore | None = None,
    resume: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> FitResult:
    """Train the adapter of `model` in place over `steps` batches of answers; `Fitting` says what the rest means.

    Raises:
        Stopped: `watch.check` asked for it; the state is in `store`.
        TuneloopError: the loss is no longer a number, or a checkpoint cannot be written; or whatever else
            `watch.check` raises.
    """
    objective = recipe.objective
    assert isinstance(objective, PpoObjective)
    torch.manual_seed(recipe.run.seed)
    amp = recipe.run.dtype == "bfloat16"
    was_training = model.training
    model.eval()
    watch.screen.say(f"reference: {hold_reference(model)}")
    with disable_input_dtype_casting(model) if amp else nullcontext():
        learner = _Learner(model, tokenizer, recipe, objective, device, steps, watch, store, clock)
        try:
            made = learner.learn(prompts, judge, resume=resume)
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
        store: CheckpointStore | None,
        clock: Callable[[], float],
    ) -> None:
        self._recipe, self._objective, self._steps, self._watch = recipe, objective, steps, watch
        self._clock = clock
        self._stopped: Stopped | None = None
        self._tokenizer = tokenizer
        self._micro_batch = int(recipe.run.micro_batch)
        critic = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, device=device)
        torch.nn.init.zeros_(critic.weight)  # it expects nothing before it has seen anything
        torch.nn.init.zeros_(critic.bias)
        amp = recipe.run.dtype == "bfloat16"
        self._actor = Actor(
            model, critic, objective.temperature, lambda: torch.autocast(device, torch.bfloat16, enabled=amp)
        )
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        named |= {f"critic.{name}": value for name, value in critic.named_parameters()}
        self._trained = list(named.values())
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=recipe.learning_rate.value, weight_decay=recipe.optim.weight_decay
        )
        kind, warmup = schedule_arguments(recipe.optim, steps)
        self._scheduler = get_scheduler(kind, self._optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        self._random = torch.Generator().manual_seed(recipe.run.seed)
        parts = {"optimizer": self._optimizer, "scheduler": self._scheduler}
        self._keeper = Keeper(store, recipe, named, parts, self._random, clock)

    def learn(self, prompts: Sequence[LabelledPrompt], judge: Judge, *, resume: bool) -> FitResult:
        """All steps that are still to do."""
        objective, watch = self._objective, self._watch
        learned = Learned(0, objective.kl_coefficient)
        if not resume:
            self._keeper.begin_anew()
        elif (kept := self._keeper.restore()) is not None:
            watch.screen.say(f"resumed after step {kept.step}")
            learned = kept
        tokens, started = 0, self._clock()
        for step in range(learned.step + 1, self._steps + 1):
            chosen, waiting = self._next(prompts, learned.waiting)
            control = KlControl(learned.kl_coefficient, objective.target_kl)
            rollout = roll_out(
                self._actor,
                self._tokenizer,
                [prompts[index] for index in chosen],
                max_new_tokens=objective.max_new_tokens,
                micro_batch=self._micro_batch,
                check=self._look_for_a_stop,
            )
            parts = judge.parts(rollout.answers)
            scores_B = torch.tensor([sum(found) for found in zip(*parts.values(), strict=True)])
            update = self._improve(rollout, scores_B.to(rollout.old_BA), control.coefficient)
            loss = update.policy_loss + objective.value_coefficient * update.value_loss
            tokens += int(rollout.attention_BT.sum())
            elapsed, kl = max(self._clock() - started, 1e-9), float(rollout.kl_B.mean())
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
            watch.screen.progress(
                f"step {step}/{self._steps}  reward {metrics['reward']:.3f}  KL {kl:.2f} nats an answer  "
                f"loss {loss:.3f}  {metrics['tokens_per_s']:,.0f} tokens/s",
                keep=step % max(1, self._steps // 20) == 0 or step in {1, self._steps},
            )
            self._scheduler.step()
            first = loss if learned.step == 0 else learned.first_loss
            learned = Learned(step, control.after(kl).coefficient, waiting, first, loss)
            if self._keeper.is_due or self._stopped or step == self._steps:
                self._keeper.keep(learned)
            if self._stopped:
                raise self._stopped.kept(step)
        seconds = max(self._clock() - started, 1e-9)
        return FitResult(
            learned.step,
            learned.first_loss,
            learned.last_loss,
            seconds,
            tokens / seconds,
            micro_batch=self._micro_batch,
            peak_memory_bytes=peak_memory_bytes(),
            weights_step=learned.step,
            mfu=None,  # sampling, scoring and learning take turns: no one share of the peak says anything
        )

    def _look_for_a_stop(self) -> None:
        """A stop waits for the step's end, where the state is one that can be gone on from, if it is kept at all."""
        try:
            self._watch.check()
        except Stopped as reason:
            if not self._keeper.keeps:
                raise
            self._stopped = reason

    def _next(self, prompts: Sequence[LabelledPrompt], waiting: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
        """(places of the next batch, those that wait): every prompt once in a new order, then again; none is short."""
        order, size = list(waiting), self._recipe.run.batch_size
        while len(order) < size:
            order += torch.randperm(len(prompts), generator=self._random).tolist()
        return order[:size], tuple(order[size:])

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
            self._look_for_a_stop()
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
