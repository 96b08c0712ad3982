"""The core of PPO against values worked out by hand, and against a reward that anyone can verify."""

from __future__ import annotations

import math

import pytest
import torch

from train.ppo_bench import Bench, make_bench
from tuneloop.train.fit.ppo.advantages import generalised_advantages, token_rewards, whitened
from tuneloop.train.fit.ppo.losses import KlControl, policy_loss, value_loss


def test_the_score_falls_on_the_last_token_and_the_penalty_on_each() -> None:
    kl = torch.tensor([[0.5, -0.25, 9.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    found = token_rewards(torch.tensor([10.0, 20.0]), kl, mask, 0.2)
    torch.testing.assert_close(found, torch.tensor([[-0.1, 10.05, 0.0], [-0.2, -0.4, 19.4]]))


def test_advantages_equal_those_worked_out_by_hand() -> None:
    """γ 0.9, λ 0.5. First answer, three tokens: δ = (1 + 0.9·2 − 1, 0 + 0.9·3 − 2, 4 − 3) = (1.8, 0.7, 1), and
    A = (1.8 + 0.45·1.15, 0.7 + 0.45·1, 1). Second, two tokens and a padding that must not be seen."""
    rewards = torch.tensor([[1.0, 0.0, 4.0], [2.0, 1.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.0, 77.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.5)
    by_hand = torch.tensor([[2.3175, 1.15, 1.0], [2.4, 0.0, 0.0]])
    torch.testing.assert_close(advantages, by_hand)
    torch.testing.assert_close(returns, (by_hand + values) * mask)


def test_whitening_looks_at_answer_tokens_only() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = whitened(torch.tensor([[1.0, 2.0, 1000.0], [3.0, -1000.0, 5.0]]), mask)
    step = math.sqrt(1.5)
    torch.testing.assert_close(found, torch.tensor([[-step, 0.0, 0.0], [step, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.5, 1.0, -1.2, False),  # already likelier than clip allows: no further
        (1.5, -1.0, 1.5, True),  # likelier though worse: pushed back in full
        (0.5, 1.0, -0.5, True),
        (0.5, -1.0, 0.8, False),
        (1.1, 1.0, -1.1, True),
    ],
)
def test_the_ratio_is_clipped_only_where_it_would_run_away(
    ratio: float, advantage: float, loss: float, *, moves: bool
) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1)
    found, clipped = policy_loss(new, torch.zeros(1, 1), one * advantage, one, clip=0.2, tokens=1)
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert new.grad is not None
    assert bool(new.grad.abs().sum() > 0) is moves
    assert float(clipped) == float(not moves)


def test_a_value_far_from_its_old_one_is_judged_where_it_was_held() -> None:
    """Old 0, return 1, clip 0.2: at 0.9 the held value 0.2 is the worse one (0.64 against 0.01)."""
    one = torch.ones(1, 1)
    assert float(value_loss(one * 0.9, one * 0, one, one, clip=0.2, tokens=1)) == pytest.approx(0.32)
    assert float(value_loss(one * 0.1, one * 0, one, one, clip=0.2, tokens=1)) == pytest.approx(0.405)


def test_the_kl_coefficient_is_steered_to_its_target_in_bounded_steps() -> None:
    control = KlControl(0.1, target=6.0)
    assert control.after(6.0).coefficient == pytest.approx(0.1)
    assert control.after(6.6).coefficient == pytest.approx(0.101)
    assert control.after(600.0).coefficient == pytest.approx(0.102)
    assert control.after(0.0).coefficient == pytest.approx(0.098)
    assert KlControl(0.1, target=None).after(600.0).coefficient == 0.1


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def learned(bench: Bench) -> list[dict[str, float]]:
    """What a run on a verifiable reward told, step by step."""
    return bench.run(80)[0]  # after 40 some processors' rounding has learned enough, some not yet


def test_ppo_raises_a_verifiable_reward(learned: list[dict[str, float]]) -> None:
    """Sampling at random gives about a half; what is asked for is well out of the reach of luck over 160 answers."""
    rewards = [metrics["reward"] for metrics in learned]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert 0.3 < first < 0.7
    assert last > first + 0.2
    assert last > 0.75


def test_the_first_answers_are_the_references_own(learned: list[dict[str, float]]) -> None:
    """Before the first update policy and reference are the same model: their KL is zero, token by token."""
    assert learned[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert learned[-1]["kl"] > 0.1
    assert {metrics["kl_coefficient"] for metrics in learned} == {0.02}
