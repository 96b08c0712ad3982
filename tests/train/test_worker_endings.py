"""How a worker's run ends when nothing is wrong with its request: cancelled, stopped, or without the parts it needs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from tests_support import publish_version, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.errors import TuneloopError, Unavailable
from tuneloop.registry.nouns import GateReport, RetrainingRequest, RetrainingState, Version
from tuneloop.registry.retraining.queue import MAX_ATTEMPTS
from tuneloop.train.retraining.leasing import held_lease
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag, Stopped


class _Judges(Worker):
    """A worker that finds its version trained already, by an attempt before it."""

    meanwhile: Callable[[RetrainingRequest], None]

    def _report(self, version: Version, request: RetrainingRequest) -> GateReport:
        self.meanwhile(request)
        return GateReport(model=version.model, version=version.version, champion=1, at=version.created_at, checks=())


@pytest.fixture
def waiting(registry: Registry, tmp_path: Path) -> RetrainingRequest:
    request = registry.retraining.file(retraining_request(registry.clock()), by="monitor")
    publish_version(registry, tmp_path / "v1", request_id=request.id)
    return registry.retraining.approve(request.id, by="test", reason="drift is real")


def judging(registry: Registry, meanwhile: Callable[[RetrainingRequest], None]) -> _Judges:
    settings = WorkerSettings(id="w", poll_s=0.1, lease_s=60.0)
    crew = _Judges(registry, settings, threads=0, screen=Screen(io.StringIO()), stop=StopFlag())
    crew.meanwhile = meanwhile
    return crew


def test_a_cancel_after_the_last_look_stays_and_the_worker_lives(
    registry: Registry, waiting: RetrainingRequest
) -> None:
    def cancel(request: RetrainingRequest) -> None:
        registry.retraining.cancel(request.id, by="test", reason="changed my mind")

    crew = judging(registry, cancel)
    done = crew.run_once()
    assert done is not None
    assert (done.id, done.state, done.outcome) == (waiting.id, RetrainingState.CANCELLED, "changed my mind")
    assert crew.run_once() is None


@pytest.mark.parametrize("reason", [Stopped("stopped by SIGTERM"), Unavailable("MLflow does not answer")])
def test_a_stop_or_an_outage_puts_the_request_back_and_costs_no_attempt(
    registry: Registry, waiting: RetrainingRequest, reason: TuneloopError
) -> None:
    def end(_request: RetrainingRequest) -> None:
        raise reason

    with pytest.raises(type(reason)):
        judging(registry, end).run_once()
    back = registry.retraining.get(waiting.id)
    assert (back.state, back.attempts, back.lease_owner) == (RetrainingState.QUEUED, 0, None)
    assert registry.audit.entries(waiting.id)[0].detail["note"] == str(reason)
    done = judging(registry, lambda _request: None).run_once()
    assert done is not None
    assert (done.id, done.attempts) == (waiting.id, 1)


def test_an_attempt_that_an_outage_of_the_database_ended_is_given_back_when_it_answers_again(
    registry: Registry, waiting: RetrainingRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More outages than a request has attempts, each of which the request must survive."""

    def away(*_: object, **__: object) -> None:
        raise Unavailable("the database does not answer")

    crew = judging(registry, away)
    for _ in range(MAX_ATTEMPTS + 1):
        with monkeypatch.context() as cut:
            cut.setattr(registry.retraining, "put_back", away)
            with pytest.raises(Unavailable):
                crew.run_once()
            with pytest.raises(Unavailable):
                crew.run_once()  # it first pays back what it owes, and cannot yet
        assert registry.retraining.get(waiting.id).state is RetrainingState.RUNNING
    crew.meanwhile = lambda _request: None
    done = crew.run_once()
    assert done is not None
    assert (done.id, done.state, done.attempts) == (waiting.id, RetrainingState.REJECTED, 1)


def test_an_attempt_that_another_worker_took_over_meanwhile_is_not_given_back(
    registry: Registry, waiting: RetrainingRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("the database does not answer")

    crew = judging(registry, away)
    with monkeypatch.context() as cut:
        cut.setattr(registry.retraining, "put_back", away)
        with pytest.raises(Unavailable):
            crew.run_once()
    registry.retraining.renew(registry.retraining.get(waiting.id), lease_s=0)
    taken = registry.retraining.claim("w2", lease_s=60)
    assert taken is not None
    assert crew.run_once() is None
    assert registry.retraining.get(waiting.id) == taken


def test_a_lease_that_ran_out_in_an_outage_ends_the_run_as_an_outage_does(
    registry: Registry, waiting: RetrainingRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("the database does not answer")

    running = registry.retraining.claim("w1", lease_s=60)
    assert running is not None
    assert running.id == waiting.id
    monkeypatch.setattr(registry.retraining, "renew", away)
    stop = StopFlag()
    with held_lease(registry.retraining, running, 0.1, stop):
        assert stop.wait(20)
    with pytest.raises(Unavailable, match="the lease ran out while it could not be renewed"):
        stop.check()
