"""What a fit says of itself: validation and early stopping, over-fitting and plateaus, speed, profile, trackers."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit

from train.fitting import Fits
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.fit.checkpoints import RunState, Validated
from tuneloop.train.fit.guard import strikes
from tuneloop.train.fit.profiling import Profile, read_timeline
from tuneloop.train.fit.progress import Progress, Watch
from tuneloop.train.fit.speed import flops_per_token, peak_of
from tuneloop.train.fit.summary import diagnose, is_flat
from tuneloop.train.fit.trackers import check_trackers
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.plan.prices import load_prices
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.run import EarlyStopping, RunSection
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


def validated(*losses: float) -> tuple[Validated, ...]:
    return tuple(Validated(step=10 * number, loss=loss) for number, loss in enumerate(losses))


def test_validation_that_no_longer_falls_is_counted() -> None:
    assert strikes(validated(3.0, 2.0, 1.0), 0.0) == 0
    assert strikes(validated(3.0, 2.0, 2.1, 2.2), 0.0) == 2
    assert strikes(validated(3.0, 2.0, 2.1, 1.9), 0.0) == 0
    assert strikes(validated(3.0, 2.99, 2.98), 0.1) == 2


def test_early_stopping_ends_the_fit_and_keeps_the_best_weights(fits: Fits) -> None:
    """A rate far too high makes validation rise from some step on."""
    recipe = fits.recipe(
        validate_every=1,
        early_stopping={"patience": 2},
        divergence={"loss_spike": 1e9},
    )
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"learning_rate": 0.3})})
    model = fits.model(recipe)
    done = fits.fit(recipe, steps=40, validation=fits.labelled("validation"), store=fits.store(keep=1), model=model)
    assert done.steps < 40
    assert done.weights_step == done.steps - 2, "two validations without a fall"
    losses = [float(line.split()[2]) for line in fits.said if line.startswith("validation loss")]
    assert min(losses) == losses[done.weights_step]
    again = fits.model(recipe)
    resumed = fits.fit(
        recipe, steps=40, validation=fits.labelled("validation"), store=fits.store(keep=1), model=again, resume=True
    )
    assert resumed.weights_step == done.weights_step
    assert fits.losses == {}, "a fit that stopped early is finished"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("is_gone", [False, True])
def test_weights_that_training_only_made_worse_are_those_it_began_with(
    fits: Fits, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    recipe = fits.recipe(validate_every=1, early_stopping={"patience": 2})
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("tuneloop.train.fit.run.mean_nll", lambda _rows: next(losses))
    store, model = fits.store(keep=1), fits.model(recipe)
    if is_gone:
        monkeypatch.setattr(store, "at", lambda _step: None)
    began = {name: value.clone() for name, value in model.state_dict().items()}
    done = fits.fit(recipe, steps=4, validation=fits.labelled("validation")[:1], store=store, model=model)
    assert (done.steps, done.weights_step) == (2, 2 if is_gone else 0)
    said = "the checkpoint of step 0, the best one, is gone" if is_gone else "the weights of step 0 are kept"
    assert said in " ".join(fits.said)
    assert all(torch.equal(value, began[name]) for name, value in model.state_dict().items()) is not is_gone


def test_over_fitting_and_plateaus_are_said_with_what_helps() -> None:
    run = RunSection(steps=100)
    state = RunState(micro_batch=1, learning_rate=1e-4, validations=validated(2.0, 1.0, 1.5))
    [note] = diagnose([2.0, 1.0], state, run)
    assert "over-fitting: the validation loss was lowest after step 10 (1.000) and rose to 1.500" in note
    assert "run.early_stopping" in note
    stops = run.model_copy(update={"early_stopping": EarlyStopping()})
    assert "run.early_stopping" not in diagnose([2.0, 1.0], state, stops)[0]
    calm = RunState(micro_batch=1, learning_rate=1e-4, validations=validated(2.0, 1.0, 0.9))
    assert diagnose([2.0, 1.0], calm, run) == ()
    assert "plateau" in diagnose([3.0] * 60, calm, run)[0]
    assert not is_flat([3.0 - 0.04 * step for step in range(60)])
    assert not is_flat([3.0] * 5), "too short to tell"


def test_speed_is_told_where_the_peak_is_known(fits: Fits) -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("NVIDIA A100-SXM4-40GB") == peak_of("NVIDIA A100 80GB PCIe") == 312e12
    assert peak_of("NVIDIA GeForce RTX 4090") == 165e12
    table = load_prices().devices
    assert [peak_of(f"NVIDIA {name}") for name in table] == [one.tflops_bf16 * 1e12 for one in table.values()]
    assert peak_of("GeForce 256") is None
    neighbours = {"L4": 121, "L40": 181, "L40S": 362, "A10": 125, "A10G": 70, "A100 80GB PCIe": 312, "H200 NVL": 835}
    assert {name: peak_of(f"NVIDIA {name}") for name in neighbours} == {n: p * 1e12 for n, p in neighbours.items()}
    assert peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA GH200 480GB") is None, "a name that begins otherwise is another device"
    model = torch.nn.Linear(10, 5, bias=False)
    assert flops_per_token(model) == 6 * 50
    model.requires_grad_(False)
    assert flops_per_token(model) == 4 * 50


def test_a_packed_weight_costs_what_it_stands_for_and_a_looked_up_one_nothing() -> None:
    packed = Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    packed.weight = Params4bit(torch.randn(128, 64), requires_grad=False, quant_type="nf4")
    assert flops_per_token(packed.to("cpu")) == 4 * 64 * 128
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(9, 4), "head": torch.nn.Linear(4, 9, bias=False)})
    assert flops_per_token(model) == 6 * 36
    model["head"].weight = model["table"].weight
    assert flops_per_token(model) == 6 * 36, "tied: looked up once, multiplied once"


def test_a_resumed_fit_tells_the_speed_of_this_process(fits: Fits) -> None:
    """A count of tokens that goes on from the checkpoint's would tell hours of work done in seconds."""
    now, told = [0.0], list[dict[str, float]]()
    watch = Watch(Screen(io.StringIO()), lambda metrics, _step: told.append(dict(metrics)), lambda: None)
    guard: Any = SimpleNamespace(state=RunState(micro_batch=1, learning_rate=1e-4))
    progress = Progress(fits.recipe(), 4, None, watch, guard, lambda: now[0])
    state = SimpleNamespace(global_step=2, num_input_tokens_seen=1_000_000)
    progress.on_train_begin(None, state, None, model=torch.nn.Linear(2, 2))
    now[0], state.global_step = 10.0, 3
    progress.on_log(None, state, None, {"loss": 1.0, "learning_rate": 1e-4, "num_tokens": 1_000_500.0})
    assert told[0]["tokens_per_s"] == 50


