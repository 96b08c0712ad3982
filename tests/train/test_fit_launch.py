"""Several processes that train together: the same losses as one, and sharding that is really on."""

from __future__ import annotations

import io
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from train.launching import FSDP, STEPS, ZERO3, Trained, launched
from tuneloop.registry.errors import Conflict, InvalidInput, TuneloopError
from tuneloop.train.fit import child, launch
from tuneloop.train.fit.memory import ValidationStarved
from tuneloop.train.fit.processes import started
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.zero import check_launch, deepspeed_config
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.run import LaunchSection, RunSection
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning.models import Loader

TOLERANCE = 2e-5  # nats: float32 sums in another order


@pytest.fixture(scope="module")
def alone(train_with: Callable[..., Trained]) -> Trained:
    return train_with("")


@pytest.mark.parametrize("strategy", ["ddp", "zero2", ZERO3, FSDP])
def test_two_processes_learn_what_one_does(strategy: str, train_with: Callable[..., Trained], alone: Trained) -> None:
    """37 rows in batches of 8: the fifth step sees 5, which two processes cannot share evenly."""
    both = train_with(launched(strategy))
    assert set(both.losses) == set(range(1, STEPS + 1))
    assert both.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    nll = pytest.approx(alone.metrics["nll.old"], abs=TOLERANCE)
    assert both.metrics["nll.old"] == nll, "the weights came back whole"
    assert (both.share is None) == (strategy == "ddp")
    assert both.share is None or 0.5 <= both.share < 0.6, "half of it, and a little padding"


def test_one_process_shards_too_and_learns_the_same(train_with: Callable[..., Trained], alone: Trained) -> None:
    """For its optimizer's state in main memory."""
    found = train_with("launch: {processes: 1, strategy: zero2, cpu_offload: true},")
    assert found.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    assert found.metrics["nll.old"] == pytest.approx(alone.metrics["nll.old"], abs=TOLERANCE)
    assert found.share == 1.0


def test_all_weights_are_learned_sharded_as_whole(train_with: Callable[..., Trained]) -> None:
    alone = train_with("", tuning="{method: full}")
    both = train_with(launched(FSDP), tuning="{method: full}")
    assert both.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    assert both.share is not None
    assert 0.5 <= both.share < 0.6
    nll = pytest.approx(alone.metrics["nll.old"], abs=TOLERANCE)
    assert both.metrics["nll.old"] == nll, "the weights came back whole"


def spec_in(folder: Path) -> launch.ChildSpec:
    return launch.ChildSpec(
        recipe={},
        base=folder,
        start=None,
        device="cpu",
        attention="sdpa",
        steps=9,
        store=folder / "store",
        owner=os.getpid(),
        threads=1,
    )


