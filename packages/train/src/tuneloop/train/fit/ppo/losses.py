"""What a step descends, and how strongly the policy is held to its reference. Pure; shapes as in the package."""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

_GAIN, _LARGEST_ERROR = 0.1, 0.2  # Ziegler et al.'s controller


def policy_loss(
    new_BA: torch.Tensor,
    old_BA: torch.Tensor,
    advantages_BA: torch.Tensor,
    mask_BA: torch.Tensor,
    *,
    clip: float,
    tokens: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate, summed over these answers and divided by `tokens`; and how many tokens were clipped.

    Args:
        new_BA: log-probabilities under the policy that learns.
        old_BA: those under the policy that sampled.
        advantages_BA: what each token did better than expected.
        mask_BA: the tokens of the answers.
        clip: the ratio new / old counts between 1 − clip and 1 + clip only.
        tokens: of the whole update, of which these answers may be a part.
    """
    ratio_BA = torch.exp(new_BA - old_BA)
    free_BA = -advantages_BA * ratio_BA
    held_BA = -advantages_BA * ratio_BA.clamp(1.0 - clip, 1.0 + clip)
    loss = (torch.maximum(free_BA, held_BA) * mask_BA).sum() / tokens
    return loss, ((held_BA > free_BA) * mask_BA).sum()


def value_loss(
    values_BA: torch.Tensor,
    old_BA: torch.Tensor,
    returns_BA: torch.Tensor,
    mask_BA: torch.Tensor,
    *,
    clip: float,
    tokens: float,
) -> torch.Tensor:
    """Half the squared error, the greater of that of the value and that of the value held within `clip` of the old."""
    held_BA = old_BA + (values_BA - old_BA).clamp(-clip, clip)
    errors_BA = torch.maximum((values_BA - returns_BA) ** 2, (held_BA - returns_BA) ** 2)
    return 0.5 * (errors_BA * mask_BA).sum() / tokens


@dataclass(frozen=True)
class KlControl:
    """What a nat of KL costs, and the KL an answer that it is steered to; without a target it stays as it is."""

    coefficient: float
    target: float | None

    def after(self, kl: float) -> KlControl:
        """The control for the next batch, when answers of this one were `kl` nats from the reference in the mean."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1.0, -_LARGEST_ERROR), _LARGEST_ERROR)
        return replace(self, coefficient=self.coefficient * (1.0 + _GAIN * error))
