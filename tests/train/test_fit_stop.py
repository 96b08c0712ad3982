"""A fit that is asked to stop ends after the pass it is in, and what goes on from there is the run that was not.

Of supervised fine-tuning; other objectives: `test_fit_cut`, `test_ppo_recovery`; of several processes:
`test_fit_together`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from train.fitting import Fits
from tuneloop.train.base import Base
from tuneloop.train.stopping import StopFlag, Stopped

DROPOUT = {"dropout": 0.2}  # draws on the random state at every step


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


def test_a_stop_ends_after_the_pass_it_is_in_and_what_goes_on_from_there_is_the_run_that_was_not(fits: Fits) -> None:
    """Two passes a step: it is looked for after each. A window may be longer than the notice a machine gives."""
    recipe = fits.recipe(tuning=DROPOUT)
    whole_model = fits.model(recipe)
    fits.fit(recipe, steps=3, model=whole_model)
    whole = fits.losses
    for looks, kept in ((1, 0), (3, 1)):
        asked: list[int] = []

        def check(looks: int = looks, asked: list[int] = asked) -> None:
            asked.append(1)
            if len(asked) >= looks:
                raise Stopped("stopped by SIGTERM; nothing was published")

        with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped:
            fits.fit(recipe, steps=3, store=fits.store(), check=check)
        assert len(asked) == looks
        found = fits.store().newest_valid()
        assert (found.state.step if found else 0) == kept
        assert ("after step 1 is kept" in str(stopped.value)) is (kept == 1)
    model = fits.model(recipe)
    fits.fit(recipe, steps=3, store=fits.store(), resume=True, model=model)
    assert fits.losses == {step: loss for step, loss in whole.items() if step > 1}
    ours, theirs = model.state_dict(), whole_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stop_in_the_midst_of_validation_keeps_the_step_and_validates_when_it_goes_on(fits: Fits) -> None:
    """As training begins, and after step 2: several passes over 20 rows."""
    recipe, validation = fits.recipe(validate_every=2, tuning=DROPOUT), fits.labelled()[20:]
    flag, stop_at, passes = StopFlag(), 0, list[bool]()

    def model() -> Any:
        passes.clear()
        made = fits.model(recipe)
        made.get_base_model().register_forward_pre_hook(hear)
        return made

    def hear(module: torch.nn.Module, _args: Any) -> None:
        passes.append(module.training)
        if passes.count(False) == stop_at:
            flag.stop(Stopped("asked to end"))

    def validated() -> list[str]:
        return [line for line in fits.said if line.startswith("validation loss")]

    fits.fit(recipe, steps=4, validation=validation, model=model())
    whole, told, each = fits.losses, validated(), passes.count(False) // 3
    assert [line.split()[-1] for line in told] == ["0", "2", "4"]
    for stop_at, kept in ((1, 0), (each + 1, 2)):
        flag = StopFlag()
        fits.said.clear()
        with pytest.raises(Stopped) as stopped:
            fits.fit(recipe, steps=4, validation=validation, check=flag.check, store=fits.store(), model=model())
        assert (passes.count(False), passes[-1]) == (stop_at, False), "no pass follows"
        assert ("after step 2 is kept" in str(stopped.value)) is (kept == 2)
    assert validated() == told[:1]
    fits.fit(recipe, steps=4, validation=validation, store=fits.store(), resume=True)
    assert fits.losses == {step: loss for step, loss in whole.items() if step > 2}
    assert validated() == told


@pytest.mark.parametrize(("min_delta", "last"), [(0.0, 4), (100.0, 2)])
def test_a_stop_in_the_midst_of_the_last_validation_changes_no_published_weights(
    fits: Fits, min_delta: float, last: int
) -> None:
    """The last by count, and by lost patience with a loss that falls too little."""
    recipe = fits.recipe(validate_every=2, early_stopping={"patience": 1, "min_delta": min_delta})
    validation, flag, stop_at, passes = fits.labelled()[30:], StopFlag(), 0, list[bool]()

    def hear(module: torch.nn.Module, _args: Any) -> None:
        passes.append(module.training)
        if passes.count(False) == stop_at:
            flag.stop(Stopped("asked to end"))

    whole_model, model = fits.model(recipe), fits.model(recipe)
    for one in (whole_model, model):
        one.get_base_model().register_forward_pre_hook(hear)
    whole = fits.fit(recipe, steps=4, validation=validation, model=whole_model)
    assert (whole.steps, whole.weights_step) == (last, last)
    each = passes.count(False) // (1 + last // 2)  # as it began, and after every second step
    stop_at = each * (last // 2) + 1
    assert each > 1, "there is a midst"
    passes.clear()
    with pytest.raises(Stopped, match=f"after step {last} is kept"):
        fits.fit(recipe, steps=4, validation=validation, check=flag.check, store=fits.store(), model=model)
    model = fits.model(recipe)
    done = fits.fit(recipe, steps=4, validation=validation, store=fits.store(), resume=True, model=model)
    assert (done.steps, done.weights_step, fits.losses) == (last, last, {})
    ours, theirs = model.state_dict(), whole_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("back_to", [2, 0])
def test_a_stop_right_after_a_rollback_keeps_the_lowered_rate(fits: Fits, back_to: int) -> None:
    recipe = fits.recipe(checkpoint={"every_s": 1e-9, "keep": 2}, divergence={"action": "rollback"})
    model, flag, first = fits.model(recipe), StopFlag(), 2 * back_to  # two passes a step

    def spoil_and_stop(_rows: int, before: int) -> None:
        if before == first:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))
        elif before == first + 2:
            flag.stop(Stopped("asked to end"))

    with pytest.raises(Stopped, match=f"after step {back_to} is kept"):
        fits.fit(recipe, steps=4, store=fits.store(), model=model, hook=spoil_and_stop, check=flag.check)
    assert any(f"rolled back to step {back_to} with learning rate 0.0025" in line for line in fits.said)
    found = fits.store().newest_valid()
    assert found is not None
    assert (found.state.step, found.state.rollbacks, found.state.learning_rate) == (back_to, 1, 0.0025)
