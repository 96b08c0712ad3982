"""What may happen to a fit on its way, and how it goes on: kills at any step, full memory, divergence.

Stops: `test_fit_stop`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from train.fitting import Fits
from tuneloop.registry.errors import TuneloopError
from tuneloop.train.base import Base
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.divergence import judge_step
from tuneloop.train.fit.memory import ValidationStarved, is_out_of_memory, largest_that_fits, smaller
from tuneloop.train.fit.order import rows_of_step
from tuneloop.train.fit.sft import fits as fits_in_memory
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.run import DivergenceSection

EVERY_STEP = {"every_s": 1e-9, "keep": 2}
DROPOUT = {"dropout": 0.2}  # draws on the random state at every step


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


class Killed(BaseException):
    """As abrupt as a signal: nothing on the way may catch it."""


@pytest.mark.parametrize("died_in", [1, 3, 6])
def test_resumed_equals_uninterrupted_to_the_bit(fits: Fits, died_in: int) -> None:
    """20 rows in batches of 4: an epoch ends after step 5, where step 6 begins."""
    rows = fits.labelled()[:20]
    recipe = fits.recipe(checkpoint=EVERY_STEP, tuning=DROPOUT)
    whole_model = fits.model(recipe)
    fits.fit(recipe, steps=8, rows=rows, model=whole_model)
    whole = fits.losses

    def die(_rows: int, before: int) -> None:
        if before == 2 * (died_in - 1) + 1:  # in the second of a step's two passes
            raise Killed

    with pytest.raises(Killed):
        fits.fit(recipe, steps=8, rows=rows, store=fits.store(), hook=die)
    model = fits.model(recipe)
    done = fits.fit(recipe, steps=8, rows=rows, store=fits.store(), resume=True, model=model)
    assert fits.losses == {step: loss for step, loss in whole.items() if step >= died_in}
    assert (done.steps, done.first_loss, done.last_loss) == (8, whole[1], whole[8])
    ours, theirs = model.state_dict(), whole_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resuming_a_finished_fit_trains_nothing_more(fits: Fits) -> None:
    recipe = fits.recipe()
    model = fits.model(recipe)
    fits.fit(recipe, steps=3, store=fits.store(), model=model)
    again = fits.model(recipe)
    done = fits.fit(recipe, steps=3, store=fits.store(), resume=True, model=again)
    assert (done.steps, fits.losses) == (3, {})
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_spoilt_checkpoint_is_named_and_the_one_before_it_taken(fits: Fits) -> None:
    recipe = fits.recipe(checkpoint={"every_s": 1e-9, "keep": 3})
    fits.fit(recipe, steps=4, store=fits.store(keep=3))
    whole = fits.losses
    steps = sorted(path.name for path in (fits.folder / "checkpoints").glob("step-*"))
    assert steps == ["step-00000002", "step-00000003", "step-00000004"]
    weights = fits.folder / "checkpoints" / "step-00000004" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (fits.folder / "checkpoints" / "step-00000003" / "optimizer.pt").unlink()
    fits.fit(recipe, steps=4, store=fits.store(), resume=True)
    assert fits.losses == {step: whole[step] for step in (3, 4)}
    assert "checkpoint step-00000004 is skipped: adapter_model.safetensors is not what was written" in " ".join(
        fits.said
    )
    assert "checkpoint step-00000003 is skipped: optimizer.pt is missing" in " ".join(fits.said)


def test_checkpoints_follow_the_clock_not_the_steps(fits: Fits) -> None:
    now = [0.0]
    written: list[int] = []

    def pass_time(_rows: int, before: int) -> None:
        now[0] += 2.0  # a step of two passes takes four seconds
        written[:] = [int(p.name[5:]) for p in (fits.folder / "checkpoints").glob("step-*")]

    recipe = fits.recipe(checkpoint={"every_s": 10.0, "keep": 9})
    fits.fit(recipe, steps=8, store=fits.store(keep=9), hook=pass_time, clock=lambda: now[0])
    assert sorted(written) == [3, 6]


@pytest.mark.parametrize("failing_pass", [0, 3, 5])
def test_out_of_memory_goes_on_as_if_it_had_begun_smaller(fits: Fits, failing_pass: int) -> None:
    """The first step of all, a step in the middle of an epoch (its second pass too), dropout on."""
    rows = fits.labelled()[:12]
    small = fits.recipe(micro_batch=2, tuning=DROPOUT)
    fits.fit(small, rows=rows)
    expected = fits.losses

    def run_out(rows: int, before: int) -> None:
        if rows == 4 and before == failing_pass:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    recipe = fits.recipe(micro_batch=4, checkpoint=EVERY_STEP)
    done = fits.fit(recipe, rows=rows, store=fits.store(), hook=run_out)
    assert done.micro_batch == 2
    assert set(fits.losses) == set(expected) == set(range(1, 7))
    fits.fit(fits.recipe(micro_batch=2), rows=rows)
    assert done.last_loss == pytest.approx(fits.losses[6], abs=2e-5)
    found = fits.store().newest_valid()
    assert found is not None
    assert found.state.micro_batch == 2, "a later resume begins with what fits"
    assert any("going on with micro-batch 2 and 2 accumulated, batch size 4 as before" in line for line in fits.said)


def test_after_out_of_memory_in_the_first_step_every_bit_is_that_of_the_smaller_run(fits: Fits) -> None:
    rows = fits.labelled()[:12]
    fits.fit(fits.recipe(micro_batch=2, tuning=DROPOUT), rows=rows)
    expected = fits.losses

    def run_out(rows: int, _before: int) -> None:
        if rows > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    fits.fit(fits.recipe(micro_batch=4, tuning=DROPOUT), rows=rows, hook=run_out)
    assert fits.losses == expected


@pytest.mark.parametrize("checkpointed", [True, False])
def test_out_of_memory_while_weights_change_goes_back_to_what_is_whole(
    checkpointed: bool, fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the weights may have moved: nothing may be saved from there."""
    rows, steps = fits.labelled()[:12], list[int]()
    fits.fit(fits.recipe(micro_batch=2), rows=rows)
    expected = fits.losses
    step = torch.optim.AdamW.step

    def run_out(self: torch.optim.AdamW, *arguments: Any, **values: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            self.param_groups[0]["params"][0].data.add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, *arguments, **values)

    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    recipe = fits.recipe(micro_batch=4, checkpoint=EVERY_STEP if checkpointed else {"every_s": 1e6})
    if not checkpointed:
        with pytest.raises(
            TuneloopError, match=r"in step 3, and there is no checkpoint from before; set run\.micro_batch"
        ):
            fits.fit(recipe, rows=rows, store=fits.store())
        return

    def look(rows: int, _before: int) -> None:
        if rows == 2 and not kept and (found := fits.store().newest_valid()):
            kept.append((found.state.step, found.state.micro_batch))

    kept: list[tuple[int, int]] = []
    fits.fit(recipe, rows=rows, store=fits.store(), hook=look)
    assert fits.losses == pytest.approx(expected, abs=2e-5)
    assert kept == [(2, 2)], "a run that is killed before its next checkpoint begins with what fits"