def test_a_profile_holds_a_trace_and_a_picture_of_three_steps(fits: Fits, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    said: list[str] = []
    fits.fit(fits.recipe(), callbacks=[Profile(folder, said.append)])
    timeline = read_timeline(folder / "trace.json")
    assert len(timeline.steps) == 3
    held = [mib for _, mib in timeline.held["the CPU"]]
    assert len(held) > 100
    assert max(held) > 1
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert "MiB on the CPU" in said[0]
    assert any(
        "aten::" in str(event.get("name")) for event in json.loads((folder / "trace.json").read_bytes())["traceEvents"]
    )


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InvalidInput, match="pip install wandb"):
        check_trackers(("wandb",))
    check_trackers(())


def test_a_tracker_hears_all_that_mlflow_hears_under_the_same_id(
    tiny_recipe: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    """A package with wandb's interface stands in for it: the real one wants an account or a server."""
    (tmp_path / "wandb.py").write_text(
        "from contextlib import contextmanager\n"
        "heard, asked = [], []\n"
        "class Run:\n"
        "    def log(self, metrics, step): heard.append((step, metrics))\n"
        "@contextmanager\n"
        "def init(**options):\n"
        "    asked.append(options)\n"
        "    yield Run()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    tiny_recipe.write_text(tiny_recipe.read_text().replace("run: {", "run: {trackers: [wandb], "))
    job = job_from_recipe(load_recipe(tiny_recipe), registry.settings.home)
    version = run_job(job, registry, screen=Screen(io.StringIO()), stop=StopFlag()).version
    wandb = importlib.import_module("wandb")
    [asked] = wandb.asked
    assert (asked["project"], asked["id"], asked["resume"]) == ("bot", version.run_id, "allow")
    assert asked["config"]["tuning.rank"] == 4
    losses = {step: metrics["loss"] for step, metrics in wandb.heard if "loss" in metrics}
    assert losses == dict(registry.versions.metric_history(version.run_id, "loss"))
    last = {name: value for _, metrics in wandb.heard for name, value in metrics.items()}
    assert last["perplexity.old"] == version.metrics["perplexity.old"]
