"""Traffic, fleet, keys, episodes, gates and policies: what goes in comes out, once, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from tests_support import Clock, alert_episode, beat_engine, beat_gateway, request_record, window_score
from tuneloop.registry import Registry
from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Unavailable
from tuneloop.registry.guard_policy import is_sampled
from tuneloop.registry.nouns import Check, Feedback, GateReport, RequestRecord
from tuneloop.registry.paging import Ask
from tuneloop.registry.policies import RetrainingPolicy

T = TypeVar("T")


def test_a_replayed_batch_of_records_is_stored_once(registries: Registry) -> None:
    records = [request_record(i, registries.clock() + timedelta(seconds=i)) for i in range(5)]
    registries.traffic.add_requests(records)
    registries.traffic.add_requests(records)
    assert registries.traffic.window("bot") == records
    assert registries.traffic.request("req-3") == records[3]


def test_a_batch_with_a_known_record_is_stored_as_one_without_to_the_last_byte(registries: Registry) -> None:
    odd: dict[str, Any] = {"guards": {"secrets": "redact: é"}, "answer": None, "queue_ms": 0.1, "error": "'"}
    records = [request_record(n, registries.clock(), key_hash="h", total_ms=1.5, **odd) for n in range(4)]
    records[2] = records[2].model_copy(update={"messages": ()})
    registries.traffic.add_requests(records[:2])
    registries.traffic.add_requests([records[0], records[3]])  # in the other way
    registries.traffic.add_requests([records[0], records[2]])
    assert registries.traffic.window("bot") == records
    if registries.database.is_sqlite:  # which keeps what it is given
        with registries.database.reading() as connection:
            given = connection.exec_driver_sql("SELECT at, guards, total_ms, stream, answer, error FROM requests").all()
        assert len(set(map(tuple, given))) == 1
    (used,) = registries.usage.month(registries.clock())
    assert used.requests == 4


def test_a_record_made_without_checks_is_the_one_that_checks_would_make(registries: Registry) -> None:
    checked = request_record(1, registries.clock(), guards={"secrets": "redact: é"})
    made = RequestRecord.trusted(**{name: getattr(checked, name) for name in RequestRecord.model_fields})
    assert made == checked
    assert repr(made) == repr(checked)
    assert made.model_dump_json() == checked.model_dump_json()
    assert made.model_copy(update={"answer": None}) == checked.model_copy(update={"answer": None})
    with pytest.raises(ValidationError, match="frozen"):
        made.status = 500  # type: ignore[misc]
    registries.traffic.add_requests([made])
    assert registries.traffic.request(made.id) == checked


def test_windows_are_cut_by_time_version_and_count(registries: Registry) -> None:
    start = registries.clock()
    records = [request_record(i, start + timedelta(seconds=i), served_version=1 + i % 2) for i in range(10)]
    registries.traffic.add_requests(records)
    assert [r.id for r in registries.traffic.window("bot", since=start + timedelta(seconds=7))] == ["req-8", "req-9"]
    assert [r.id for r in registries.traffic.window("bot", version=2, newest=2)] == ["req-7", "req-9"]
    assert [r.id for r in registries.traffic.window("bot", oldest=1)] == ["req-0"]


def test_records_are_found_by_name_however_many_and_in_order_of_time(registries: Registry) -> None:
    records = [request_record(i, registries.clock() + timedelta(seconds=i)) for i in range(600)]
    registries.traffic.add_requests(records)
    wanted = [record.id for record in reversed(records)]
    assert registries.traffic.held([*wanted, "gone"]) == records
    assert registries.traffic.held([]) == []


def test_what_users_said_of_a_model_is_listed_newest_first_page_by_page(registries: Registry) -> None:
    now = registries.clock()
    registries.traffic.add_requests([request_record(1, now), request_record(2, now, model="other")])
    said = [
        Feedback(id=f"f{n}", request_id=f"req-{1 + (n == 2)}", at=now + timedelta(seconds=n), thumb="up")
        for n in range(4)
    ]
    registries.traffic.add_feedback([*said, Feedback(id="f9", request_id="never", at=now, thumb="up")])
    first = registries.traffic.feedback_of("bot", Ask(2))
    second = registries.traffic.feedback_of("bot", Ask(2, first.next))
    assert [[item.id for item in page.items] for page in (first, second)] == [["f3", "f1"], ["f0"]]
    assert second.next is None


def test_feedback_joins_its_request(registries: Registry) -> None:
    item = Feedback(id="f1", request_id="req-1", at=registries.clock(), thumb="down", correction="It dedents.")
    registries.traffic.add_feedback([item])
    registries.traffic.add_feedback([item])
    assert registries.traffic.feedback_for(["req-1", "req-2"]) == {"req-1": [item]}


def test_an_unknown_request_says_when_records_arrive(registries: Registry) -> None:
    with pytest.raises(NotFound, match="about a second after"):
        registries.traffic.request("nope")


def test_a_silent_engine_is_not_live(registries: Registry, clock: Clock) -> None:
    beat_engine(registries, "bot@1")
    assert [engine.id for engine in registries.fleet.serving("bot@1")] == ["e1"]
    clock.advance(11)
    assert registries.fleet.serving("bot@1") == []
    assert len(registries.fleet.engines(live_only=False)) == 1


def test_gateways_that_lag_are_named(registries: Registry) -> None:
    beat_gateway(registries, {"bot": 3})
    beat_gateway(registries, {"bot": 2}, id="g2")
    with pytest.raises(Unavailable, match=r"g2$"):
        registries.fleet.wait_applied("bot", 3, timeout_s=0.1)
    beat_gateway(registries, {"bot": 3}, id="g2")
    assert registries.fleet.wait_applied("bot", 3, timeout_s=0.1) == ["g1", "g2"]


def test_a_keys_secret_is_not_kept(registries: Registry) -> None:
    secret, key = registries.keys.new("team-a", by="test", models=["bot"])
    assert secret not in str(registries.keys.all())
    assert registries.keys.all() == [key]
    assert key.digest == key_digest(secret)


def test_revoked_and_expired_keys_are_not_usable(registries: Registry, clock: Clock) -> None:
    _, revoked = registries.keys.new("a", by="test")
    _, expiring = registries.keys.new("b", by="test", ttl_s=10)
    registries.keys.revoke(revoked.id, by="ada")
    clock.advance(11)
    assert [key.usable(clock()) for key in registries.keys.all()] == [False, False]
    assert expiring.usable(clock() - timedelta(seconds=5))


def test_whoever_judges_a_window_first_is_told_so_and_nobody_else_is(registries: Registry, clock: Clock) -> None:
    first = window_score(clock())
    assert registries.episodes.add_score(first)
    assert not registries.episodes.add_score(first.model_copy(update={"verdict": "none"}))
    assert registries.episodes.scores("bot") == [first]


def test_one_open_episode_per_problem(registries: Registry, clock: Clock) -> None:
    registries.episodes.add_score(window_score(clock()))
    first = registries.episodes.open(alert_episode(clock()))
    again = registries.episodes.open(alert_episode(clock(), id="ep2"))
    assert again == first
    over = first.model_copy(update={"state": "resolved", "resolved_at": clock()})
    registries.episodes.update(first, over, by="monitor", action="episode.resolve")
    assert registries.episodes.open(alert_episode(clock(), id="ep3")).id == "ep3"
    assert [episode.id for episode in registries.episodes.all(open_only=True)] == ["ep3"]
    assert {e.id for e in registries.episodes.all(version=1, signal="prompt_drift")} == {"ep3", first.id}
    assert registries.episodes.all(version=2) == registries.episodes.all(signal="latency") == []
    assert registries.episodes.scores("bot") == [registries.episodes.score("w1")]


def test_the_newest_correction_counts_and_a_blank_one_says_nothing(registries: Registry, clock: Clock) -> None:
    registries.traffic.add_requests([request_record(number, clock()) for number in (1, 2, 3)])
    said = (
        ("req-1", "first"),
        ("req-1", "second"),
        ("req-1", None),
        ("req-1", " \n"),
        ("req-2", "\t"),
        ("req-3", None),
    )
    items = [
        Feedback(id=f"fb{n}", request_id=request, at=clock() + timedelta(seconds=n), correction=text)
        for n, (request, text) in enumerate(said)
    ]
    registries.traffic.add_feedback(items)
    assert registries.traffic.corrections_for(["req-1", "req-2", "req-3", "req-4"]) == {"req-1": "second"}


def test_an_acknowledgement_is_not_lost_to_a_monitor_that_read_before_it(registries: Registry, clock: Clock) -> None:
    registries.episodes.add_score(window_score(clock()))
    read = registries.episodes.open(alert_episode(clock()))
    clock.advance(1)
    taken = read.model_copy(update={"state": "acknowledged", "updated_at": clock()})
    registries.episodes.update(read, taken, by="ada", action="episode.ack")
    with pytest.raises(Conflict, match=f"{read.id} has changed meanwhile"):
        registries.episodes.update(
            read, read.model_copy(update={"done": ("seen",)}), by="monitor", action="episode.window"
        )
    assert registries.episodes.get(read.id) == taken
    gone = read.model_copy(update={"id": "ep404"})
    with pytest.raises(NotFound):
        registries.episodes.update(gone, gone, by="ada", action="episode.ack")


def _all_at_once(work: Callable[[int], T], count: int = 8) -> list[T]:
    """The results of `work(0)`, `work(1)`, … from as many threads, let go together."""
    ready = threading.Barrier(count)

    def begin(number: int) -> T:
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_of_many_monitors_one_opens_the_episode_and_all_see_it(registries: Registry, clock: Clock) -> None:
    opened = _all_at_once(lambda n: registries.episodes.open(alert_episode(clock(), id=f"ep{n}")).id)
    assert len(set(opened)) == 1
    assert len(registries.episodes.all()) == 1
    assert [entry.action for entry in registries.audit.entries()] == ["episode.open"]


def test_first_heartbeats_and_approvals_at_the_same_moment_both_count(registries: Registry) -> None:
    _all_at_once(lambda n: beat_engine(registries, f"bot@{n + 1}"))
    assert [engine.id for engine in registries.fleet.engines()] == ["e1"]
    _all_at_once(lambda n: registries.gates.approve("bot", 1, by=f"person{n}", reason="looked at it"))
    assert str(registries.gates.approver("bot", 1)).startswith("person")
    assert len(registries.audit.entries("bot@1")) == 8


def test_a_key_that_could_never_be_used_is_refused(registries: Registry) -> None:
    with pytest.raises(InvalidInput, match="never be used"):
        registries.keys.new("a", by="test", ttl_s=0)
    assert registries.keys.all() == []


def test_no_gate_and_an_inconclusive_gate_approve_nothing(registries: Registry, clock: Clock) -> None:
    assert registries.gates.approver("bot", 2) is None
    for verdict, approver in (("inconclusive", None), ("fail", None), ("pass", "gate")):
        check = Check(name="perplexity", verdict=verdict, detail="")
        registries.gates.record(GateReport(model="bot", version=2, champion=1, at=clock(), checks=(check,)))
        assert registries.gates.approver("bot", 2) == approver
    registries.gates.approve("bot", 3, by="ada", reason="looked at it")
    assert registries.gates.approver("bot", 3) == "ada"


def test_a_persons_newest_decision_goes_before_the_gates_until_it_expires(registries: Registry, clock: Clock) -> None:
    gates, check = registries.gates, Check(name="perplexity", verdict="pass", detail="")
    gates.approve("bot", 2, by="ada", reason="for the test week", ttl_s=60)
    assert gates.approver("bot", 2) == "ada"
    clock.advance(60)
    assert gates.approver("bot", 2) is None
    assert "the approval by ada expired at 2026-11-01 12:01 UTC, and no gate has judged it" in gates.why_not("bot", 2)
    gates.record(GateReport(model="bot", version=2, champion=1, at=clock(), checks=(check,)))
    assert gates.approver("bot", 2) == "gate"
    gates.revoke("bot", 2, by="grace", reason="riddles")
    assert gates.approver("bot", 2) is None
    gates.record(GateReport(model="bot", version=2, champion=1, at=clock(), checks=(check,)))
    assert gates.approver("bot", 2) is None, "a person said no; a person says yes again"
    gates.approve("bot", 2, by="ada", reason="mended")
    assert gates.approver("bot", 2) == "ada"
    gates.revoke("bot", 2, by="grace", reason="riddles again")
    gates.approve("bot", 2, by="ada", reason="for an hour", ttl_s=3_600)
    assert gates.approver("bot", 2) == "ada"
    clock.advance(3_600)
    assert gates.approver("bot", 2) is None, "the revocation stands again"
    assert "was revoked by grace: riddles again" in gates.why_not("bot", 2)
    assert [decided.granted for decided in gates.decisions("bot", 2)] == [True, False, True, False, True]
    with pytest.raises(InvalidInput, match="an approval that expires after 0 days can never be used"):
        gates.approve("bot", 2, by="ada", reason="why", ttl_s=0)
    with pytest.raises(InvalidInput, match="revoking an approval needs --by and --reason"):
        gates.revoke("bot", 2, by="ada", reason=" ")
    assert len(registries.audit.entries("bot@2")) == 7


def test_a_gate_without_checks_is_inconclusive(clock: Clock) -> None:
    assert GateReport(model="bot", version=1, champion=None, at=clock(), checks=()).verdict == "inconclusive"


def test_the_newest_policy_counts(registries: Registry) -> None:
    assert registries.policies.get("bot", RetrainingPolicy) == RetrainingPolicy()
    registries.policies.set("bot", RetrainingPolicy(min_rows=5), by="ada", reason="small team")
    registries.policies.set("bot", RetrainingPolicy(min_rows=9), by="ada", reason="more")
    assert registries.policies.get("bot", RetrainingPolicy).min_rows == 9
    assert registries.policies.get("other", RetrainingPolicy) == RetrainingPolicy()


def test_feedback_from_another_key_does_not_count(registries: Registry) -> None:
    registries.traffic.add_requests([request_record(1, registries.clock(), api_key="key_1")])
    own, other = (
        Feedback(id=k, request_id="req-1", at=registries.clock(), score=0.5, api_key=k) for k in ("key_1", "key_2")
    )
    registries.traffic.add_feedback([own, other])
    assert registries.traffic.feedback_for(["req-1"]) == {"req-1": [own]}


def test_people_are_shown_a_share_of_what_is_sampled_and_everybody_the_same(registries: Registry) -> None:
    ids = [f"req_{number:024x}" for number in range(2_000)]
    drawn = {one for one in ids if is_sampled(one, 1_000)}
    assert (len(drawn), min(drawn)) == (191, ids[20])  # as every gateway and every run draws
    assert drawn < {one for one in ids if is_sampled(one, 5_000)}
    assert all(is_sampled(one, 10_000) for one in ids)
    now = registries.clock()
    noted: tuple[dict[str, str], ...] = (
        {"injection": "sample: override"},
        {"injection": "pass: override"},
        {"topics": "flag: sample: x"},
        {},
    )
    registries.traffic.add_requests([request_record(n, now, guards=guards) for n, guards in enumerate(noted)])
    assert [one.id for one in registries.traffic.window("bot", sampled=True)] == ["req-0"]
