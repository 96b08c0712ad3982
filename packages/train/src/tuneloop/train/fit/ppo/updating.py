"""What one batch of answers teaches: several passes of clipped updates, each whole or not at all.

An update that does not fit into memory is begun again with half the answers a forward pass: until the optimiser moves,
nothing has changed, and nothing in it is drawn by chance. What is no number, or wild, never reaches the weights.
"""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.divergence import judge_step
from tuneloop.train.fit.memory import is_out_of_memory
from tuneloop.train.fit.ppo.advantages import generalised_advantages, token_rewards, whitened
from tuneloop.train.fit.ppo.losses import policy_loss, value_loss
from tuneloop.train.fit.ppo.rollout import Actor, Rollout
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import PpoObjective


class Wild(TuneloopError):
    """An update would have spoilt the weights; they are as they were before it."""


class HalfUpdated(TuneloopError):
    """Memory was full while the optimiser changed weights: some may have moved, others not."""


@dataclass(frozen=True)
class Update:
    """What one update does, or a batch's in the mean."""

    policy_loss: float
    value_loss: float
    clipped_share: float
    grad_norm: float


class Updater:
    """Learns from answers.

    Args:
        actor: policy and critic.
        optimizer: of all that is trained.
        trained: that.
        recipe: the run.
        random: the generator that shuffles answers.
        check: called before each forward pass; raises to stop.
    """

    def __init__(
        self,
        actor: Actor,
        optimizer: torch.optim.Optimizer,
        trained: Sequence[torch.nn.Parameter],
        recipe: Recipe,
        random: torch.Generator,
        check: Callable[[], None],
    ) -> None:
        assert isinstance(recipe.objective, PpoObjective)
        self._actor, self._optimizer, self._trained = actor, optimizer, list(trained)
        self._recipe, self._objective = recipe, recipe.objective
        self._random, self._check = random, check

    def improve(
        self,
        rollout: Rollout,
        scores_B: torch.Tensor,
        kl_coefficient: float,
        fitting: Callable[[Callable[[int], Any]], Any],
    ) -> Update:
        """All passes over a batch.

        Args:
            rollout: the answers.
            scores_B: what each is worth.
            kl_coefficient: what a nat of KL costs.
            fitting: does a piece of work that is given how many answers a forward pass takes; again with fewer where
                memory is full.

        Raises:
            Wild: a loss or a gradient is no number, or above the recipe's limit.
            HalfUpdated: memory was full in the optimiser.
        """
        objective, size = self._objective, self._recipe.run.batch_size
        rewards_BA = token_rewards(scores_B, rollout.old_BA - rollout.reference_BA, rollout.mask_BA, kl_coefficient)
        advantages_BA, returns_BA = generalised_advantages(
            rewards_BA, rollout.values_BA, rollout.mask_BA, gamma=objective.gamma, gae_lambda=objective.gae_lambda
        )
        advantages_BA = whitened(advantages_BA, rollout.mask_BA)
        updates = []
        for _ in range(objective.passes):
            order_B = torch.randperm(size, generator=self._random)
            for chosen in order_B.split(size // objective.minibatches):

                def compute(micro_batch: int, chosen: torch.Tensor = chosen) -> Update:
                    return self._gradients(rollout, advantages_BA, returns_BA, chosen, micro_batch)

                updates.append(update := fitting(compute))
                self._apply(update)
        means = torch.tensor([astuple(update) for update in updates], dtype=torch.float64).mean(dim=0).tolist()
        return Update(*means)

    def _gradients(
        self,
        rollout: Rollout,
        advantages_BA: torch.Tensor,
        returns_BA: torch.Tensor,
        chosen: torch.Tensor,
        micro_batch: int,
    ) -> Update:
        """What some answers teach; their gradients, clipped, are left in the weights."""
        objective = self._objective
        tokens = float(rollout.mask_BA[chosen].sum())
        sums = (0.0, 0.0, 0.0)
        self._optimizer.zero_grad(set_to_none=True)
        for part in chosen.split(micro_batch):
            self._check()
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
            sums = (sums[0] + found[0], sums[1] + found[1], sums[2] + found[2])
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.optim.max_grad_norm)
        return Update(*sums, float(norm))

    def _apply(self, update: Update) -> None:
        """Let the optimiser move by what `_gradients` left."""
        loss = update.policy_loss + self._objective.value_coefficient * update.value_loss
        if (reason := judge_step(loss, update.grad_norm, (), self._recipe.run.divergence)) is not None:
            self._optimizer.zero_grad(set_to_none=True)
            raise Wild(reason)
        try:
            self._optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise HalfUpdated(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
