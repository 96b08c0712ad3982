"""PPO where memory runs out: while it samples, scores, learns, or changes weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from train.ppo_bench import Bench, each_step_is_due, load_scorer, make_bench, same, spoil, steps_of
from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.reward import RewardModel
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("ppo"))
    return made.with_run({"passes": 2, "max_new_tokens": 4}, batch_size=16, micro_batch=16)


def test_out_of_memory_while_answers_are_sampled_is_the_run_that_began_smaller(bench: Bench, tmp_path: Path) -> None:
    small, expected = bench.run(2, micro_batch=8)  # as a process is told that was started anew with less

    def run_out(_model: Any, rows: int) -> None:
        if rows > 8:
            raise torch.OutOfMemoryError(OUT)

    run = bench.with_run()
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    seen, weights = run.run(2, before=run_out, store=store)
    assert steps_of(seen) == steps_of(small)
    assert same(weights, expected)
    assert any(
        "out of memory in step 1" in line and "micro-batch 8, batch size 16 as before" in line for line in run.said
    )
    found = store.newest_valid()
    assert found is not None
    assert found.state.micro_batch == 8, "a later resume begins with what fits"


class Asked:
    """A reward model; `before` hears how many answers a pass it is asked for."""

    def __init__(self, model: RewardModel, before: Callable[[int], None]) -> None:
        self._model, self._before = model, before

    def scores(self, ids: Sequence[Sequence[int]], *, batch: int, check: Callable[[], None]) -> list[float]:
        self._before(batch)
        return self._model.scores(ids, batch=batch, check=check)


@pytest.fixture(scope="module")
def scorer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return load_scorer(bench, tmp_path_factory.mktemp("judge"))


def test_out_of_memory_while_answers_are_scored_scores_fewer_at_a_time(bench: Bench, scorer: RewardModel) -> None:
    """The same answers: they are not drawn again."""
    whole, _ = bench.run(1, judge=Judge({}, scorer))
    asked: list[int] = []

    def run_out(batch: int) -> None:
        asked.append(batch)
        if batch > 4:
            raise torch.OutOfMemoryError(OUT)

    run = bench.with_run()
    seen, _ = run.run(1, judge=Judge({}, Asked(scorer, run_out)))
    assert asked == [16, 8, 4]
    assert steps_of(seen) == [pytest.approx(one, abs=1e-4) for one in steps_of(whole)]
    assert any("out of memory in step 1" in line and "micro-batch 4, batch size 16" in line for line in run.said)


def test_out_of_memory_in_an_update_begins_that_update_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned before it in the same step stays learned, once; the gradients of its first half do not count,
    nor those that were half clipped."""
    run, passes = bench.with_run(micro_batch=4), list[int]()  # four passes an update
    whole, expected = run.run(1)
    clip, clipped = torch.nn.utils.clip_grad_norm_, list[int]()

    def clip_half(weights: Sequence[torch.nn.Parameter], most: float) -> torch.Tensor:
        clipped.append(1)
        if len(clipped) == 2:
            assert weights[0].grad is not None
            weights[0].grad.mul_(0.0)
            raise torch.OutOfMemoryError(OUT)
        return clip(weights, most)

    def run_out(_model: Any, rows: int) -> None:
        if torch.is_grad_enabled():
            passes.append(rows)
            if len(passes) == 6:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_half)
    seen, weights = run.run(1, before=run_out)
    assert passes == [4] * 6 + [2] * 8 + [1] * 16, "the first update once, the second anew and anew"
    assert seen[0]["loss"] == pytest.approx(whole[0]["loss"], abs=1e-5)
    assert all(torch.allclose(weights[name], value, atol=1e-4) for name, value in expected.items())


def objective_of(bench: Bench) -> PpoObjective:
    assert isinstance(bench.recipe.objective, PpoObjective)
    return bench.recipe.objective


