"""Ranks of a fit, forked from a process that has imported everything: a run of two costs seconds, not their imports.

What torchrun does is done here by hand (its variables, a store where ranks meet); that it does it too is tested in
`test_fit_launch`. From `run_child` on all is real.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tuneloop.train.base import Base
from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.handed import hand_over
from tuneloop.train.fit.launch import ChildSpec, Event, load_weights
from tuneloop.train.fit.trainers import Labelled
from tuneloop.train.recipe import Recipe
from tuneloop.train.stopping import Stopped

_PRELOADED = ["tuneloop.train.fit.child", "tuneloop.train.fit.sft", "deepspeed", "bitsandbytes"]
_PATIENCE_S = 240.0  # for ranks that wait for each other


@dataclass(frozen=True)
class Together:
    """What several ranks made of a fit."""

    events: tuple[Event, ...]  # of rank 0
    store: CheckpointStore
    errors: str

    def told(self, metric: str) -> dict[int, float]:
        """A metric by step."""
        return {e.step: e.metrics[metric] for e in self.events if e.kind == "metrics" and metric in e.metrics}

    @property
    def said(self) -> str:
        """Every line that stays."""
        return "\n".join(event.text for event in self.events if event.kind == "say")

    def give_weights(self, model: Any) -> Any:
        """The model with what was learned, as the owner takes it over."""
        done = self.events[-1]
        assert done.kind == "done", done.text or self.errors
        found = self.store.at(done.result["weights_step"])
        assert found is not None
        load_weights(model, found.folder)
        return model


def train_together(
    recipe: Recipe,
    base: Base,
    rows: Labelled,
    folder: Path,
    *,
    steps: int,
    validation: Sequence[LabelledRow] = (),
    start: Path | None = None,
    stop_at: int | None = None,
) -> Together:
    """Train by a recipe with as many ranks as it asks for; what was trained before in this folder is gone on with.

    Args:
        stop_at: the look of rank 0, after its passes and steps, at which it alone hears that the run shall stop.
    """
    store = folder / "checkpoints"
    store.mkdir(parents=True, exist_ok=True)
    hand_over(store, rows, [f"rows:{number}" for number in range(len(rows))], validation)
    spec = ChildSpec(
        recipe=recipe.model_dump(mode="json", exclude_unset=True),
        base=base.folder,
        start=start,
        device="cpu",
        attention="sdpa",
        steps=steps,
        store=store,
        owner=os.getpid(),
        threads=1,
    )
    processes = recipe.run.launch.processes
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ranks = [
        context.Process(
            target=_rank,
            args=(number, processes, meeting.port, spec.model_dump_json(), str(folder), None if number else stop_at),
        )
        for number in range(processes)
    ]
    codes: list[int | None] = []
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(_PATIENCE_S)
        codes = [rank.exitcode for rank in ranks]  # None: it was still waiting
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    silent = [n for n in range(processes) if not (folder / f"{n}.err").is_file()]
    assert not silent, f"ranks {silent} died before they could say why; all ranks' exit codes: {codes}"
    spoken = (folder / "0.out").read_text().splitlines()
    events = tuple(Event.model_validate_json(line) for line in spoken if line.startswith('{"kind"'))
    errors = "\n".join((folder / f"{number}.err").read_text() for number in range(processes))
    return Together(events, CheckpointStore(store, recipe.run.checkpoint.keep, lambda _line: None), errors)


def _rank(number: int, processes: int, port: int, spec: str, folder: str, stop_at: int | None) -> None:
    from tuneloop.train.fit import child

    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the test keeps it
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(folder, f"{number}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if stop_at is not None:
        looks = itertools.count(1)

        def stop(_spec: ChildSpec) -> None:
            if next(looks) >= stop_at:
                raise Stopped("asked to end")

        vars(child)["check_owner"] = stop
    code = child.run_child(ChildSpec.model_validate_json(spec))
    sys.stdout.flush()
    sys.exit(code)
