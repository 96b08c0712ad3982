"""What is older than a model's retention policy allows goes, once a day; everything else stays as it is."""

from __future__ import annotations

import json
import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from pydantic import ValidationError

from registry.aged import DAY, MONTH, keep, retain, said, stored, texts, told
from registry.mortal import begun, die_before_write, ended
from registry.verbs import Verb
from tests_support import Clock, alert_episode, request_record, retraining_request, window_score
from tuneloop.registry import Registry, retention
from tuneloop.registry.client_ids import WAITING
from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.exclusive import alone
from tuneloop.registry.retention_policy import RetentionPolicy
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import BLANK, policies


def test_texts_go_first_and_records_later_and_what_is_younger_stays(registries: Registry, clock: Clock) -> None:
    for days in (100, 91, 89, 31, 29, 0):
        stored(registries, days)
    usage = registries.usage.month(clock() - 31 * DAY, keys=["key_1"])
    assert usage
    retain(registries)
    assert texts(registries)["requests, blank"] == set(), "without a policy all is kept"

    keep(registries, MONTH)
    retain(registries)
    young, blank = {"req-29", "req-0"}, {"req-89", "req-31"}
    copies = {f"req-{n + 10_000}" for n in (29, 0)}, {f"req-{n + 10_000}" for n in (89, 31)}
    assert texts(registries) == {
        "requests": young,
        "requests, blank": blank,
        "shadow_requests": copies[0],
        "shadow_requests, blank": copies[1],
        "feedback": young,
        "feedback, blank": blank,
    }
    was = registries.traffic.request("req-31")
    assert (was.status, was.error, was.total_ms, was.key_hash) == (400, BLANK, 100.0 + 31 % 7, "h31")
    assert registries.traffic.feedback_for(["req-31"])["req-31"][0].thumb == "down"
    assert registries.usage.month(clock() - 31 * DAY, keys=["key_1"]) == usage
    once = {"requests": 2, "copies": 2, "feedback": 2, "texts of requests": 2, "texts of copies": 2}
    assert told(registries) == [once | {"texts of feedback": 2}]


def test_a_days_second_pass_takes_nothing_a_new_policy_at_once_and_the_next_day_what_came_late(
    registries: Registry, clock: Clock
) -> None:
    keep(registries, MONTH)
    stored(registries, 50)
    retain(registries)
    stored(registries, 40)  # a gateway's disk, brought in
    retain(registries)
    assert "req-40" in texts(registries)["requests"]
    assert len(told(registries)) == 1, "one line a day"
    clock.advance(DAY.total_seconds())
    retain(registries)
    assert texts(registries)["requests"] == set()
    stored(registries, 20)
    keep(registries, RetentionPolicy(text_days=10))
    retain(registries)
    retain(registries)
    assert texts(registries)["requests"] == set()
    assert [one["texts of requests"] for one in told(registries)] == [1, 1, 1]
    clock.advance(DAY.total_seconds())
    retain(registries)
    assert len(told(registries)) == 3, "of a pass that took nothing there is no line"


def test_a_models_own_policy_counts_before_that_of_every_other(registries: Registry) -> None:
    for model in ("bot", "cat"):
        stored(registries, 50, model)
    keep(registries, MONTH)
    keep(registries, RetentionPolicy(), "cat")
    retain(registries)
    assert texts(registries)["requests"] == {"req-1050"}
    assert texts(registries)["feedback"] == {"req-1050"}


def test_feedback_that_names_no_request_on_record_goes_by_the_strictest_policy(
    registries: Registry, clock: Clock
) -> None:
    keep(registries, RetentionPolicy(text_days=5), "cat")
    keep(registries, MONTH, "bot")
    for number, days in enumerate((91, 6, 4)):
        registries.traffic.add_feedback([said(f"{WAITING}{number}", clock() - days * DAY)])
    retain(registries)
    found = texts(registries)
    assert (found["feedback"], found["feedback, blank"]) == ({f"{WAITING}2"}, {f"{WAITING}1"})
    assert told(registries, EVERY_MODEL) == [{"feedback": 1, "texts of feedback": 1}]


