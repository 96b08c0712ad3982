"""Routes: what is written is whole, ordered and on record, on both databases."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from tests_support import beat_engine, beat_gateway, request_record, window_score
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Unavailable, Unreadable
from tuneloop.registry.nouns import Arm
from tuneloop.registry.routes.promotion import Change, promote


def _write(registry: Registry, expected: int, *arms: tuple[int, int], by: str = "ada") -> int:
    split = [Arm(version=version, weight_bp=weight) for version, weight in arms]
    return registry.routes.write("bot", split, by=by, reason="test", expected_revision=expected).revision


def test_revisions_only_grow_and_keep_their_salt(registries: Registry) -> None:
    assert _write(registries, 0, (1, 10_000)) == 1
    assert _write(registries, 1, (2, 1_000), (1, 9_000)) == 2
    newest, first = registries.routes.history("bot")
    assert (newest.revision, first.revision) == (2, 1)
    assert newest.salt == first.salt
    assert registries.routes.current("bot") == newest
    assert registries.routes.current_all() == {"bot": newest}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            """UPDATE routes SET arms = '[{"version": 1, "weight_bp": 9}]' WHERE revision = 2""",
            "all of it: ",
        ),
        ("""UPDATE routes SET arms = '{"a": "stranger"}' WHERE revision = 2""", "arms"),
        ("UPDATE routes SET arms = 'not json' WHERE revision = 2", "arms"),
        ("UPDATE routes SET at = 'yesterday' WHERE revision = 2", "at"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_hides_no_other(
    registry: Registry, caplog: pytest.LogCaptureFixture, damage: str, said: str
) -> None:
    _write(registry, 0, (1, 10_000))
    _write(registry, 1, (2, 10_000))
    other = registry.routes.write("other", [Arm(version=1, weight_bp=10_000)], by="a", reason="r", expected_revision=0)
    with registry.database.writing() as connection:
        connection.execute(sa.text(damage))
    for _ in range(2):
        found = registry.routes.current_all()
        assert found == {"other": other}
        assert f"Route bot 2 cannot be read: {said}" in found.unreadable["bot"]
    assert [record.message.count("Route bot 2") for record in caplog.records] == [1]  # said once, not at every look
    with pytest.raises(Unreadable, match="Route bot 2 cannot be read"):
        registry.routes.current("bot")


def test_one_damaged_record_or_window_hides_no_other_and_is_logged_once(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    now = registry.clock()
    registry.traffic.add_requests([request_record(number, now) for number in (1, 2, 3)])
    registry.episodes.add_score(window_score(now, id="w1"))
    registry.episodes.add_score(window_score(now, id="w2"))
    with registry.database.writing() as connection:
        connection.execute(sa.text("UPDATE requests SET status = 'odd' WHERE id = 'req-2'"))
        connection.execute(sa.text("UPDATE window_scores SET verdict = 'odd' WHERE id = 'w1'"))
    for _ in range(2):
        assert [record.id for record in registry.traffic.window("bot")] == ["req-1", "req-3"]
        assert [score.id for score in registry.episodes.scores("bot")] == ["w2"]
    told = [record.message for record in caplog.records if record.name == "tuneloop.registry.database"]
    assert [message.count("left out: ") for message in told] == [1, 1]


def test_a_key_or_a_heartbeat_that_cannot_be_read_hides_no_other_and_is_named(registries: Registry) -> None:
    _, good = registries.keys.new("team-a", by="test")
    _, bad = registries.keys.new("team-b", by="test")
    beat_engine(registries, id="e1")
    beat_engine(registries, id="e2")
    with registries.database.writing() as connection:
        connection.execute(sa.text("UPDATE api_keys SET models = '5' WHERE owner = 'team-b'"))
        connection.execute(sa.text("UPDATE engines SET state = 'asleep' WHERE id = 'e2'"))
    keys, engines = registries.keys.all(), registries.fleet.engines()
    assert [key.id for key in keys] == [good.id]
    assert [engine.id for engine in engines] == ["e1"]
    assert f"ApiKey {bad.id} cannot be read: models" in keys.unreadable[0]
    assert "EngineState e2 cannot be read: state" in engines.unreadable[0]


def test_a_gateway_whose_heartbeat_cannot_be_read_is_not_taken_to_follow(registries: Registry) -> None:
    beat_gateway(registries, {"bot": 1}, id="g1")
    beat_gateway(registries, {"bot": 1}, id="g2")
    assert registries.fleet.wait_applied("bot", 1, 1.0) == ["g1", "g2"]
    with registries.database.writing() as connection:
        connection.execute(sa.text("UPDATE gateways SET applied = '5' WHERE id = 'g2'"))
    with pytest.raises(Unavailable, match=r"do not apply it: the database.s GatewayState g2 cannot be read"):
        registries.fleet.wait_applied("bot", 1, 0.1)


def test_a_lost_race_says_who_won_and_changes_nothing(registries: Registry) -> None:
    _write(registries, 0, (1, 10_000))
    _write(registries, 1, (2, 10_000), by="grace")
    with pytest.raises(Conflict, match="grace wrote revision 2"):
        _write(registries, 1, (3, 10_000))
    assert registries.routes.current("bot").revision == 2


def test_a_race_that_was_lost_long_ago_names_who_took_ones_place_first_and_then_who_wrote_last(
    registries: Registry,
) -> None:
    for revision, by in enumerate(("ada", "grace", "eve", "mallory")):
        _write(registries, revision, (revision + 1, 10_000), by=by)
    newest = registries.routes.current("bot")
    with pytest.raises(Conflict, match=r"you saw revision 1, but grace wrote revision 2 .*mallory wrote revision 4"):
        _write(registries, 1, (9, 10_000))
    with pytest.raises(Conflict, match=r"you saw revision 1, but grace wrote revision 2 .*mallory wrote revision 4"):
        promote(registries, "bot", 9, Change("ada", "r", force=True), expected_revision=1)
    with pytest.raises(Conflict, match=r"but mallory wrote revision 4 [^;]*; look at it"):
        _write(registries, 3, (9, 10_000))
    with pytest.raises(Conflict, match="you named revision 9, and the newest is 4; look at it"):
        _write(registries, 9, (9, 10_000))
    assert registries.routes.current("bot") == newest


def test_of_many_concurrent_writers_exactly_one_wins(registries: Registry) -> None:
    _write(registries, 0, (1, 10_000))
    outcomes: list[str] = []

    def contend(version: int) -> None:
        try:
            _write(registries, 1, (version, 10_000), by=f"writer{version}")
        except Conflict:
            outcomes.append("lost")
        else:
            outcomes.append("won")

    threads = [threading.Thread(target=contend, args=(version,)) for version in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert len(registries.routes.history("bot")) == 2


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (((1, 9_000),), "sum to 9000, not 10000 basis points"),
        (((1, 6_000), (2, 6_000)), "sum to 12000"),
        (((1, 5_000), (1, 5_000)), "stands twice"),
    ],
)
def test_a_split_that_is_no_whole_is_refused_and_nothing_is_written(
    registries: Registry, arms: tuple[tuple[int, int], ...], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        _write(registries, 0, *arms)
    with pytest.raises(NotFound, match="no route yet"):
        registries.routes.current("bot")
    assert registries.audit.entries() == []


def test_every_revision_has_its_audit_record(registries: Registry) -> None:
    _write(registries, 0, (1, 10_000))
    _write(registries, 1, (2, 500), (1, 9_500))
    entries = registries.audit.entries("bot")
    assert [entry.detail["revision"] for entry in entries] == [2, 1]
    assert entries[0].detail["before"] == "1=10000"
    assert entries[0].actor == "ada"


def test_a_change_without_a_reason_is_refused(registries: Registry) -> None:
    with pytest.raises(InvalidInput, match="--reason"):
        registries.routes.write("bot", [Arm(version=1, weight_bp=10_000)], by="ada", reason=" ", expected_revision=0)
