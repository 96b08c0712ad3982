"""The test of canary readings: a changed model is seen, an unchanged one alarms at the stated level. What real engines
and weights do stands in `benchmarks/served_model_change.py`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_base import make_small_base
from tuneloop.monitor.canaries import (
    BASELINE_ROUNDS,
    FRESH_ROUNDS,
    SPLITS,
    Baseline,
    changed_test,
    looks_moved,
)

TOKENS, NOISE = 12, 0.01
MEAN = np.random.default_rng(3).uniform(-6, 0, TOKENS)


def rounds(n: int, rng: np.random.Generator, shift: float = 0.0) -> list[np.ndarray]:
    """Readings with noise of their own; `shift` moves every second token up and every other down."""
    signs = np.resize([1.0, -1.0], TOKENS)
    return [MEAN + shift * signs + rng.normal(0, NOISE, TOKENS) for _ in range(n)]


def baseline(rng: np.random.Generator) -> Baseline:
    return Baseline(np.stack(rounds(BASELINE_ROUNDS, rng)))


def test_an_unchanged_model_alarms_at_most_as_often_as_the_level_says() -> None:
    """The permutation test alone, without the floor that lowers it: 120 draws at 5 %."""
    rng, alarms = np.random.default_rng(11), 0
    for _ in range(120):
        rows = np.stack(rounds(BASELINE_ROUNDS, rng))
        found = changed_test(_without_floor(rows), rounds(FRESH_ROUNDS, rng), 0.05)
        alarms += found.alarm
    assert 1 <= alarms <= 14, "what 120 trials at 5 % give in 998 of 1,000 cases"


def test_the_floor_leaves_an_unchanged_model_in_peace() -> None:
    rng = np.random.default_rng(12)
    assert not any(changed_test(baseline(rng), rounds(FRESH_ROUNDS, rng), 0.05).alarm for _ in range(30))


def test_a_change_of_three_times_the_noise_is_seen_at_the_smallest_level_there_is() -> None:
    rng = np.random.default_rng(13)
    frozen = baseline(rng)
    fresh = rounds(FRESH_ROUNDS, rng, shift=3 * NOISE)
    assert looks_moved(frozen, fresh[0])
    found = changed_test(frozen, fresh, 1 / SPLITS)
    assert found.alarm
    assert found.p_value == pytest.approx(1 / SPLITS)
    assert found.statistic > found.threshold


def test_an_engine_without_noise_never_alarms_unchanged_and_sees_the_smallest_change() -> None:
    frozen = Baseline(np.tile(MEAN, (BASELINE_ROUNDS, 1)))
    assert not looks_moved(frozen, MEAN)
    assert not changed_test(frozen, [MEAN] * FRESH_ROUNDS, 0.05).alarm
    assert changed_test(frozen, [MEAN + 0.001] * FRESH_ROUNDS, 1 / SPLITS).alarm


def test_an_engine_frozen_in_a_quiet_hour_and_read_in_a_busy_one_is_not_called_another_model() -> None:
    """What a busy engine reads falls on one of two sides, by who shares its batches; the baseline saw one of them."""
    frozen = Baseline(np.tile(MEAN, (BASELINE_ROUNDS, 1)))
    other = MEAN + np.resize([0.05, -0.05], TOKENS)
    busy = [MEAN, other, other, MEAN, other, other]
    assert looks_moved(frozen, other)
    assert not changed_test(frozen, busy, 0.05).alarm
    assert changed_test(frozen, [other] * FRESH_ROUNDS, 1 / SPLITS).alarm


def test_other_tokens_are_a_change_and_a_level_nothing_can_reach_is_refused() -> None:
    frozen = baseline(np.random.default_rng(14))
    assert looks_moved(frozen, MEAN[:-1])
    assert changed_test(frozen, [MEAN[:-1]] * FRESH_ROUNDS, 0.001).alarm
    nothing = np.full(TOKENS, np.nan)
    assert looks_moved(frozen, nothing)
    assert changed_test(frozen, [nothing] * FRESH_ROUNDS, 0.001).alarm
    with pytest.raises(ValueError, match="cannot be reached"):
        changed_test(frozen, [MEAN] * FRESH_ROUNDS, 0.9 / SPLITS)


def _without_floor(rows: np.ndarray) -> Baseline:
    class Bare(Baseline):
        def floor(self, _fresh: Sequence[np.ndarray] = ()) -> float:
            return 0.0

    return Bare(rows)


TEXTS = [" ".join(f"w{(start * step) % 56}" for step in range(1, 13)) for start in range(1, 9)]


def read_by(model: Any, tokenizer: Any) -> np.ndarray:
    """What a real model reads: the log-probability of every token of the texts but their first."""
    ids = tokenizer(TEXTS, return_tensors="pt").input_ids
    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    found: np.ndarray = logprobs.double().numpy().ravel()
    return found


def step(model: Any, tokenizer: Any, texts: list[str], steps: int) -> Any:
    """So many steps of fine-tuning at an ordinary rate."""
    ids = tokenizer(texts, return_tensors="pt").input_ids
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


def test_one_training_step_other_weights_and_an_int8_copy_of_a_real_model_are_seen_and_nothing_else(
    tmp_path: Path,
) -> None:
    make_small_base(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    frozen = Baseline(np.stack([read_by(model, tokenizer) for _ in range(BASELINE_ROUNDS)]))
    int8 = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (module for module in int8.modules() if isinstance(module, torch.nn.Linear)):
            scale = (
                layer.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-9) / 127
            )  # what eight bits a weight can hold
            layer.weight.copy_((layer.weight / scale).round() * scale)
    changed = {
        "one step": step(copy.deepcopy(model), tokenizer, ["w1 w2 good", "w3 w4 bad"], 1),
        "swapped": step(copy.deepcopy(model), tokenizer, ["w9 w8 please", "w7 w6 good"], 10),
        "int8": int8,
    }
    assert not looks_moved(frozen, read_by(model, tokenizer))
    for name, other in changed.items():
        fresh = [read_by(other, tokenizer) for _ in range(FRESH_ROUNDS)]
        assert looks_moved(frozen, fresh[0]), name
        assert changed_test(frozen, fresh, 1 / SPLITS).alarm, name