@pytest.mark.parametrize(
    "reason",
    [Conflict("retraining rt_1: the lease of w1 is lost"), Stopped("stopped by SIGTERM; nothing was published")],
)
def test_why_the_owner_asked_its_processes_to_end_is_not_flattened(
    reason: TuneloopError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told in words, and end as stopped: whoever waits for the owner must still see a lost lease as one."""
    words = f"{reason}; the state after step 3 is kept"
    ended = launch._End(0, launch.Event(kind="stopped", text=words), "")
    monkeypatch.setattr(launch, "_run_children", lambda *_arguments: ended)
    spec = spec_in(tmp_path)
    flag = StopFlag()
    flag.stop(reason)
    watch = Watch(Screen(io.StringIO()), lambda _metrics, _step: None, flag.check)
    with pytest.raises(type(reason)) as raised:
        launch.fit_in_processes(spec, [], [], [], RunSection(steps=9), watch)
    assert str(raised.value) == (words if isinstance(reason, Stopped) else str(reason))


def test_processes_that_run_out_of_memory_begin_again_with_less_until_it_is_said_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int | None] = []

    def run_out(spec: launch.ChildSpec, *_others: object) -> launch._End:
        told.append(spec.micro_batch)
        return launch._End(1, launch.Event(kind="memory", text="CUDA out of memory", step=spec.micro_batch or 2), "")

    monkeypatch.setattr(launch, "_run_children", run_out)
    values = {
        "base": {"model": "x"},
        "data": {"train": "questions.jsonl"},
        "objective": {"kind": "ppo", "rewards": ["finished"]},
        "run": {"steps": 9, "batch_size": 4, "micro_batch": 2, "max_restarts": 1},
        "evaluate": {"sets": {"held": "held.jsonl"}},
        "publish": {"model": "bot"},
    }
    run = Recipe.model_validate(values).run
    spec = spec_in(tmp_path).model_copy(update={"recipe": values})
    watch = Watch(Screen(io.StringIO()), lambda _metrics, _step: None, lambda: None)
    with pytest.raises(TuneloopError, match=r"one row at a time.*: smaller objective\.max_prompt_length"):
        launch.fit_in_processes(spec, [], [], [], run, watch)
    assert told == [None, 1]


def test_processes_that_run_out_of_memory_in_validation_begin_again_with_less_of_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them alone could not go on: the others wait for it in the midst of a pass."""
    told: list[tuple[int | None, int | None]] = []

    def run_out(spec: launch.ChildSpec, *_others: object) -> launch._End:
        told.append((spec.micro_batch, spec.validation_batch))
        assert child.run_child(spec) == 1
        return launch._End(1, launch.Event.model_validate_json(capsys.readouterr().out), "")

    def starve(spec: Path) -> None:
        raise ValidationStarved("CUDA out of memory", 4 // 2 ** (len(told) - 1))

    monkeypatch.setattr(child, "read_base", starve)
    monkeypatch.setattr(launch, "_run_children", run_out)
    values = {
        "base": {"model": "x"},
        "data": {"train": "rows.jsonl"},
        "run": {"steps": 9, "batch_size": 4, "micro_batch": 2, "max_restarts": 1},
        "evaluate": {"sets": {"held": "held.jsonl"}},
        "publish": {"model": "bot"},
    }
    spec = spec_in(tmp_path).model_copy(update={"recipe": values})
    watch = Watch(Screen(io.StringIO()), lambda _metrics, _step: None, lambda: None)
    run = Recipe.model_validate(values).run
    with pytest.raises(TuneloopError, match="in validation with one row at a time: shorten the rows"):
        launch.fit_in_processes(spec, [], [], [], run, watch)
    assert told == [(None, None), (None, 2), (None, 1)]


def test_a_processs_broken_text_ends_nothing(tmp_path: Path) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'\xff said\n'); sys.stderr.buffer.write(b'\xfe went wrong\n')"
    with started([sys.executable, "-c", code], "cpu", tmp_path / "errors.log", parallel=False) as (
        process,
        errors,
    ):
        assert process.stdout is not None
        assert process.stdout.read() == "\ufffd said\n"
        process.wait()
    assert list(errors) == ["\ufffd went wrong"]


def test_a_log_that_cannot_be_written_holds_nobody_up(tmp_path: Path) -> None:
    """More than a pipe holds: a reader that gave up would leave the children waiting for ever."""
    code = "import sys; [print('y' * 99, file=sys.stderr) for _ in range(5000)]"
    for log in (tmp_path, Path("/dev/full")):  # a folder, and a disk that is always full
        with started([sys.executable, "-c", code], "cpu", log, parallel=False) as (process, errors):
            assert process.wait(timeout=60) == 0
        assert errors[-1] == "y" * 99


@pytest.mark.parametrize(("parallel", "threads"), [(True, "1"), (False, "None")])
def test_a_process_alone_has_all_threads_and_several_take_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: bool, threads: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = [sys.executable, "-c", "import os; print(os.environ.get('OMP_NUM_THREADS'))"]
    with started(command, "cpu", tmp_path / "errors.log", parallel=parallel) as (process, _):
        assert process.stdout is not None
        assert process.stdout.read().strip() == threads
        process.wait()


def test_a_checkpoint_without_all_that_was_trained_is_no_result(tmp_path: Path) -> None:
    """Weights that are tied have two names and are written once; what was frozen need not be there."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("first", "tied", "frozen")})
    model["tied"].weight = model["first"].weight
    model["frozen"].requires_grad_(False)
    learned = torch.full((2, 2), 7.0)
    save_file({"tied.weight": learned}, tmp_path / "model.safetensors")
    launch.load_weights(model, tmp_path)
    assert torch.equal(model["first"].weight, learned)
    save_file({"other.weight": learned, "frozen.weight": learned.clone()}, tmp_path / "model.safetensors")
    with pytest.raises(TuneloopError, match=r"lacks weights that were trained \(tied\.weight\)"):
        launch.load_weights(model, tmp_path)


def test_a_launch_that_this_machine_cannot_keep_is_refused_before_it_begins() -> None:
    run = RunSection(steps=1, launch=LaunchSection(processes=2, strategy="fsdp", cpu_offload=True))
    check_launch(run, "cuda")
    with pytest.raises(InvalidInput, match=r"run\.launch\.cpu_offload with fsdp pins memory for a GPU"):
        check_launch(run, "cpu")


def test_no_weight_is_left_unsharded_and_weights_are_saved() -> None:
    run = RunSection(steps=1, launch=LaunchSection(processes=2, strategy="zero3", cpu_offload=True))
    zero = deepspeed_config(run, "cuda")["zero_optimization"]
    assert (zero["stage"], zero["stage3_param_persistence_threshold"]) == (3, 0)
    assert zero["stage3_gather_16bit_weights_on_model_save"]
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}


@pytest.mark.parametrize("apart", ["true", "false"])
def test_the_owner_holds_no_model_while_processes_train(
    apart: str, train_with: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantised base cannot be moved off its device: held by both, it would fill the first one twice."""
    tuning = f"{{method: qlora, rank: 4, compute_dtype: float32, evaluate_unquantized: {apart}}}"
    alone = train_with("", tuning=tuning)
    loaded, held = list[weakref.ref[Any]](), list[list[bool]]()
    run_children, load = launch._run_children, {name: getattr(Loader, name) for name in ("tunable", "measurable")}

    def watched(name: str) -> Callable[..., Any]:
        def made(self: Loader, *given: Any) -> Any:
            found = load[name](self, *given)
            loaded.append(weakref.ref(found))
            return found

        return made

    def looked(*given: Any) -> Any:
        held.append([one() is not None for one in loaded])
        return run_children(*given)

    for name in load:
        monkeypatch.setattr(Loader, name, watched(name))
    monkeypatch.setattr(launch, "_run_children", looked)
    found = train_with("max_restarts: 1,", tuning=tuning)
    assert held == [[False]], "one was measured before"
    assert found.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    assert found.metrics["nll.old"] == pytest.approx(alone.metrics["nll.old"], abs=TOLERANCE)
