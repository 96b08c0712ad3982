"""One process of a fit: `python -m tuneloop.train.fit.child SPEC`, alone or as a rank under torchrun.

Every rank trains; rank 0 alone speaks, one JSON line for each event, and writes checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.base import read_base
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.handed import handed_over
from tuneloop.train.fit.judging import Judging
from tuneloop.train.fit.launch import ChildSpec, Event, check_owner
from tuneloop.train.fit.memory import ValidationStarved, is_out_of_memory
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.fit.zero import held_share, join_deepspeed
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.run import AUTO
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import Stopped
from tuneloop.train.tuning import models


def _send(event: Event) -> None:
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()


class _Speaker(Screen):
    """Sends lines to the owner instead of a terminal; silent on other ranks."""

    def send(self, event: Event) -> None:
        """One line, at once."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            _send(event)

    def say(self, line: str = "") -> None:
        """A line that stays."""
        self.send(Event(kind="say", text=line))

    def progress(self, line: str, *, keep: bool) -> None:
        """A line that the next one replaces on the owner's terminal."""
        self.send(Event(kind="keep" if keep else "progress", text=line))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step."""
        self.send(Event(kind="metrics", metrics=dict(metrics), step=step))


class _Shares(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Says once what of the optimizer's state this process holds, so that sharding is seen and not believed."""

    def __init__(self, speaker: _Speaker) -> None:
        self._speaker = speaker

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        found = held_share(others["model"], others["optimizer"])
        if found is not None:
            self._speaker.say(f"sharded: this process holds the optimizer of {found[0]:,} of {found[1]:,} weights")


def run_child(spec: ChildSpec) -> int:
    """Train as the specification says; the exit code."""
    recipe = Recipe.model_validate(spec.recipe)
    speaker = _Speaker()
    models.prepare_process(spec.threads)
    if spec.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if recipe.run.launch.strategy in {"zero2", "zero3"}:
        join_deepspeed(spec.device)
    if recipe.run.launch.strategy == "fsdp" and spec.device == "cpu":
        from tuneloop.train.fit.fsdp_on_cpu import shard_on_cpus_too  # noqa: PLC0415 (changes accelerate)

        shard_on_cpus_too()
    store = CheckpointStore(spec.store, recipe.run.checkpoint.keep, speaker.say)
    known = store.newest_valid()
    micro_batch = known.state.micro_batch if known else recipe.run.micro_batch
    try:
        base = read_base(spec.base)
        tokenizer, seed = models.load_tokenizer(base), recipe.objective.head_seed(recipe.run.seed)
        loader = models.Loader(base, recipe.tuning, recipe.run.dtype, spec.device, spec.attention, seed)
        model = loader.tunable(recipe.run.seed, spec.start)
        rows, places, validation = handed_over(spec.store, on_disk=recipe.data.streaming)
        watch = Watch(speaker, speaker.log, lambda: check_owner(spec))
        judging = Judging.again(recipe.objective, spec.reward_model, base)
        made = fit(
            model,
            tokenizer,
            rows,
            recipe,
            device=spec.device,
            steps=spec.steps,
            validation=validation,
            watch=watch,
            judge=judging.judge(tokenizer, dtype=loader.dtype, device=spec.device, attention=spec.attention),
            store=store,
            resume=True,
            places=places,
            micro_batch=spec.micro_batch,
            validation_batch=spec.validation_batch,
            callbacks=(_Shares(speaker),),
        )
    except Stopped as reason:
        speaker.send(Event(kind="stopped", text=str(reason)))
    except TuneloopError as error:
        speaker.send(Event(kind="error", text=str(error)))
        return 1
    except ValidationStarved as error:
        _send(Event(kind="starved", text=str(error), step=error.rows))  # whichever rank it was
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        tried = spec.micro_batch or micro_batch
        size = recipe.run.batch_size // recipe.run.launch.processes if tried == AUTO else tried
        _send(Event(kind="memory", text=str(error).splitlines()[0], step=size))  # whichever rank it was
        return 1
    else:
        speaker.send(Event(kind="done", result=asdict(made)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run_child(ChildSpec.model_validate_json(Path(sys.argv[1]).read_bytes())))
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        _send(Event(kind="died", text=f"{type(error).__name__}: {first}"))
        raise