@pytest.mark.parametrize("kept", [True, False])
def test_out_of_memory_in_the_optimiser_goes_back_to_what_is_whole(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    steps, step = list[int](), torch.optim.AdamW.step
    run = bench.with_run()
    updates = objective_of(run).passes * objective_of(run).minibatches

    def run_out(self: torch.optim.AdamW, *arguments: Any, **values: Any) -> Any:
        steps.append(1)
        if len(steps) == updates + 1:
            self.param_groups[0]["params"][0].data.add_(1.0)
            raise torch.OutOfMemoryError(OUT)
        return step(self, *arguments, **values)

    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    if not kept:
        with pytest.raises(TuneloopError, match=r"in step 2, and there is no checkpoint .* set run\.micro_batch to 8"):
            run.run(2, store=store)
        return
    seen, weights = run.run(2, store=store, clock=each_step_is_due(bench))
    monkeypatch.undo()
    other = CheckpointStore(tmp_path / "other", 2, pytest.fail)
    first, _ = bench.run(1, store=other)
    second, expected = bench.run(2, store=other, resume=True, micro_batch=8)
    assert steps_of(seen) == steps_of([*first, *second])
    assert same(weights, expected), "nothing of the half update is left"


def test_out_of_memory_in_the_optimiser_takes_no_rollback_back(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state it goes back to was written before the rate was lowered."""
    run = bench.with_run(divergence={"action": "rollback", "max_rollbacks": 2})
    spoilt, starved, step = list[int](), list[int](), torch.optim.AdamW.step

    def spoil_once(model: Any, _rows: int) -> None:
        if torch.is_grad_enabled() and not spoilt:
            spoilt.append(1)
            spoil(model)

    def run_out_once(self: torch.optim.AdamW, *arguments: Any, **values: Any) -> Any:
        if not starved:
            starved.append(1)
            raise torch.OutOfMemoryError(OUT)
        return step(self, *arguments, **values)

    monkeypatch.setattr(torch.optim.AdamW, "step", run_out_once)
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    run.run(1, before=spoil_once, store=store)
    assert (spoilt, starved) == ([1], [1])
    found = store.newest_valid()
    assert found is not None
    assert (found.state.rollbacks, found.state.learning_rate, found.state.micro_batch) == (1, 0.005, 8)


@pytest.mark.parametrize("doing", ["sampling", "learning", "changing weights"])
def test_a_kill_right_after_memory_was_full_goes_on_with_what_fits(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    """No checkpoint is due between the two, and the one of before was written with what did not fit."""
    store = CheckpointStore(tmp_path / "killed", 2, pytest.fail)
    bench.run(1, store=store)
    step, full = torch.optim.AdamW.step, list[int]()

    def run_out() -> None:
        full.append(1)
        raise torch.OutOfMemoryError(OUT)

    def be_killed(_model: Any, rows: int) -> None:
        if full:
            raise KeyboardInterrupt  # as good as a kill: nothing is written any more
        if rows == 16 and doing == ("learning" if torch.is_grad_enabled() else "sampling"):
            run_out()

    def move(self: torch.optim.AdamW, *arguments: Any, **values: Any) -> Any:
        if doing == "changing weights":
            run_out()
        return step(self, *arguments, **values)

    monkeypatch.setattr(torch.optim.AdamW, "step", move)
    with pytest.raises(KeyboardInterrupt):
        bench.run(2, before=be_killed, store=store, resume=True, clock=lambda: 0.0)
    monkeypatch.undo()
    assert full == [1]
    passes = list[int]()
    seen, weights = bench.run(2, before=lambda _model, rows: passes.append(rows), store=store, resume=True)
    assert set(passes) == {8}
    other = CheckpointStore(tmp_path / "smaller", 2, pytest.fail)
    bench.run(1, store=other)
    smaller, expected = bench.run(2, store=other, resume=True, micro_batch=8)
    assert steps_of(seen) == steps_of(smaller)
    assert same(weights, expected)


def test_one_answer_that_does_not_fit_is_said_with_what_helps(bench: Bench) -> None:
    def run_out(_model: Any, _rows: int) -> None:
        raise MemoryError

    with pytest.raises(TuneloopError, match=r"one row at a time.*max_prompt_length and max_new_tokens.*qlora"):
        bench.with_run(micro_batch=2).run(1, before=run_out)
