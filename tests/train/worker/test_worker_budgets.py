"""What a retraining may spend, and what it is thought to take."""

from __future__ import annotations

import io
from datetime import timedelta
from decimal import Decimal

import pytest

from train.worker.crew import run_states, worker
from tuneloop.registry import Registry
from tuneloop.registry.nouns import (
    RetrainingRequest,
    RetrainingRun,
    RetrainingState,
    Version,
)
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.history import history_of
from tuneloop.train.base import base_of
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.retraining.estimate import Here, estimate
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag


def test_above_a_budget_nothing_is_trained_and_a_person_may_go_beyond_it(
    registry: Registry, request_waiting: RetrainingRequest
) -> None:
    policy = RetrainingPolicy(cost_usd_per_month=Decimal("0.01"))
    registry.policies.set("bot", policy, by="ada", reason="a cent a month")
    screen = io.StringIO()
    held = worker(registry, screen=Screen(screen)).run_once()
    assert held is not None
    assert (held.state, held.attempts) == (RetrainingState.PROPOSED, 0)
    assert "an hour's price is not known: worker.usd_per_hour says it" in held.held
    assert f"retraining {held.id} is held until a person approves it" in screen.getvalue()
    assert run_states(registry) == ["FINISHED"]
    assert registry.retraining.runs("bot") == []
    registry.retraining.approve(held.id, by="ada", reason="this one is worth it")
    settings = WorkerSettings(id="w", usd_per_hour=Decimal(3600))
    dear = Worker(registry, settings, threads=0, screen=Screen(io.StringIO()), stop=StopFlag())
    done = dear.run_once()
    assert done is not None
    assert (done.result_version, done.budget_waived_by) == (2, "ada")
    (took,) = history_of([done], registry.retraining.runs("bot"), registry.clock()).requests
    assert took.cost_usd is not None
    assert took.cost_usd == pytest.approx(Decimal(repr(took.hours * 3600)), abs=Decimal("0.01"))


def test_what_the_plan_cannot_know_is_what_earlier_runs_took_or_is_not_known(
    registry: Registry, champion: Version
) -> None:
    lineage = Lineage(registry.versions, champion)
    recipe, rows = lineage.recipe(), lineage.train_rows()
    base = base_of(champion, recipe.recipe, registry.settings.home / "bases", relative_to=recipe.folder)
    here = Here(threads=0, has_gpu=True, prices=None, usd_per_hour=Decimal(2))  # a GPU that no table lists
    unknown = estimate(recipe.recipe, base, rows, [], here)
    assert (unknown.hours, unknown.usd_per_hour) == (None, Decimal(2))
    assert "no device 'this GPU'" in unknown.basis
    assert "no earlier run has made a version" in unknown.basis
    now = registry.clock()
    run = RetrainingRun(
        request_id="rt_0",
        fencing_token=1,
        model="bot",
        worker="w",
        started_at=now - timedelta(hours=3),
        ended_at=now,
        end="gated",
        devices=1,
    )
    measured = estimate(recipe.recipe, base, rows, [run], here)
    assert measured.hours == pytest.approx(3.0)
    assert "the median of earlier runs counts" in measured.basis
