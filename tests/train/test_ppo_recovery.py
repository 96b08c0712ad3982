"""PPO on its way: cut at any step, out of memory, gone wild."""

from __future__ import annotations

import itertools
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from train.ppo_bench import Bench, make_bench, steps_of
from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.ppo import keeping
from tuneloop.train.fit.reward import RewardModel, load_reward_model
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning import models

STEPS = 3
OUT = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("ppo"))
    return made.with_run({"passes": 2, "max_new_tokens": 4}, batch_size=16, micro_batch=16)


def each_step_is_due(bench: Bench) -> Callable[[], float]:
    seconds = itertools.count(step=bench.recipe.run.checkpoint.every_s + 1)
    return lambda: float(next(seconds))


Whole = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def uncut(bench: Bench) -> Whole:
    return bench.run(STEPS)


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_run_cut_at_any_step_and_resumed_is_the_run_that_was_not(
    bench: Bench, uncut: Whole, tmp_path: Path, how: str, at: int
) -> None:
    whole, expected = uncut
    flag, clock = StopFlag(), each_step_is_due(bench)
    said: list[str] = []
    store = CheckpointStore(tmp_path, 2, said.append)

    def cut(step: int) -> None:
        if step == at and how == "stopped":
            flag.stop(Stopped("asked to end"))
        elif step == at + 1 and how == "killed":
            raise KeyboardInterrupt  # as good as a kill: nothing is written any more

    with pytest.raises(Stopped if how == "stopped" else KeyboardInterrupt) as raised:
        bench.run(STEPS, check=flag.check, told=cut, store=store, clock=clock)
    if how == "stopped":
        assert f"the state after step {at} is kept" in str(raised.value)
    rest, weights = bench.run(STEPS, store=store, resume=True)
    assert [one["step"] for one in rest] == list(range(at + 1, STEPS + 1))
    assert steps_of(rest) == steps_of(whole[at:])
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


def objective_of(bench: Bench) -> PpoObjective:
    assert isinstance(bench.recipe.objective, PpoObjective)
    return bench.recipe.objective


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


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


@pytest.fixture(scope="module")
def scorer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    folder = tmp_path_factory.mktemp("judge")
    bare = models.load_reward_base(bench.base, dtype="float32", device="cpu", attention="sdpa", seed=1)
    models.new_adapter(bare, bench.recipe.tuning, 0).save_pretrained(folder)
    return load_reward_model(folder, bench.base, bench.tokenizer, dtype="float32", device="cpu", attention="sdpa")


class Asked:
    """A reward model; `before` hears how many answers a pass it is asked for."""

    def __init__(self, model: RewardModel, before: Callable[[int], None]) -> None:
        self._model, self._before = model, before

    def scores(self, ids: Sequence[Sequence[int]], *, batch: int, check: Callable[[], None]) -> list[float]:
        self._before(batch)
        return self._model.scores(ids, batch=batch, check=check)


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


@pytest.fixture(scope="module")
def judged(bench: Bench, scorer: RewardModel) -> Whole:
    return bench.run(2, judge=Judge({}, scorer), micro_batch=8)


@pytest.mark.parametrize(("doing", "at"), [("sampling", 2), ("scoring", 1), ("learning", 3)])
def test_a_stop_in_the_midst_of_a_step_leaves_it_after_the_pass_it_is_in(
    bench: Bench, scorer: RewardModel, judged: Whole, tmp_path: Path, doing: str, at: int
) -> None:
    """A step is sampling, scoring and several updates, and so longer than the notice a machine gives. Eight answers a
    pass: two passes an update, so that the third is in the second, when weights have changed already."""
    whole, expected = judged
    flag, store, told, passes = StopFlag(), CheckpointStore(tmp_path, 2, pytest.fail), list[int](), list[str]()

    def hear(module: torch.nn.Module, _args: Any) -> None:
        name = type(module).__name__
        if not told or name.startswith("Peft") or not name.endswith(("ForCausalLM", "ForSequenceClassification")):
            return
        scores = name.endswith("ForSequenceClassification")
        passes.append("scoring" if scores else "learning" if torch.is_grad_enabled() else "sampling")
        if passes.count(doing) == at:
            flag.stop(Stopped("asked to end"))

    hearing = torch.nn.modules.module.register_module_forward_pre_hook(hear)
    try:
        with pytest.raises(Stopped, match="the state after step 1 is kept"):
            bench.run(2, judge=Judge({}, scorer), check=flag.check, told=told.append, store=store, micro_batch=8)
    finally:
        hearing.remove()
    assert passes.count(doing) == at, "no pass follows"
    assert passes[-1] == doing
    rest, weights = bench.run(2, judge=Judge({}, scorer), store=store, resume=True, micro_batch=8)
    assert steps_of(rest) == steps_of(whole[1:])
    assert same(weights, expected)


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


