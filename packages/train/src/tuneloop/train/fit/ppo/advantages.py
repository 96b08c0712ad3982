"""From a batch's scores to what each token did better than expected. Pure; shapes as in the package's docstring."""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

import torch


def masked_mean(values_BA: torch.Tensor, mask_BA: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that count, all answers together; a scalar."""
    return (values_BA * mask_BA).sum() / mask_BA.sum()


def token_rewards(
    scores_B: torch.Tensor, kl_BA: torch.Tensor, mask_BA: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """What each token earns, (B, A): minus its share of the KL penalty, and on the last token the answer's score.

    Args:
        scores_B: one score an answer.
        kl_BA: log-probability under the policy that sampled, minus that under the reference, token by token.
        mask_BA: the tokens of the answers; each row begins with ones and has at least one.
        coefficient: what a nat of KL costs.
    """
    rewards_BA = -coefficient * kl_BA * mask_BA
    last_B = mask_BA.sum(dim=1).long() - 1
    rewards_BA[torch.arange(len(scores_B), device=last_B.device), last_B] += scores_B
    return rewards_BA


def generalised_advantages(
    rewards_BA: torch.Tensor, values_BA: torch.Tensor, mask_BA: torch.Tensor, *, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, (B, A) each: A_t = Σ (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t; R_t = A_t + V_t.

    An answer ends with its last token: nothing is expected after it, whether it ended by itself or was cut.
    """
    advantages_BA = torch.zeros_like(rewards_BA)
    running_B = torch.zeros_like(rewards_BA[:, 0])
    following_B = torch.zeros_like(running_B)
    for t in reversed(range(rewards_BA.shape[1])):
        delta_B = rewards_BA[:, t] + gamma * following_B - values_BA[:, t]
        running_B = (delta_B + gamma * gae_lambda * running_B) * mask_BA[:, t]
        following_B = values_BA[:, t] * mask_BA[:, t]
        advantages_BA[:, t] = running_B
    return advantages_BA, (advantages_BA + values_BA) * mask_BA


def whitened(values_BA: torch.Tensor, mask_BA: torch.Tensor) -> torch.Tensor:
    """Shifted and scaled to mean 0 and variance 1 over the tokens that count; zero elsewhere."""
    centred_BA = values_BA - masked_mean(values_BA, mask_BA)
    variance = masked_mean(centred_BA**2, mask_BA)
    return centred_BA * torch.rsqrt(variance + 1e-8) * mask_BA
