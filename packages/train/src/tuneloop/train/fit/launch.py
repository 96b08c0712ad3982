"""A fit in processes of its own: several that train together (torchrun), or one that is started again when it dies.

This process stays the run's owner: it audited, it measures and publishes; the children load the base, train and write
checkpoints, and what they have to say comes back line by line. The result is the weights of a checkpoint. Starting
costs the imports of each process, some ten seconds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file

from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.files import write_atomically
from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.handed import hand_over
from tuneloop.train.fit.memory import give_memory_back, half_of, smaller
from tuneloop.train.fit.ppo.keeping import WEIGHTS
from tuneloop.train.fit.processes import started
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.trainers import Labelled
from tuneloop.train.recipe import Recipe, RunSection
from tuneloop.train.stopping import Stopped

_STOP = "stop"  # a file: the owner asks its children to save and end
_SPEC = "spec.json"
_SHOWN_NAMES = 3
_ERRORS = "errors.log"


class ChildSpec(BaseModel):
    """What a child process needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: dict[str, Any]
    base: Path
    start: Path | None  # an adapter to go on from; none: a fresh one
    device: Literal["cpu", "cuda"]
    attention: str
    steps: int
    store: Path
    owner: int  # process id; children end when it is gone
    threads: int
    reward_model: Path | None = None  # its folder, where answers are judged by one
    micro_batch: int | None = None  # at most this many rows, where more did not fit
    validation_batch: int | None = None  # likewise, of validation