def test_one_answer_that_does_not_fit_is_said_with_what_helps(bench: Bench) -> None:
    def run_out(_model: Any, _rows: int) -> None:
        raise MemoryError

    with pytest.raises(TuneloopError, match=r"one row at a time.*max_prompt_length and max_new_tokens.*qlora"):
        bench.with_run(micro_batch=2).run(1, before=run_out)


def spoil(model: Any) -> None:
    next(value for value in model.parameters() if value.requires_grad).data.fill_(float("nan"))


def test_a_gradient_gone_wild_stops_before_it_spoils_the_weights_and_names_the_questions(
    bench: Bench, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    bench.run(1, store=store)
    limited = bench.with_run(divergence={"max_grad_norm": 1e-9})
    with pytest.raises(
        TuneloopError, match=r"step 2: the gradient norm .* above run\.divergence\.max_grad_norm.*; its questions: "
    ) as raised:
        limited.run(2, store=store, resume=True)
    assert "questions.jsonl:" in str(raised.value)
    assert "objective.kl_coefficient" in str(raised.value)
    found = store.newest_valid()
    assert found is not None
    assert found.state.step == 1


@pytest.mark.parametrize("back_to", [1, 0])
def test_a_stop_right_after_a_rollback_keeps_the_lowered_rate(bench: Bench, tmp_path: Path, back_to: int) -> None:
    run, flag = bench.with_run(divergence={"action": "rollback"}), StopFlag()
    spoilt, done = list[bool](), list[int]()

    def watch(model: Any, _rows: int) -> None:
        if spoilt:
            flag.stop(Stopped("asked to end"))
        elif len(done) == back_to and torch.is_grad_enabled():
            spoilt.append(True)
            spoil(model)

    store = CheckpointStore(tmp_path, 2, pytest.fail)
    with pytest.raises(Stopped, match=f"after step {back_to} is kept"):
        run.run(2, before=watch, told=done.append, check=flag.check, store=store, clock=each_step_is_due(bench))
    assert f"rolled back to step {back_to} with learning rate 0.005" in "\n".join(run.said)
    found = store.newest_valid()
    assert found is not None
    assert (found.state.step, found.state.rollbacks, found.state.learning_rate) == (back_to, 1, 0.005)


def test_no_more_than_one_copy_of_what_is_trained_is_held(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, copies, most = keeping._copied, list[weakref.ref[torch.Tensor]](), list[int]()

    def watched(value: Any) -> Any:
        made = copied(value)
        if isinstance(made, torch.Tensor):
            copies.append(weakref.ref(made))
            most.append(sum(copy() is not None for copy in copies))
        return made

    monkeypatch.setattr(keeping, "_copied", watched)
    weights = {"weight": torch.nn.Parameter(torch.zeros(4))}
    store = CheckpointStore(tmp_path, 1, pytest.fail)
    keeper = keeping.Keeper(store, bench.recipe, weights, {}, torch.Generator())
    for step in range(3):
        keeper.hold(keeping.Learned(step, 0.0))
    assert len(most) == 3 * max(most), "as many as each of three times"


def test_what_is_no_number_rolls_back_with_a_lower_rate_and_gives_up_in_the_end(bench: Bench, tmp_path: Path) -> None:
    """Once while it learns, once while it samples; then no more."""
    divergence = {"action": "rollback", "max_rollbacks": 2}
    run = bench.with_run(divergence=divergence)
    passes: list[int] = []

    def spoil_twice(model: Any, _rows: int) -> None:
        passes.append(torch.is_grad_enabled())
        if sum(passes) == 2 and passes[-1] and len(spoilt) == 0:
            spoilt.append("learning")
            spoil(model)
        elif spoilt == ["learning"] and not passes[-1] and sum(passes) > 2:
            spoilt.append("sampling")
            spoil(model)

    spoilt: list[str] = []
    store = CheckpointStore(tmp_path, 2, pytest.fail)
    seen, weights = run.run(2, before=spoil_twice, store=store, clock=each_step_is_due(bench))
    assert spoilt == ["learning", "sampling"]
    assert seen[-1]["step"] == 2
    assert all(torch.isfinite(value).all() for value in weights.values())
    said = "\n".join(run.said)
    assert "rolled back to step 0 with learning rate 0.005 (1 of 2)" in said
    assert "the policy's probabilities are no numbers" in said
    assert "with learning rate 0.0025 (2 of 2)" in said
    found = store.newest_valid()
    assert found is not None
    assert (found.state.rollbacks, found.state.learning_rate) == (2, 0.0025)
    assert seen[-1]["learning_rate"] == 0.0025

    with pytest.raises(TuneloopError, match="rolled back 2 times already"):
        run.run(2, before=lambda model, _rows: spoil(model), store=CheckpointStore(tmp_path / "b", 2, pytest.fail))
