"""A model whose second version a retraining has made, before a real gateway: where the pages about promoting begin.

Both versions are trained for real, by the recipe below on a base of 64 words, the second by the worker from what users
corrected; the gate has judged it. Gateway and controller are processes, the engines small servers of fixed behaviour:
the second version says a third more words in the same time. No verdict hangs on chance, nor on how fast a machine is.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from docs.promoting.users import Users
from serve.gateway.world import TUNELOOP, World, make_world, until, wait_ready
from small_base import WORDS, make_small_base
from tests_support import free_port, request_record, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Feedback, Message, RetrainingState
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.settings import RegistrySettings
from tuneloop.train.base import Base
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.recipe import load_recipe
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag

MODEL = "python-helper"
MACHINE = "host"  # what the pages call the one that wrote them
RECIPE = """\
base: {model: small-base}
data: {train: train.jsonl}
tuning: {rank: 4}
objective: {max_length: 32}
optim: {learning_rate: 5e-3}
run: {steps: 2, batch_size: 8, micro_batch: 8, dtype: float32, seed: 0}
evaluate: {sets: {sqlalchemy: sqlalchemy.jsonl, stdlib: stdlib.jsonl}, generate: 0}
publish: {model: python-helper}
retrain: {steps: 12, replay_rows: 60, margin: 0.02, min_rows: 10}
"""
ANSWER_S = 0.16  # of both engines
WORDS_SAID = {1: 12, 2: 16}


@contextmanager
def scene(home: Path) -> Iterator[Users]:
    """The users of such a gateway.

    Args:
        home: the state folder, with an empty registry or none.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {"TUNELOOP_HOME": str(home), "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        patch.chdir(home)
        world = make_world(RegistrySettings(home=home), stack)
        known = {"TUNELOOP_GATEWAY_ID": f"{MACHINE}-8100", "TUNELOOP_GATEWAY_POLL_S": "0.1"}
        gateway = stack.enter_context(world.process(free_port(), ready=False, **known))  # loads while versions are made
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # nothing here gains from a second
        base = make_small_base(home / "recipe" / "small-base")
        _train_the_first(world.registry, home / "recipe")
        _start_engines(world, base)
        world.registry.gates.approve(MODEL, 1, by="you", reason="the first version")
        promote(world.registry, MODEL, 1, Change("you", "the first version"))
        _train_the_second(world.registry)
        wait_ready(gateway.address, 120)
        until(world.registry.fleet.gateways, 60, "the gateway is on the list")
        stack.enter_context(_controller(home))
        yield Users(world.registry, gateway.address)


def _rows(draw: random.Random, count: int) -> list[dict[str, str]]:
    """Questions of six words, answered by the first three of them."""
    words = [word for word in WORDS if word.startswith("w")]
    asked = [draw.sample(words, 6) for _ in range(count)]
    return [{"instruction": f"please {' '.join(six)}", "output": f"good {' '.join(six[:3])} good"} for six in asked]


def _train_the_first(registry: Registry, folder: Path) -> None:
    draw = random.Random(1)
    for name, count in (("train", 120), ("sqlalchemy", 40), ("stdlib", 40)):
        lines = (json.dumps(row) + "\n" for row in _rows(draw, count))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "recipe.yaml").write_text(RECIPE)
    job = job_from_recipe(load_recipe(folder / "recipe.yaml"), registry.settings.home)
    run_job(job, registry, screen=Screen(io.StringIO()), stop=StopFlag())


def _train_the_second(registry: Registry) -> None:
    """A window of corrected answers, the request that the monitor files for it, and the worker."""
    rows, began = _rows(random.Random(2), 100), registry.clock() - timedelta(minutes=5)
    records = [
        request_record(
            number,
            began + timedelta(seconds=number),
            model=MODEL,
            messages=(Message(role="user", content=row["instruction"]),),
        )
        for number, row in enumerate(rows)
    ]
    registry.traffic.add_requests(records)
    registry.traffic.add_feedback(
        [
            Feedback(id=f"f{number}", request_id=record.id, at=record.at, thumb="down", correction=row["output"])
            for number, (row, record) in enumerate(zip(rows, records, strict=True))
        ]
    )
    window = {"window_start": records[0].at, "window_end": records[-1].at, "rows": len(rows)}
    request = retraining_request(registry.clock(), model=MODEL, recipe=f"{MODEL}@1", **window)
    registry.retraining.file(request, by="monitor")
    registry.retraining.approve(request.id, by="you", reason="the drift is real")
    worker = Worker(registry, WorkerSettings(id="worker"), threads=0, screen=Screen(io.StringIO()), stop=StopFlag())
    done = worker.run_once()
    assert done is not None
    assert done.state is RetrainingState.GATED, done.outcome


def _start_engines(world: World, base: Base) -> None:
    """An engine for each version, both of the base that they were trained on."""
    first = world.registry.versions.get(MODEL, 1)
    world.base = {"base": first.base, "base_digest": first.base_digest, "template_digest": first.template_digest}
    for version, words in WORDS_SAID.items():
        world.engine(f"e{version}", f"{MODEL}@{version}", words=words, pause_s=ANSWER_S / words)


@contextmanager
def _controller(home: Path) -> Iterator[None]:
    with (
        (home / "controller.log").open("wb") as log,
        subprocess.Popen([TUNELOOP, "controller", "--every-s", "0.2"], stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