def test_examples_are_blanked_by_the_age_of_their_requests(registries: Registry, clock: Clock) -> None:
    old, young = stored(registries, 31), stored(registries, 29)
    examples = [{"request_id": of, "question": f'"question": "of {of}', "weight": 1.0} for of in (old, young)]
    spans = {"window_start": clock() - 31 * DAY, "window_end": clock() - 29 * DAY, "detail": {"examples": examples}}
    registries.episodes.add_score(window_score(clock(), **spans))
    registries.episodes.add_score(window_score(clock(), id="w2", **spans | {"window_start": clock() - 29 * DAY}))
    registries.episodes.open(alert_episode(clock(), evidence={"signals": {"latency": {"examples": examples}}}))
    keep(registries, MONTH)
    retain(registries)
    for shown in (registries.episodes.score("w1").detail, registries.episodes.get("ep1").evidence):
        assert (f"of {old}" in str(shown), f"of {young}" in str(shown), BLANK in str(shown)) == (False, True, True)
    assert registries.episodes.score("w2").detail == {"examples": examples}, "none of its requests is so old"
    clock.advance(2 * DAY.total_seconds())
    retain(registries)
    assert [one["windows and episodes with examples"] for one in told(registries)] == [2, 3]
    clock.advance(DAY.total_seconds())
    retain(registries)
    assert len(told(registries)) == 2, "what is blank is not looked at again"


def plan(registry: Registry, statement: str, parameters: Any) -> str:
    """How the database would find the rows; PostgreSQL without the indexes that in a small table are as good."""
    with registry.database.reading() as connection:
        if registry.database.is_sqlite:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        else:
            for setting in ("enable_seqscan", "enable_bitmapscan"):
                connection.exec_driver_sql(f"SET LOCAL {setting} = off")
            others = "requests_by_model_time, requests_by_version_time, shadow_requests_by_version_time, ix_feedback_at"
            others += ", shadow_requests_by_model_time, window_scores_by_stream, ix_episodes_model"
            connection.exec_driver_sql(f"DROP INDEX {others}")  # until this reading ends
            for table in ("window_scores", "episodes"):
                connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        return "\n".join(str(row) for row in rows)


