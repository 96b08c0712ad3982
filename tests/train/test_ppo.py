"""The core of PPO against values worked out by hand, and against a reward that anyone can verify."""

from __future__ import annotations

import io
import itertools
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from small_base import WORDS, make_small_base
from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.labels import LabelledPrompt, Labeller, label_prompts
from tuneloop.train.data.preference import PromptRow
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.ppo.advantages import generalised_advantages, token_rewards, whitened
from tuneloop.train.fit.ppo.losses import KlControl, policy_loss, value_loss
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe, load_recipe
from tuneloop.train.rewards import Answer, Judge
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning import models


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


def even_share(answers: Sequence[Answer]) -> list[float]:
    """The share of an answer's tokens with an even id."""
    return [sum(token % 2 == 0 for token in answer.ids) / len(answer.ids) for answer in answers]


RECIPE = """\
base: {{model: {base}}}
data: {{train: questions.jsonl}}
tuning: {{rank: 8}}
objective: {{kind: ppo, rewards: even, max_prompt_length: 64, max_new_tokens: 8, kl_coefficient: 0.02, target_kl: null}}
optim: {{learning_rate: 1e-2, schedule: constant}}
run: {{steps: 40, batch_size: 32, micro_batch: 32, dtype: float32}}
evaluate: {{sets: {{held: questions.jsonl}}}}
publish: {{model: bot}}
"""


@dataclass
class Bench:
    """A small model, and questions to it; each run begins with the same adapter."""

    recipe: Recipe
    base: Base
    tokenizer: Any
    prompts: list[LabelledPrompt]

    def run(
        self,
        steps: int,
        *,
        check: Callable[[], None] = lambda: None,
        told: Callable[[int], None] = lambda _: None,
        **changes: Any,
    ) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        """(metrics of each step this run took, the adapter's weights)."""
        bare = models.load_base(self.base, dtype="float32", device="cpu", attention="sdpa")
        model = models.new_adapter(bare, self.recipe.tuning, seed=0)
        seen: list[dict[str, float]] = []

        def log(metrics: Mapping[str, float], step: int) -> None:
            seen.append(dict(metrics) | {"step": step})
            told(step)

        fit(
            model,
            self.tokenizer,
            self.prompts,
            self.recipe,
            device="cpu",
            steps=steps,
            validation=[],
            watch=Watch(Screen(io.StringIO()), log, check),
            judge=Judge({"even": even_share}),
            **changes,
        )
        return seen, {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("ppo")
    base = make_small_base(folder / "base")
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base.folder))
    recipe = load_recipe(folder / "recipe.yaml", check_paths=False).recipe
    tokenizer = models.load_tokenizer(base)
    asked = [PromptRow((Message(role="user", content=" ".join(WORDS[n : n + 1 + n % 3])),)) for n in range(16)]
    prompts, _ = label_prompts(Labeller(tokenizer, 96), asked, 64, base.template_digest)
    return Bench(recipe, base, tokenizer, list(prompts))


@pytest.fixture(scope="module")
def learned(bench: Bench) -> list[dict[str, float]]:
    """What a run on a verifiable reward told, step by step."""
    return bench.run(80)[0]  # after 40 some processors' rounding has learned enough, some not yet


STEPS = 5


def steps_of(seen: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Without what depends on the clock."""
    return [{name: value for name, value in one.items() if name != "tokens_per_s"} for one in seen]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_run_cut_at_any_step_and_resumed_is_the_run_that_was_not(bench: Bench, tmp_path: Path, how: str) -> None:
    at = random.randrange(1, STEPS)  # any will do, so another one each time
    print(f"{how} at step {at}")
    whole, expected = bench.run(STEPS)
    flag, clock = StopFlag(), itertools.count(step=bench.recipe.run.checkpoint.every_s + 1)  # each step is due
    said: list[str] = []
    store = CheckpointStore(tmp_path, 2, said.append)

    def cut(step: int) -> None:
        if step == at and how == "stopped":
            flag.stop(Stopped("asked to end"))
        elif step == at + 1 and how == "killed":
            raise KeyboardInterrupt  # as good as a kill: nothing is written any more

    with pytest.raises(Stopped if how == "stopped" else KeyboardInterrupt) as raised:
        bench.run(STEPS, check=flag.check, told=cut, store=store, clock=lambda: float(next(clock)))
    done = at + 1 if how == "stopped" else at  # the step in which it is asked to end is still done
    if how == "stopped":
        assert f"the state after step {done} is kept" in str(raised.value)
    rest, weights = bench.run(STEPS, store=store, resume=True)
    assert [one["step"] for one in rest] == list(range(done + 1, STEPS + 1))
    assert steps_of(rest) == steps_of(whole[done:])
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    again, _ = bench.run(STEPS, store=store, resume=True)
    assert again == [], "a whole run is not run again"
    assert said == []


def test_a_run_that_begins_anew_takes_nothing_from_the_one_before(bench: Bench, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    bench.run(2, store=store)
    seen, _ = bench.run(1, store=store)
    assert [one["step"] for one in seen] == [1]


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error(bench: Bench, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    bench.run(1, store=store)
    shutil.rmtree(store.staging)
    store.staging.write_text("in the way")
    with pytest.raises(TuneloopError, match=r"the checkpoint of step 2 could not be written .* then resume"):
        bench.run(2, store=store, resume=True)
    store.staging.unlink()
    assert store.newest_valid() is not None


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
