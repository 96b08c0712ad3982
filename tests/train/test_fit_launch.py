"""Several processes that train together: the same losses as one, and sharding that is really on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.fit.zero import check_launch, deepspeed_config
from tuneloop.train.recipe.run import LaunchSection, RunSection
from tuneloop.train.verbs.train import train

STEPS = 4
TOLERANCE = 2e-5  # nats: float32 sums in another order


@dataclass(frozen=True)
class Trained:
    """Losses by step, the version's metrics, and what was printed."""

    losses: dict[int, float]
    metrics: dict[str, float]
    said: str


@pytest.fixture(scope="module")
def train_with(
    tmp_path_factory: pytest.TempPathFactory, recipe_in: Callable[[Path], Path]
) -> Iterator[Callable[[str], Trained]]:
    """Trains the tiny model by the verb with these keys in `run`, in a home of its own."""

    def run(launch: str) -> Trained:
        folder = tmp_path_factory.mktemp("launch")
        recipe = recipe_in(folder / "recipe")
        keys = f"run: {{steps: {STEPS}, batch_size: 8, {launch}"
        recipe.write_text(recipe.read_text().replace("run: {steps: 3, batch_size: 4,", keys))
        monkeypatch.setenv("TUNELOOP_HOME", str(folder / "home"))
        done = CliRunner().invoke(train, [str(recipe)], catch_exceptions=False)
        with Registry.open() as registry:
            version = registry.versions.get("bot", 1)
            losses = dict(registry.versions.metric_history(version.run_id, "loss"))
        return Trained(losses, dict(version.metrics), done.stdout)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TUNELOOP_TRAIN_THREADS", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        yield run


@pytest.fixture(scope="module")
def alone(train_with: Callable[[str], Trained]) -> Trained:
    return train_with("")


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_two_processes_learn_what_one_does(strategy: str, train_with: Callable[[str], Trained], alone: Trained) -> None:
    both = train_with(f"launch: {{processes: 2, strategy: {strategy}}},")
    assert set(both.losses) == set(range(1, STEPS + 1))
    assert both.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    nll = pytest.approx(alone.metrics["nll.old"], abs=TOLERANCE)
    assert both.metrics["nll.old"] == nll, "the weights came back whole"
    shares = re.search(r"the optimizer of ([\d,]+) of ([\d,]+) weights", both.said)
    if strategy == "ddp":
        assert shares is None
    else:
        assert shares is not None
        held, every = (int(number.replace(",", "")) for number in shares.groups())
        assert every / 2 <= held < 0.6 * every, "half of it, and a little padding"


def test_a_launch_this_machine_cannot_keep_is_refused() -> None:
    run = RunSection(steps=1, launch=LaunchSection(processes=2, strategy="fsdp"))
    with pytest.raises(InvalidInput, match="fsdp needs GPUs"):
        check_launch(run, "cpu")
    check_launch(run, "cuda")


def test_no_weight_is_left_unsharded_and_weights_are_saved() -> None:
    run = RunSection(steps=1, launch=LaunchSection(processes=2, strategy="zero3", cpu_offload=True))
    zero = deepspeed_config(run, "cuda")["zero_optimization"]
    assert (zero["stage"], zero["stage3_param_persistence_threshold"]) == (3, 0)
    assert zero["stage3_gather_16bit_weights_on_model_save"]
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