def test_a_pass_is_many_short_transactions_and_reads_nothing_of_what_is_done(
    registries: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for days in range(31, 36):
        stored(registries, days)
    keep(registries, RetentionPolicy(text_days=30))
    sizes: list[int] = []
    indexes = {table: f"{table}_with_text" for table in ("requests", "shadow_requests", "feedback")}
    indexes |= {table: f"{table}_with_questions" for table in ("window_scores", "episodes")}
    looks: dict[str, tuple[str, Any]] = {}

    def counted(_connection: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("UPDATE requests"):
            sizes.append(cursor.rowcount)
        for table in indexes:
            if statement.startswith(f"SELECT {table}.id") and ("IS NOT NULL" in statement or "replace(" in statement):
                looks[table] = statement, parameters

    sa.event.listen(registries.database.engine, "after_cursor_execute", counted)
    retain(registries)
    sa.event.remove(registries.database.engine, "after_cursor_execute", counted)
    assert sizes == [2, 2, 1]
    for table, index in indexes.items():
        assert index in plan(registries, *looks[table]), "an index that holds nothing that is blank"


def _end_of(url: str, home: Path, at: datetime, write: int) -> None:
    with Registry.open(RegistrySettings(home=home, database_url=url), clock=lambda: at) as registry:
        retention.BATCH = 1
        die_before_write(write)
        retain(registry)


@pytest.mark.parametrize("write", [1, 2, 4, 7, 10])
def test_a_pass_that_is_killed_is_gone_on_with_by_the_next(registries: Registry, clock: Clock, write: int) -> None:
    for days in (91, 31):
        stored(registries, days)
    keep(registries, MONTH)
    database = registries.database
    url = "" if database.is_sqlite else database.url.render_as_string(hide_password=False)
    dead = begun(_end_of, url, registries.settings.home, clock(), write)
    assert ended(dead) == -signal.SIGKILL
    left = texts(registries)
    assert left["requests"] | left["shadow_requests"] | left["feedback"], "it was not through"
    retain(registries)
    assert texts(registries) == {
        "requests": set(),
        "requests, blank": {"req-31"},
        "shadow_requests": set(),
        "shadow_requests, blank": {"req-10031"},
        "feedback": set(),
        "feedback, blank": {"req-31"},
    }
    assert registries.audit.verify().faults == ()


def test_of_two_controllers_one_takes_it_and_both_count_each_row_once(registries: Registry, clock: Clock) -> None:
    for days in range(31, 61):
        stored(registries, days)
    keep(registries, RetentionPolicy(text_days=30))
    with alone(registries.database, "retention"), Registry.open(registries.settings, clock=clock) as other:
        retain(other)
    assert told(registries) == [], "somebody else is at it"

    def turn() -> None:
        with Registry.open(registries.settings, clock=clock) as other:
            Controller(other).turn()

    both = [threading.Thread(target=turn) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one["texts of requests"] for one in told(registries)] == [30]


def test_a_pass_that_is_told_to_end_ends_between_two_batches_and_the_next_goes_on(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    for days in (31, 32, 33):
        stored(registry, days)
    keep(registry, RetentionPolicy(text_days=30))
    looks = iter([False, False, False])
    retain(registry, lambda: next(looks, True))
    assert told(registry) == [{"texts of requests": 2}]
    retain(registry)
    assert told(registry)[1]["texts of requests"] == 1


def test_an_open_retraining_request_holds_no_text_back(registries: Registry, clock: Clock) -> None:
    """It finds less than it was filed with: the worker counts what it learns, and refuses to learn from nothing."""
    old, young = stored(registries, 31), stored(registries, 29)
    span = {"window_start": clock() - 40 * DAY, "window_end": clock()}
    registries.retraining.file(retraining_request(clock(), **span), by="monitor")
    keep(registries, MONTH)

    def corrected() -> list[str]:
        found = registries.traffic.corrections("bot", since=span["window_start"], until=clock(), by=clock())
        return [record.id for record, _ in found]

    late = registries.clock() - 31 * DAY
    registries.traffic.add_requests([request_record(7, late)])
    registries.traffic.add_feedback([said("req-7", clock() - DAY)])
    counted = {"since": span["window_start"], "until": clock()}
    assert corrected() == [old, "req-7", young]
    assert registries.traffic.corrected("bot", **counted) == 3
    retain(registries)
    assert corrected() == ["req-7", young], "the one's question has gone: nothing to learn from"
    assert registries.traffic.corrected("bot", **counted) == 1


def test_by_a_policy_that_cannot_be_read_nothing_is_deleted_and_that_is_said(registry: Registry) -> None:
    for model in ("bot", "cat"):
        stored(registry, 50, model)
    keep(registry, MONTH)
    keep(registry, MONTH, "bot")
    with registry.database.writing() as connection:
        connection.execute(sa.update(policies).where(policies.c.model == "bot").values(body={"text_days": "few"}))
    with pytest.raises(Unreadable, match=r"tuneloop retention bot --set FILE"):
        retain(registry)
    assert texts(registry)["requests"] == {"req-50"}, "all else was"


@pytest.mark.parametrize("days", [{"text_days": 31, "record_days": 30}, {"text_days": 0}, {"record_days": 1.5}])
def test_a_policy_that_means_nothing_is_refused(days: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetentionPolicy.model_validate(days)


def test_the_verb_sets_and_shows_it_for_a_model_and_for_every_other(
    verb: Verb, lived_in: Registry, tmp_path: Path
) -> None:
    (tmp_path / "days.yaml").write_text("text_days: 30\n")
    (tmp_path / "wrong.yaml").write_text("text_days: 30\nrecord_days: 10\n")
    who: tuple[str, ...] = ("--by", "ada", "--reason", "what the law asks for")
    nothing = {"text_days": None, "record_days": None}
    assert json.loads(verb("retention", "bot", "--json")[1]) == nothing
    code, text, _ = verb("retention", "--set", str(tmp_path / "days.yaml"), *who)
    assert (code, yaml.safe_load(text)) == (0, {"text_days": 30, "record_days": None})
    assert json.loads(verb("retention", "bot", "--json")[1])["text_days"] == 30, "it has none of its own"
    code, _, error = verb("retention", "bot", "--set", str(tmp_path / "wrong.yaml"), *who)
    assert (code, "record_days 10 is less than text_days 30" in error) == (2, True)
    assert verb("retention", "bott", "--json")[0] == 2
    assert lived_in.audit.entries(EVERY_MODEL, action="policy.retention")[0].detail["policy"] == {"text_days": 30}
