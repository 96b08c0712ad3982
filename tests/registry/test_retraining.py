"""The retraining queue: filed once, run by one worker at a time, never stepped around."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests_support import Clock, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, Refused
from tuneloop.registry.nouns import RetrainingRequest, RetrainingState
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.queue import ENDED, MAX_ATTEMPTS, NEXT_STATES, RetrainingQueue
from tuneloop.registry.tables import retraining

S = RetrainingState


def _queued(registry: Registry) -> RetrainingRequest:
    request = registry.retraining.file(retraining_request(registry.clock()), by="monitor")
    return registry.retraining.approve(request.id, by="ada", reason="yes")


def test_filed_twice_it_is_the_same_request(registries: Registry) -> None:
    first = registries.retraining.file(retraining_request(registries.clock()), by="monitor")
    again = registries.retraining.file(retraining_request(registries.clock()), by="monitor")
    assert first.id == again.id
    assert len(registries.retraining.all()) == 1


def test_of_many_workers_one_claims(registries: Registry) -> None:
    _queued(registries)
    claimed: list[RetrainingRequest] = []

    def work(name: str) -> None:
        if (request := registries.retraining.claim(name, lease_s=60)) is not None:
            claimed.append(request)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 1


def test_as_many_workers_as_requests_each_get_one(registries: Registry) -> None:
    for number in range(6):
        request = retraining_request(registries.clock(), idempotency_key=f"k{number}")
        registries.retraining.approve(registries.retraining.file(request, by="monitor").id, by="ada", reason="yes")
    ready = threading.Barrier(6)

    def work(number: int) -> str:
        ready.wait()
        claimed = registries.retraining.claim(f"w{number}", lease_s=60)
        return claimed.id if claimed else "nothing"

    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(work, range(6)))
    assert sorted(claimed) == sorted(request.id for request in registries.retraining.all())


def test_a_result_that_arrives_while_another_worker_takes_over_is_refused(registries: Registry) -> None:
    """The old worker looks before the take-over is committed and writes after it: it must see the newer token."""
    _queued(registries)
    running = registries.retraining.claim("w1", lease_s=60)
    assert running is not None
    with ThreadPoolExecutor() as pool:
        with registries.database.writing() as connection:
            connection.execute(sa.update(retraining).values(fencing_token=2, lease_owner="w2"))
            late = pool.submit(
                registries.retraining.finish, running, RetrainingState.GATED, by="w1", outcome="pass", result_version=2
            )
            time.sleep(0.3)  # long enough for it to look; it cannot write before this transaction ends
        with pytest.raises(Conflict, match="took it over"):
            late.result(timeout=20)
    assert registries.retraining.get(running.id).state == "running"


def test_a_dead_workers_request_goes_to_the_next_and_the_dead_ones_result_is_refused(
    registries: Registry, clock: Clock
) -> None:
    _queued(registries)
    first = registries.retraining.claim("w1", lease_s=30)
    assert first is not None
    assert registries.retraining.claim("w2", lease_s=30) is None
    clock.advance(31)
    second = registries.retraining.claim("w2", lease_s=30)
    assert second is not None
    assert (second.id, second.fencing_token) == (first.id, first.fencing_token + 1)
    with pytest.raises(Conflict, match="lease of w1 is lost"):
        registries.retraining.renew(first, lease_s=30)
    with pytest.raises(Conflict, match="took it over"):
        registries.retraining.finish(first, RetrainingState.GATED, by="w1", outcome="pass", result_version=2)
    done = registries.retraining.finish(second, RetrainingState.GATED, by="w2", outcome="pass", result_version=2)
    assert (done.state, done.result_version, done.lease_owner) == ("gated", 2, None)


def test_a_lease_by_a_clock_that_was_a_day_ahead_holds_nobody_off(registries: Registry, clock: Clock) -> None:
    _queued(registries)
    first = registries.retraining.claim("w1", lease_s=30)
    assert first is not None
    clock.advance(-3_600)
    assert registries.retraining.claim("w2", lease_s=30) is None, "no longer than a lease may last"
    clock.advance(-23 * 3_600)
    second = registries.retraining.claim("w2", lease_s=30)
    assert second is not None
    assert (second.id, second.fencing_token) == (first.id, first.fencing_token + 1)
    with pytest.raises(Conflict, match="lease of w1 is lost"):
        registries.retraining.renew(first, lease_s=30)


def test_a_request_that_kills_its_workers_is_given_up(registries: Registry, clock: Clock) -> None:
    request = _queued(registries)
    for attempt in range(MAX_ATTEMPTS):
        assert registries.retraining.claim(f"w{attempt}", lease_s=10) is not None
        clock.advance(11)
    assert registries.retraining.claim("w9", lease_s=10) is None
    assert registries.retraining.get(request.id).state == "failed"


def test_the_last_worker_of_a_request_that_was_given_up_hears_so_when_it_finishes(
    registries: Registry, clock: Clock
) -> None:
    _queued(registries)
    for attempt in range(MAX_ATTEMPTS):
        slow = registries.retraining.claim(f"w{attempt}", lease_s=10)
        clock.advance(11)
    assert slow is not None
    assert registries.retraining.claim("w9", lease_s=10) is None
    with pytest.raises(Conflict, match="it was given up; this run's result is not recorded"):
        registries.retraining.finish(slow, RetrainingState.GATED, by="w2", outcome="pass", result_version=2)
    with pytest.raises(Conflict, match="it was given up"):
        registries.retraining.put_back(slow, by="w2", reason="stopped")
    ended = registries.retraining.get(slow.id)
    assert (ended.state, ended.result_version, ended.lease_owner) == ("failed", None, None)


def test_a_cancelled_run_loses_its_lease(registries: Registry) -> None:
    _queued(registries)
    running = registries.retraining.claim("w1", lease_s=60)
    assert running is not None
    registries.retraining.cancel(running.id, by="ada", reason="wrong data")
    with pytest.raises(Conflict):
        registries.retraining.renew(running, lease_s=60)


def test_the_result_of_a_run_that_was_cancelled_after_its_last_look_is_a_conflict(registries: Registry) -> None:
    """A worker lives on from a Conflict; that a cancelled request cannot become gated would end it."""
    _queued(registries)
    running = registries.retraining.claim("w1", lease_s=60)
    assert running is not None
    registries.retraining.cancel(running.id, by="ada", reason="wrong data")
    with pytest.raises(Conflict, match="it was cancelled; this run's result is not recorded"):
        registries.retraining.finish(running, RetrainingState.GATED, by="w1", outcome="pass", result_version=2)
    assert registries.retraining.get(running.id).state == "cancelled"


def test_a_request_that_was_put_back_lost_no_attempt_and_waits_behind_the_others(
    registries: Registry, clock: Clock
) -> None:
    first = _queued(registries)
    stopped: list[RetrainingRequest] = []
    for attempt in range(MAX_ATTEMPTS + 1):
        clock.advance(1)
        running = registries.retraining.claim("w1", lease_s=60)
        assert running is not None
        assert (running.id, running.attempts) == (first.id, 1), f"after {attempt} stops in order"
        stopped.append(running)
        back = registries.retraining.put_back(running, by="w1", reason="stopped by SIGTERM")
        assert (back.state, back.attempts, back.lease_owner, back.lease_until) == ("queued", 0, None, None)
    with pytest.raises(Conflict):
        registries.retraining.put_back(stopped[-1], by="w1", reason="stopped by SIGTERM")
    clock.advance(-0.5)
    other = registries.retraining.file(retraining_request(clock(), idempotency_key="other"), by="monitor")
    registries.retraining.approve(other.id, by="ada", reason="yes")
    claimed = [registries.retraining.claim(name, lease_s=60) for name in ("w1", "w2")]
    assert [request.id for request in claimed if request is not None] == [other.id, first.id]


def test_a_request_that_cannot_be_read_is_left_out_and_said(
    registry: Registry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = _queued(registry)
    with registry.database.writing() as connection:  # SQLite takes a word where a number belongs
        connection.exec_driver_sql("UPDATE retraining SET rows = 'many'")
    clock.advance(1)
    good = registry.retraining.file(retraining_request(clock(), idempotency_key="good"), by="monitor")
    registry.retraining.approve(good.id, by="ada", reason="yes")
    claimed = registry.retraining.claim("w1", lease_s=60)
    assert claimed is not None
    assert claimed.id == good.id
    assert f"RetrainingRequest {damaged.id} cannot be read: rows" in caplog.text
    assert registry.retraining.claim("w2", lease_s=60) is None


@pytest.mark.parametrize("state", sorted(ENDED))
def test_what_has_ended_stays_ended_but_for_what_failed_and_is_tried_again(
    registry: Registry, state: RetrainingState
) -> None:
    assert NEXT_STATES[state] == (frozenset({S.APPROVED}) if state is S.FAILED else frozenset())
    request = registry.retraining.file(retraining_request(registry.clock(), state=state), by="monitor")
    with pytest.raises(Refused, match="cannot become cancelled"):
        registry.retraining.cancel(request.id, by="ada", reason="late")


Act = Callable[[RetrainingQueue, RetrainingRequest], object]
# What each act makes of a request, and in which states it may: every pair that is not here is refused.
ACTS: dict[str, tuple[Act, dict[RetrainingState, RetrainingState]]] = {
    "approve": (lambda queue, r: queue.approve(r.id, by="ada", reason="r"), {S.PROPOSED: S.QUEUED}),
    "reject": (
        lambda queue, r: queue.reject(r.id, by="ada", reason="r"),
        {S.PROPOSED: S.REJECTED, S.APPROVED: S.REJECTED},
    ),
    "retry": (lambda queue, r: queue.retry(r.id, by="ada", reason="r"), {S.FAILED: S.QUEUED}),
    "cancel": (
        lambda queue, r: queue.cancel(r.id, by="ada", reason="r"),
        dict.fromkeys((S.PROPOSED, S.APPROVED, S.QUEUED, S.RUNNING, S.GATED), S.CANCELLED),
    ),
    "put back": (lambda queue, r: queue.put_back(r, by="w1", reason="r"), {S.RUNNING: S.QUEUED}),
    "gated": (lambda queue, r: queue.finish(r, S.GATED, by="w1", outcome="o"), {S.RUNNING: S.GATED}),
    "failed": (lambda queue, r: queue.finish(r, S.FAILED, by="w1", outcome="o"), {S.RUNNING: S.FAILED}),
    "shipped": (lambda queue, r: queue.finish(r, S.SHIPPED, by="w1", outcome="o"), {S.GATED: S.SHIPPED}),
    "rejected": (
        lambda queue, r: queue.finish(r, S.REJECTED, by="w1", outcome="o"),
        dict.fromkeys((S.RUNNING, S.GATED), S.REJECTED),
    ),
    "approved": (lambda queue, r: queue.finish(r, S.APPROVED, by="w1", outcome="o"), {}),
}


@pytest.mark.parametrize("state", list(RetrainingState))
@pytest.mark.parametrize("act", ACTS)
def test_every_act_in_every_state_does_what_the_table_says_or_nothing(
    registry: Registry, act: str, state: RetrainingState
) -> None:
    request = registry.retraining.file(retraining_request(registry.clock(), state=state), by="monitor")
    do, allowed = ACTS[act]
    if state in allowed:
        do(registry.retraining, request)
        assert registry.retraining.get(request.id).state == allowed[state]
    else:
        with pytest.raises(Refused):
            do(registry.retraining, request)
        assert registry.retraining.get(request.id) == request
        assert [entry.action for entry in registry.audit.entries(request.id)] == ["retraining.file"]


def test_what_nobody_decides_about_expires_and_what_was_decided_does_not(registries: Registry, clock: Clock) -> None:
    queue = registries.retraining
    filed = {
        key: queue.file(retraining_request(clock(), idempotency_key=key, model=model), by="monitor").id
        for key, model in (("old", "bot"), ("other", "other"), ("approved", "bot"))
    }
    registries.policies.set("bot", RetrainingPolicy(expires_s=3600), by="ada", reason="an hour")
    queue.approve(filed["approved"], by="ada", reason="yes")
    clock.advance(3599)
    queue.expire(by="monitor")
    assert queue.get(filed["old"]).state == "proposed"
    clock.advance(1)
    late = queue.file(retraining_request(clock(), idempotency_key="late"), by="monitor")
    claimed = queue.claim("w1", lease_s=60)  # a worker's look ends it as well as the monitor's
    assert claimed is not None
    assert claimed.id == filed["approved"]
    states = {key: queue.get(request_id).state for key, request_id in filed.items()}
    assert states == {"old": "expired", "other": "proposed", "approved": "running"}
    assert queue.get(filed["old"]).outcome == "nobody decided within 0.0416667 days"
    assert queue.get(late.id).state == "proposed"
    entry = registries.audit.entries(filed["old"])[0]
    assert (entry.action, entry.actor) == ("retraining.expired", "w1")


def test_a_failed_request_is_tried_again_as_the_same_request_with_all_its_attempts(
    registries: Registry, clock: Clock
) -> None:
    request = _queued(registries)
    queue = registries.retraining
    for attempt in range(MAX_ATTEMPTS):
        assert queue.claim(f"w{attempt}", lease_s=10) is not None
        clock.advance(11)
    assert queue.claim("w9", lease_s=10) is None
    with pytest.raises(Refused, match=f"`tuneloop retraining retry {request.id}"):
        queue.approve(request.id, by="ada", reason="again")
    again = queue.retry(request.id, by="ada", reason="the disk was full")
    assert (again.state, again.attempts, again.outcome) == ("queued", 0, "")
    assert queue.file(retraining_request(clock()), by="monitor").id == request.id, "twice filed is still the same"
    claimed = queue.claim("w1", lease_s=10)
    assert claimed is not None
    assert (claimed.id, claimed.attempts) == (request.id, 1)


def test_an_unapproved_request_does_not_run(registries: Registry) -> None:
    registries.retraining.file(retraining_request(registries.clock()), by="monitor")
    assert registries.retraining.claim("w1", lease_s=60) is None


def test_every_move_is_on_record(registries: Registry) -> None:
    request = _queued(registries)
    actions = [entry.action for entry in registries.audit.entries(request.id)]
    assert actions == ["retraining.queued", "retraining.approved", "retraining.file"]
