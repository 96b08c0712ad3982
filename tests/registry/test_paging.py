"""Pages of growing lists: nothing is skipped or repeated, whatever is added meanwhile; no cursor breaks anything."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests_support import Clock, publish_version, request_record, retraining_request
from tuneloop.registry import Registry, overview
from tuneloop.registry.access.roles import Role
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Arm, Feedback
from tuneloop.registry.paging import Ask, Page

ARMS = (Arm(version=1, weight_bp=10_000),)


def every(page: Callable[[Ask], Page[Any]], limit: int, between: Callable[[], object] = lambda: None) -> list[Any]:
    """All the items of a list, page by page; `between` happens after each page."""
    found: list[Any] = []
    cursor = None
    while True:
        one = page(Ask(limit, cursor))
        assert len(one.items) <= limit
        found += one.items
        if one.next is None:
            return found
        assert one.items
        assert len(found) < 1_000, "the same page again and again"
        cursor = one.next
        between()


@pytest.mark.parametrize("limit", [1, 3, 7, 200])
def test_every_list_is_read_whole_and_in_order(registries: Registry, clock: Clock, limit: int) -> None:
    start = clock()
    for number in range(7):
        registries.routes.write("bot", ARMS, by="a", reason="r", expected_revision=number)
        registries.gates.approve("bot", 1, by="a", reason=f"r{number}")
        registries.keys.new(f"o{number}", by="a")
        registries.tokens.new(f"t{number}", Role.VIEWER, by="a", reason="r")
        registries.retraining.file(retraining_request(start, idempotency_key=f"{number}"), by="a")
        if number % 2:
            clock.advance(1)
    registries.traffic.add_requests([request_record(n, start + timedelta(seconds=n // 3)) for n in range(7)])
    said = [Feedback(id=f"f{n}", request_id="req-1", at=start + timedelta(seconds=n // 3)) for n in range(7)]
    registries.traffic.add_feedback(said)
    assert [r.revision for r in every(lambda ask: registries.routes.page("bot", ask), limit)] == [*range(7, 0, -1)]
    assert every(lambda ask: registries.gates.page("bot", 1, ask), limit) == registries.gates.decisions("bot", 1)
    assert every(registries.audit.page, limit) == registries.audit.entries()
    assert [k.owner for k in every(registries.keys.page, limit)][-1:] in (["o0"], ["o1"])
    assert {k.id for k in every(registries.keys.page, limit)} == {k.id for k in registries.keys.all()}
    assert [t.name for t in every(registries.tokens.page, limit)] == [f"t{n}" for n in range(7)]
    assert every(registries.retraining.page, limit) == registries.retraining.all()
    assert [r.id for r in every(lambda ask: registries.traffic.page("bot", ask), limit)] == [
        r.id for r in registries.traffic.window("bot")
    ][::-1]
    assert every(lambda ask: registries.traffic.feedback_page("req-1", ask), limit) == said


def test_what_is_added_meanwhile_is_neither_skipped_nor_repeated(registries: Registry, clock: Clock) -> None:
    for number in range(20):
        registries.keys.new(f"o{number}", by="a")
    before = [entry.id for entry in registries.audit.entries()]
    seen = every(registries.audit.page, 3, lambda: registries.keys.new("more", by="a"))
    assert [entry.id for entry in seen] == before


def test_pages_are_filtered_like_the_lists(registries: Registry) -> None:
    for number in range(4):
        registries.keys.new(f"o{number}", by="a")
        registries.tokens.new(f"t{number}", Role.VIEWER, by="a", reason="r")
    found = every(lambda ask: registries.audit.page(ask, action="token.new"), 2)
    assert [entry.subject for entry in found] == [f"token:t{n}" for n in (3, 2, 1, 0)]
    assert [e.id for e in every(lambda ask: registries.audit.page(ask, "token:t1"), 2)] == [4]


def test_a_later_page_is_searched_for_in_an_index_and_never_counted_to(registry: Registry, clock: Clock) -> None:
    registry.traffic.add_requests([request_record(n, clock()) for n in range(3)])
    for number in range(3):
        registry.keys.new(f"o{number}", by="a")
        registry.retraining.file(retraining_request(clock(), idempotency_key=f"{number}"), by="a")
    lists: list[Callable[[Ask], Page[Any]]] = [registry.audit.page, registry.retraining.page]
    lists.append(lambda ask: registry.traffic.page("bot", ask))
    plans = []
    for page in lists:
        begun, asked = page(Ask(1)), list[tuple[str, Any]]()
        listen = partial(_note, asked)
        sa.event.listen(registry.database.engine, "before_cursor_execute", listen)
        page(Ask(1, begun.next))
        sa.event.remove(registry.database.engine, "before_cursor_execute", listen)
        ((statement, parameters),) = asked
        with registry.database.reading() as connection:
            plans.append(str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()))
    assert "SEARCH audit USING INTEGER PRIMARY KEY (rowid<?)" in plans[0]
    assert "SEARCH retraining USING INDEX retraining_by_time" in plans[1]
    assert "SEARCH requests USING INDEX requests_by_model_time (model=? AND at<?)" in plans[2]


def _note(asked: list[tuple[str, Any]], *event: Any) -> None:
    asked.append((event[2], event[3]))


def test_versions_and_models_come_in_pages_too(registry: Registry, tmp_path: Path) -> None:
    for number in range(5):
        publish_version(registry, tmp_path / f"v{number}")
    publish_version(registry, tmp_path / "other", model="other")
    for limit in (1, 2, 5, 6):
        found = every(lambda ask: overview.versions_page(registry, "bot", ask), limit)
        assert [version.version for version in found] == [5, 4, 3, 2, 1]
        assert found == registry.versions.all("bot")
    lines = every(lambda ask: overview.models_page(registry, ask), 1)
    assert [(line.model, line.newest_version) for line in lines] == [("bot", 5), ("other", 1)]
    assert lines == overview.models(registry)


def test_a_version_that_is_not_ours_or_damaged_costs_no_place_on_a_page(registry: Registry, tmp_path: Path) -> None:
    for number in range(4):
        publish_version(registry, tmp_path / f"v{number}")
    client = registry.versions._client
    client.delete_model_version_tag("bot", "3", "tuneloop.version")
    client.set_model_version_tag("bot", "2", "tuneloop.version", "{")
    page = registry.versions.page("bot", Ask(2))
    assert [version.version for version in page.items] == [4, 1]
    assert page.next is None


def test_a_row_that_cannot_be_read_is_named_and_the_list_goes_on(registries: Registry) -> None:
    for number in range(3):
        registries.routes.write("bot", ARMS, by="a", reason="r", expected_revision=number)
    with registries.database.writing() as connection:
        connection.execute(sa.text("UPDATE routes SET arms = '[]' WHERE revision = 2"))
    first = registries.routes.page("bot", Ask(2))
    assert [route.revision for route in first.items] == [3]
    assert "bot 2 cannot be read" in first.unreadable[0]
    assert [route.revision for route in registries.routes.page("bot", Ask(2, first.next)).items] == [1]


def cursor(*said: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "!",
        "abc",
        cursor(),
        cursor("audit"),
        cursor("audit", 1, 2),
        cursor("routes", 1),
        cursor("audit", "1"),
        cursor("audit", True),
        cursor("audit", 1.5),
        cursor("audit", 2**63),
        cursor("audit", -1),
        cursor("audit", None),
        base64.urlsafe_b64encode(b"[" * 500).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_a_cursor_that_the_list_did_not_give_is_refused(registries: Registry, wrong: str) -> None:
    with pytest.raises(InvalidInput, match="none of audit"):
        registries.audit.page(Ask(10, wrong))


@pytest.mark.parametrize(
    "key",
    [
        ["x", "a"],
        ["2026-01-01T00:00:00", "a"],
        [5, "a"],
        ["2026-01-01T00:00:00Z", "\0"],
        ["0001-01-01T00:00:00+14:00", "a"],
    ],
)
def test_a_cursor_with_a_time_or_a_name_that_is_none_is_refused(registries: Registry, key: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="none of requests"):
        registries.traffic.page("bot", Ask(10, cursor("requests", *key)))


@given(st.text() | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_no_cursor_is_anything_but_right_or_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Ask(10, text).after("audit", int)


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_a_page_has_bounds(limit: int) -> None:
    with pytest.raises(InvalidInput, match="between 1 and 200"):
        Ask(limit)
