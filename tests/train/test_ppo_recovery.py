"""PPO on its way: cut at any step, gone wild; out of memory: `test_ppo_memory`."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from train.ppo_bench import Bench, each_step_is_due, load_scorer, make_bench, same, spoil, steps_of
from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.ppo import keeping
from tuneloop.train.fit.reward import RewardModel
from tuneloop.train.rewards import Judge
from tuneloop.train.stopping import StopFlag, Stopped

STEPS = 3


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("ppo"))
    return made.with_run({"passes": 2, "max_new_tokens": 4}, batch_size=16, micro_batch=16)


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


@pytest.fixture(scope="module")
def scorer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return load_scorer(bench, tmp_path_factory.mktemp("judge"))


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
