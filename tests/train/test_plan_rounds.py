"""What objectives do beside one pass over each row: time and memory of reference, reward model and written answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tuneloop.train.plan import compare
from tuneloop.train.plan.memory import Load
from tuneloop.train.plan.plan import Machine, Plan, make_plan
from tuneloop.train.plan.prices import load_prices
from tuneloop.train.plan.rounds import beside_seconds
from tuneloop.train.plan.rows import RowFacts, assumed
from tuneloop.train.plan.timing import Speed, flops_forward, flops_of_pass
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import DpoObjective, GrpoObjective, PpoObjective, SftObjective
from tuneloop.train.recipe.tuning import LoraTuning

SHAPE = compare.guide_shape("7B")
SPEED = Speed(flops=1e14, bandwidth=1e12, efficiency=0.5, slowest=0.25, quickest=1.0, launches=False)


def planned(objective: dict[str, Any]) -> Plan:
    name, device = load_prices().device("A100-80G")
    recipe = Recipe.model_validate(
        {
            "base": {"model": "x"},
            "data": {"train": "train.jsonl"},
            "objective": objective,
            "run": {"steps": 10, "batch_size": 16, "micro_batch": 4, "dtype": "bfloat16"},
            "evaluate": {"sets": {"test": "test.jsonl"}},
            "publish": {"model": "m"},
        }
    )
    return make_plan(recipe, SHAPE, assumed(1000, 512, "assumed"), Machine(name, "cuda", device))


def beside(objective: Any, load: Load, speed: Speed = SPEED) -> Any:
    return beside_seconds(objective, SHAPE, LoraTuning(), load, speed, passes=2, length=100)


def test_a_reference_is_a_third_of_what_adapters_learn_from() -> None:
    """By hand: of 2 operations a weight and token forward and 4 in all for a frozen layer, the reference adds 2."""
    load = Load(rows=4, length=100, dtype="bfloat16", forward_copies=2)
    tokens, inner = 4 * 100 * 2, SHAPE.linear_parameters + SHAPE.head_parameters
    attention = SHAPE.layers * 2 * SHAPE.query * 100
    assert flops_forward(SHAPE, load, length=100) == tokens * (2 * inner + attention)
    seconds = beside(DpoObjective(kind="dpo"), load)
    assert seconds.estimate == pytest.approx(2 * tokens * (2 * inner + attention) / (1e14 * 0.5))
    assert (seconds.low, seconds.high) == pytest.approx((seconds.estimate / 2, seconds.estimate * 2))
    learned = flops_of_pass(SHAPE, LoraTuning(), load, length=100, scored_share=1.0)
    assert 1.4 < 1 + flops_forward(SHAPE, load, length=100) / learned < 1.55
    assert beside(SftObjective(), load).high == 0


def test_a_token_is_written_at_the_price_of_reading_the_weights() -> None:
    """By hand: 7B in bfloat16 at 1 TB/s, 13.5 ms a token and a little more for keys and values."""
    load = Load(rows=1, length=100, dtype="bfloat16")
    silent = GrpoObjective(kind="grpo", rewards=("short",), kl_coefficient=0.0, max_new_tokens=64)
    seconds = beside(silent, load)
    token = 2 * SHAPE.parameters / 1e12
    assert seconds.estimate == pytest.approx(2 * 0.7 * 64 * token, rel=0.03)
    assert seconds.high == pytest.approx(2 * 64 * 2 * token, rel=0.03)
    held = beside(silent.model_copy(update={"kl_coefficient": 0.1}), load)
    read = 2 * flops_forward(SHAPE, load, length=100) / (1e14 * 0.5)
    assert held.estimate - seconds.estimate == pytest.approx(read)
    judged = beside(silent.model_copy(update={"reward_model": "judge@1"}), load)
    assert judged.estimate == pytest.approx(held.estimate)
    assert beside(silent, load, replace(SPEED, launches=True)).estimate > 1.5 * seconds.estimate


def test_ppo_takes_as_long_as_it_goes_over_its_answers() -> None:
    once, often = (planned({"kind": "ppo", "rewards": ["short"], "passes": n}) for n in (1, 16))
    learned = (often.step.estimate - once.step.estimate) / 15
    assert learned > 0
    assert once.step.estimate > 1.5 * learned, "answers are written, and read twice"
    assert beside(PpoObjective(kind="ppo", rewards=("short",)), Load(1, 100, "bfloat16")).estimate > 0


def test_a_reward_model_is_another_base_in_memory() -> None:
    alone = planned({"kind": "ppo", "rewards": ["short"]})
    judged = planned({"kind": "ppo", "reward_model": "judge@1"})
    assert judged.memory.total - alone.memory.total == 2 * SHAPE.parameters
    assert judged.memory.high - alone.memory.high == 2 * SHAPE.parameters


@pytest.mark.parametrize(("lengths", "masked"), [((64,), True), ((64, 64), False), ((64, 32), True)])
def test_attention_is_masked_where_rows_of_a_batch_differ(lengths: tuple[int, ...], masked: bool) -> None:
    name, device = load_prices().device("A100-80G")
    rows = RowFacts(1000, 64, 64.0, lengths, 1.0, "made up")
    values = {"base": {"model": "x"}, "data": {"train": "t.jsonl"}, "evaluate": {"sets": {"test": "test.jsonl"}}}
    run = {"steps": 10, "batch_size": 16, "micro_batch": 4, "dtype": "bfloat16"}
    recipe = Recipe.model_validate(values | {"run": run, "publish": {"model": "m"}})
    assert make_plan(recipe, SHAPE, rows, Machine(name, "cuda", device)).load.padded == masked