def test_out_of_memory_while_weights_change_takes_no_rollback_back(fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state it goes back to was written before the rate was lowered."""
    recipe = fits.recipe(micro_batch=4, divergence={"action": "rollback", "max_rollbacks": 2})
    model, starved, step = fits.model(recipe), list[int](), torch.optim.AdamW.step

    def spoil_first(_rows: int, before: int) -> None:
        if before == 0:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    def run_out(self: torch.optim.AdamW, *arguments: Any, **values: Any) -> Any:
        starved.append(1)
        if len(starved) == 2:  # the first is the spoilt one, which is told when it is over
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, *arguments, **values)

    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    fits.fit(recipe, steps=1, store=fits.store(), model=model, hook=spoil_first)
    found = fits.store().newest_valid()
    assert found is not None
    assert found.state.step == 1
    assert (found.state.rollbacks, found.state.learning_rate, found.state.micro_batch) == (1, 0.0025, 2)


def test_out_of_memory_in_validation_goes_on_with_it_alone(fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the training, whose every bit is that of the run that had room; and a run that goes on knows of it."""
    recipe, validation = fits.recipe(validate_every=1, micro_batch=4, tuning=DROPOUT), fits.labelled()[28:]
    most, trained, passes = 99, list[int](), list[int]()

    def model() -> Any:
        made = fits.model(recipe)
        made.get_base_model().register_forward_pre_hook(run_out, with_kwargs=True)
        return made

    def run_out(module: torch.nn.Module, _args: Any, values: dict[str, torch.Tensor]) -> None:
        rows = len(values["input_ids"])
        (trained if module.training else passes).append(rows)
        if not module.training and rows > most and trained:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def die(_rows: int, before: int) -> None:
        if before == 1:  # of one pass a step
            raise Killed

    def validated() -> list[float]:
        return [float(line.split()[2]) for line in fits.said if line.startswith("validation loss")]

    fits.fit(recipe, steps=2, validation=validation, model=model())
    whole, told = fits.losses, validated()
    fits.said.clear()
    trained.clear()
    most = 4
    with pytest.raises(Killed):
        fits.fit(recipe, steps=2, validation=validation, store=fits.store(), model=model(), hook=die)
    assert [line for line in fits.said if line.startswith("out of memory")] == [
        "out of memory in the validation after step 1 (CUDA out of memory. Tried to allocate 2.00 GiB); going on with "
        f"it, {rows} rows at a time"
        for rows in (8, 4)
    ]
    found = fits.store().newest_valid()
    assert found is not None
    assert (found.state.step, found.state.validation_batch, found.state.micro_batch) == (1, 4, 4)
    passes.clear()
    fits.fit(recipe, steps=2, validation=validation, store=fits.store(), resume=True, model=model())
    assert fits.losses == {2: whole[2]}
    assert validated() == pytest.approx(told, abs=2e-3), "shown with three digits"
    assert max(passes) == 4, "it is not tried with more again"
    most = 0
    with pytest.raises(TuneloopError, match="in validation with one row at a time: shorten the rows"):
        fits.fit(recipe, steps=1, validation=validation, model=model())
    monkeypatch.setattr("tuneloop.train.fit.arguments.sharding_arguments", lambda *_: {})  # this process is alone
    for launch in ({"processes": 2}, {"processes": 1, "strategy": "zero3"}):
        together = fits.recipe(**recipe.run.model_dump(exclude_unset=True) | {"launch": launch, "micro_batch": 2})
        with pytest.raises(ValidationStarved) as starved:
            fits.fit(together, steps=1, validation=validation, model=model())
        assert starved.value.rows == 16, "the others are in the midst of a pass: the launcher begins anew with less"


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_a_model_that_is_sharded_is_not_trained_a_second_time(
    strategy: str, fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process shards too, as with cpu_offload: the launcher starts it anew with less."""
    passes = list[int]()

    def run_out(_rows: int, before: int) -> None:
        passes.append(before)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("tuneloop.train.fit.arguments.sharding_arguments", lambda *_: {})  # nothing is, here
    with pytest.raises(torch.OutOfMemoryError):
        fits.fit(fits.recipe(launch={"processes": 1, "strategy": strategy}), hook=run_out)
    assert passes == [0]


def test_one_row_that_does_not_fit_is_said_with_what_helps(fits: Fits) -> None:
    def run_out(_rows: int, _before: int) -> None:
        raise MemoryError

    with pytest.raises(TuneloopError, match=r"one row at a time.*gradient_checkpointing"):
        fits.fit(fits.recipe(), hook=run_out)


def test_only_allocations_count_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert [smaller(size, 12) for size in (12, 6, 4, 3, 2)] == [6, 3, 2, 1, 1]


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 11, 24, 100])
def test_auto_finds_the_largest_micro_batch_that_fits(limit: int) -> None:
    tried: list[int] = []

    def fits_in(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest_that_fits(24, fits_in) == max(size for size in (1, 2, 3, 4, 6, 8, 12, 24) if size <= limit)
    assert len(tried) <= 4


def test_auto_runs_the_worst_case_for_real_and_learns_nothing_from_it(fits: Fits) -> None:
    rows = fits.labelled()
    widest: list[int] = []
    recipe = fits.recipe(micro_batch="auto", batch_size=8)
    done = fits.fit(recipe, rows=rows, steps=2, hook=lambda n, _: widest.append(n))
    assert done.micro_batch == 8
    assert max(widest) == 8
    found = fits.losses
    fits.fit(fits.recipe(micro_batch=8, batch_size=8), rows=rows, steps=2)
    assert found == fits.losses


def test_auto_that_finds_another_size_when_it_goes_on_takes_the_smaller_and_misses_no_step(
    fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine it goes on with may have less memory or more; counted in passes, steps would be done twice or never.
    20 rows in batches of 8: an epoch ends with step 3, the one that is killed."""
    rows, recipe = fits.labelled()[:20], fits.recipe(micro_batch="auto", batch_size=8, checkpoint=EVERY_STEP)

    def has_room_for(most: int) -> None:
        monkeypatch.setattr("tuneloop.train.fit.sft.fits", lambda _model, _longest, rows, *_: rows <= most)

    has_room_for(4)
    fits.fit(recipe, steps=4, rows=rows)
    whole = fits.losses

    def die(_rows: int, before: int) -> None:
        if before == 4:  # two passes a step
            raise Killed

    with pytest.raises(Killed):
        fits.fit(recipe, steps=4, rows=rows, store=fits.store(), hook=die)
    for room in (2, 8):
        has_room_for(room)
        left = shutil.copytree(fits.folder / "checkpoints", fits.folder / f"room for {room}")
        store, passes = CheckpointStore(left, 2, pytest.fail), list[int]()

        def count(rows: int, _before: int, passes: list[int] = passes) -> None:
            passes.append(rows)

        done = fits.fit(recipe, steps=4, rows=rows, store=store, resume=True, hook=count)
        assert (done.steps, done.micro_batch, max(passes)) == (4, min(4, room), min(4, room))
        assert fits.losses == pytest.approx({step: whole[step] for step in (3, 4)}, abs=2e-5)


def test_auto_tries_what_will_be_trained_checkpointing_included(fits: Fits) -> None:
    """Otherwise it finds too few rows just where memory is short."""
    longest = max(fits.labelled(), key=lambda row: len(row.ids))
    kept = {}
    for checkpointing in (False, True):
        recipe, sizes = fits.recipe(gradient_checkpointing=checkpointing), list[int]()

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model = fits.model(recipe)
            assert fits_in_memory(model, longest, 2, recipe, "cpu")
        kept[checkpointing] = sum(sizes)
        assert not model.base_model.model.is_activation_checkpointing
    assert kept[True] < kept[False]


@pytest.mark.parametrize("packing", [False, True])
def test_auto_tries_the_loss_and_the_batch_that_are_trained(packing: bool, fits: Fits) -> None:
    """The head works in tiles there; whole logits would be most of a pass, and find a size several times too small."""
    longest, recipe = max(fits.labelled(), key=lambda row: len(row.ids)), fits.recipe(packing=packing)
    model, whole, given = fits.model(recipe), list[int](), list[tuple[int, ...]]()
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _module, _given, logits: whole.append(logits.numel()))
    model.register_forward_pre_hook(
        lambda _m, _g, named: given.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    assert fits_in_memory(model, longest, 2, recipe, "cpu")
    assert whole == []
    assert given == [(1, 2 * len(longest.ids)) if packing else (2, len(longest.ids))]
    plain = model(input_ids=torch.tensor([longest.ids]))
    assert plain.logits.shape == (1, len(longest.ids), 49152), "the model is left as it was"


def test_auto_leaves_room_for_what_the_optimiser_will_hold(fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state comes into being after the first pass, where a batch that fitted alone would no longer fit."""
    recipe, longest = fits.recipe(), fits.labelled()[0]
    model = fits.model(recipe)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    asked: list[tuple[str, int]] = []

    def more_than_there_is(optimizer: str, parameters: int) -> int:
        asked.append((optimizer, parameters))
        return 2**50

    assert fits_in_memory(model, longest, 1, recipe, "cpu")
    monkeypatch.setattr("tuneloop.train.fit.sft.optimizer_bytes", more_than_there_is)
    assert not fits_in_memory(model, longest, 1, recipe, "cpu")
    assert asked == [("adamw", trained)]


def test_a_step_that_goes_wrong_is_told_by_loss_gradient_and_leap() -> None:
    rules = DivergenceSection(max_grad_norm=10.0)
    calm = [2.0] * 10
    assert judge_step(2.1, 1.0, calm, rules) is None
    assert "loss is nan" in str(judge_step(float("nan"), 1.0, calm, rules))
    assert "gradient norm is inf" in str(judge_step(2.0, float("inf"), calm, rules))
    assert "above run.divergence.max_grad_norm 10" in str(judge_step(2.0, 11.0, calm, rules))
    assert "3.5 times the median 2.000" in str(judge_step(7.0, 1.0, calm, rules))
    assert judge_step(7.0, 1.0, calm[:3], rules) is None, "too few steps to tell"
    assert judge_step(0.2, 1.0, [0.01] * 10, rules) is None, "a loss near zero may flicker"


def test_a_diverging_step_stops_the_run_and_names_its_rows(fits: Fits) -> None:
    rows = fits.labelled()[:20]
    places = [f"train.jsonl:{n + 1}" for n in range(20)]
    seen: list[set[tuple[int, ...]]] = []
    model = fits.model(fits.recipe())

    def watch(_module: object, _args: object, values: dict[str, torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            seen.append(
                {
                    tuple(ids[mask.bool()].tolist())
                    for ids, mask in zip(values["input_ids"], values["attention_mask"], strict=True)
                }
            )
            if len(seen) == 14:  # the seventh step, in the second epoch
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    with pytest.raises(TuneloopError, match=r"step 7: the loss is nan; its rows: train\.jsonl:") as caught:
        fits.fit(fits.recipe(), steps=10, rows=rows, places=places, model=model)
    chosen = rows_of_step(7, 20, 4, seed=0)
    assert {tuple(rows[n].ids) for n in chosen} == seen[12] | seen[13]
    assert all(places[n] in str(caught.value) for n in chosen)


def test_divergence_rolls_back_with_a_lower_rate_and_gives_up_in_the_end(fits: Fits) -> None:
    spoilt: list[int] = []

    def recipe(rollbacks: int) -> Recipe:
        return fits.recipe(
            checkpoint=EVERY_STEP, divergence={"action": "rollback", "max_rollbacks": rollbacks}, micro_batch=4
        )

    model = fits.model(fits.recipe())

    def spoil_once(_rows: int, before: int) -> None:
        if before in {0, 4}:
            spoilt.append(before)
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    done = fits.fit(recipe(2), steps=6, store=fits.store(), model=model, hook=spoil_once)
    assert spoilt == [0, 4]
    assert done.steps == 6
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert any("rolled back to step 0 with learning rate 0.0025 (1 of 2)" in line for line in fits.said)
    assert any("rolled back to step 3 with learning rate 0.00125 (2 of 2)" in line for line in fits.said)
    assert any("note: the run was rolled back 2 times" in line for line in fits.said)

    broken = fits.model(fits.recipe())

    def spoil_always(_rows: int, _before: int) -> None:
        next(p for p in broken.parameters() if p.requires_grad).data.fill_(float("nan"))

    with pytest.raises(TuneloopError, match="rolled back 1 times already"):
        fits.fit(recipe(1), steps=6, store=fits.store(), model=broken, hook=spoil_always)