class Event(BaseModel):
    """One line from rank 0, or the last word of whichever rank dies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["say", "progress", "keep", "metrics", "done", "stopped", "error", "memory", "starved", "died"]
    text: str = ""
    step: int = 0
    metrics: dict[str, float] = {}
    result: dict[str, Any] = {}


@dataclass(frozen=True)
class _End:
    """How a set of children ended."""

    code: int
    last: Event | None
    errors: str


def needs_processes(run: RunSection) -> bool:
    """Whether a recipe asks for processes of their own."""
    return run.launch.processes > 1 or run.launch.strategy != "ddp" or run.max_restarts > 0


def fit_in_processes(
    spec: ChildSpec,
    rows: Labelled,
    places: Sequence[str],
    validation: Sequence[LabelledRow],
    run: RunSection,
    watch: Watch,
) -> tuple[FitResult, Path]:
    """Train in child processes; how it went, and the checkpoint that holds the weights they made.

    The owner holds no model meanwhile: the children need the device's memory, and a quantised base cannot be moved.

    Raises:
        Stopped: `watch.check` asked for it; the state is in the store.
        Conflict: it did because the lease is lost.
        TuneloopError: the children went wrong in a way that starting again does not mend.
    """
    spec.store.mkdir(parents=True, exist_ok=True)
    hand_over(spec.store, rows, places, validation)
    restarts = 0
    give_memory_back()
    while True:
        end = _run_children(spec, run, watch)
        last = end.last
        if last is not None and last.kind == "done":
            break
        if last is not None and last.kind == "stopped":
            with suppress(Stopped):  # the children's words say what was kept as well
                watch.check()  # a lost lease is no stop
            raise Stopped(last.text)
        if last is not None and last.kind == "error":
            raise TuneloopError(last.text)
        if last is not None and last.kind == "memory":
            kind = Recipe.model_validate(spec.recipe).objective.kind
            size = smaller(int(last.step), run.batch_size // run.launch.processes, kind)
            watch.screen.say(f"out of memory ({last.text}); starting again from the last checkpoint with {size} rows")
            spec = spec.model_copy(update={"micro_batch": size})
            continue
        if last is not None and last.kind == "starved":
            half = half_of(last.step)
            watch.screen.say(
                f"out of memory in validation ({last.text}); starting again from the last checkpoint with {half} "
                "rows of it at a time"
            )
            spec = spec.model_copy(update={"validation_batch": half})
            continue
        if restarts >= run.max_restarts:
            raise TuneloopError(
                f"training died with code {end.code} after {restarts} restarts: {end.errors or 'it said nothing'} "
                f"(all of it: {spec.store / _ERRORS}); the checkpoints are kept: the same command with --resume "
                "goes on from the last"
            )
        restarts += 1
        watch.screen.say(
            f"training died with code {end.code} ({end.errors or 'it said nothing'}); restart {restarts} of "
            f"{run.max_restarts}"
        )
    result = FitResult(**{**last.result, "notes": tuple(last.result["notes"])})
    found = CheckpointStore(spec.store, run.checkpoint.keep, watch.screen.say).at(result.weights_step)
    if found is None:
        raise TuneloopError(f"training ended, but the checkpoint of step {result.weights_step} is not whole")
    return result, found.folder


def load_weights(model: Any, folder: Path) -> None:
    """Give a model the weights of a checkpoint: an adapter's, PPO's, or all.

    Raises:
        TuneloopError: weights that were trained are not among them.
    """
    if (folder / "adapter_config.json").is_file():
        missing = model.load_adapter(str(folder), "default", is_trainable=True).missing_keys
    else:
        own = model.state_dict(keep_vars=True)  # a weight that is tied has several names, of which one is written
        wanted = {id(value): name for name, value in own.items() if value.requires_grad}
        for path in (*folder.glob("model*.safetensors"), *folder.glob(WEIGHTS)):  # PPO keeps its critic's beside them
            found = load_file(path)
            model.load_state_dict(found, strict=False)
            for name in found.keys() & own.keys():
                wanted.pop(id(own[name]), None)
        missing = list(wanted.values())
    if missing:
        raise TuneloopError(
            f"training ended, but {folder} lacks weights that were trained ({', '.join(missing[:_SHOWN_NAMES])}"
            f"{', …' if len(missing) > _SHOWN_NAMES else ''}): what would be measured and published is not what was "
            "learned; the checkpoint is kept, please report this"
        )


def _run_children(spec: ChildSpec, run: RunSection, watch: Watch) -> _End:
    stop = spec.store / _STOP
    stop.unlink(missing_ok=True)
    path = spec.store / _SPEC
    path.write_text(spec.model_dump_json(), encoding="utf-8")
    launch = run.launch
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={launch.processes}"]
    parallel = launch.processes > 1 or launch.strategy != "ddp"
    command = [sys.executable, *(torchrun if parallel else []), "-m", "tuneloop.train.fit.child", str(path)]
    last: Event | None = None
    died = ""
    with started(command, spec.device, spec.store / _ERRORS, parallel=parallel) as (process, errors):
        assert process.stdout is not None
        with _relayed_stop(watch, stop):
            for line in process.stdout:
                event = _read(line)
                if event is not None:
                    _tell(event, watch)
                    last = event if event.kind in {"done", "stopped", "error", "memory", "starved"} else last
                    died = died or (event.text if event.kind == "died" else "")  # the others die of the first
        code = process.wait()
    return _End(code, last, died or "\n".join(errors))


@contextmanager
def _relayed_stop(watch: Watch, stop: Path) -> Iterator[None]:
    """Look ten times a second whether the owner shall end; if so, ask the children to."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            try:
                watch.check()
            except TuneloopError as reason:
                write_atomically(stop, str(reason).encode())  # read while it is there, so never half
                return

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield
    finally:
        over.set()
        looker.join()


def _tell(event: Event, watch: Watch) -> None:
    if event.kind == "say":
        watch.screen.say(event.text)
    elif event.kind in {"progress", "keep"}:
        watch.screen.progress(event.text, keep=event.kind == "keep")
    elif event.kind == "metrics":
        watch.log(event.metrics, event.step)


def _read(line: str) -> Event | None:
    """A line of rank 0; anything else a library wrote is left out."""
    return Event.model_validate_json(line) if line.startswith('{"kind"') else None


def check_owner(spec: ChildSpec) -> None:
    """End when the owner asks for it or is gone.

    Raises:
        Stopped: it does, or is.
    """
    stop = spec.store / _STOP
    if stop.is_file():
        raise Stopped(stop.read_text(encoding="utf-8"))
    try:
        os.kill(spec.owner, 0)
    except ProcessLookupError:
        raise Stopped("the process that started this training is gone") from None
