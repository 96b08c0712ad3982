"""What every request passes before anything of the API is seen: token, rate, size; and what no request can break."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.api.plane import GENEROUS, Plane, is_problem, running
from tests_support import beat_gateway
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api.app import make_app
from tuneloop.registry.api.entry import network_of
from tuneloop.registry.api.health import READY_FOR_S
from tuneloop.registry.api.limits import Buckets
from tuneloop.registry.routes import promotion

WHY = {"reason": "test"}
BOT = "/v1/models/bot"


class Seconds:
    """A monotonic clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic dGwt",
        "tlt-" + "a" * 43,
        "Bearer tlt-" + "a" * 43,
        "Bearer " + "x" * 9_000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/nothing", "/v1", f"{BOT}/rollback"])
def test_without_a_valid_token_nothing_is_seen(shared_plane: Plane, authorization: str, path: str) -> None:
    answer = shared_plane.client.get(path, headers={"authorization": authorization} if authorization else {})
    assert is_problem(answer, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer realm="tuneloop"'
    assert answer.json()["detail"] == shared_plane.client.get("/v1").json()["detail"], "no failure tells from another"


def test_an_expired_and_a_revoked_token_get_the_same_answer_as_an_unknown_one(plane: Plane) -> None:
    short, _ = plane.registry.tokens.new("short", Role.ADMIN, by="t", reason="r", ttl_s=0.001)
    gone, _ = plane.registry.tokens.new("gone", Role.ADMIN, by="t", reason="r")
    plane.registry.tokens.revoke("gone", by="t", reason="r")
    answers = [
        plane.client.get("/v1/whoami", headers={"authorization": f"bearer {secret}"})
        for secret in (short, gone, "tlt-" + "a" * 43)
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    alive = {"authorization": f"bearer {plane.secrets[Role.VIEWER]}"}
    assert plane.client.get("/v1/whoami", headers=alive).status_code == 200


def test_a_token_that_asks_too_often_waits_as_long_as_it_is_told_and_others_do_not(registry: Registry) -> None:
    with running(registry, GENEROUS.model_copy(update={"rate_per_s": 2.0, "burst": 5})) as plane:
        passed = 0
        while (refused := plane.ask("GET", "/v1/whoami", Role.VIEWER)).status_code == 200:
            passed += 1
            assert passed < 200, "nobody is told to wait"
        assert plane.ask("GET", "/v1/whoami", Role.ADMIN).status_code == 200
        assert passed >= 5
        assert is_problem(refused, "rate-limited")
        time.sleep(int(refused.headers["retry-after"]))
        assert plane.ask("GET", "/v1/whoami", Role.VIEWER).status_code == 200


def test_a_flood_without_a_token_is_turned_away_and_writes_nothing_and_keeps_nobody_out(registry: Registry) -> None:
    with running(registry, GENEROUS.model_copy(update={"failures_per_minute": 6.0})) as plane:
        entries = len(registry.audit.entries())
        answers = [plane.ask("GET", "/v1/whoami", None) for _ in range(20)]
        assert [answer.status_code for answer in answers[:6]] == [401] * 6
        assert is_problem(answers[-1], "rate-limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        assert plane.ask("GET", "/v1/whoami", Role.VIEWER).status_code == 200, "from the same address"
        assert len(registry.audit.entries()) == entries


def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_its_size(shared_plane: Plane) -> None:
    large = b"x" * (GENEROUS.max_body_bytes + 1)
    assert is_problem(shared_plane.ask("POST", f"{BOT}/rollback", content=large), "too-large")

    def chunks() -> Iterator[bytes]:
        yield from (large[i : i + 4_096] for i in range(0, len(large), 4_096))

    assert is_problem(shared_plane.ask("POST", f"{BOT}/rollback", content=chunks()), "too-large")
    fits = json.dumps(WHY | {"reason": "x" * 2_001}).encode()
    assert is_problem(
        shared_plane.ask("POST", f"{BOT}/rollback", content=fits.ljust(GENEROUS.max_body_bytes)), "invalid"
    )


def test_a_body_that_does_not_arrive_ends_the_request(registry: Registry) -> None:
    with running(registry, GENEROUS.model_copy(update={"body_timeout_s": 0.3})) as plane:
        at = urlparse(plane.url)
        with socket.create_connection((at.hostname, at.port), timeout=10) as slow:
            head = f"POST {BOT}/rollback HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {plane.secrets[Role.ADMIN]}\r\n"
            slow.sendall(f"{head}content-length: 10\r\n\r\n{{".encode())
            assert slow.recv(65_536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"reason": "' + b"\xed\xa0\x80" + b'"}',
        b'{"reason": "\\ud800"}',
        b'{"reason": "a\\u0000b"}',
        b'{"reason": "   "}',
        b'{"reason": ""}',
        b'{"reason": "a\\u001bb"}',
        b'{"reason": 5}',
        b'{"reason": "r", "to_revision": 1' + b"0" * 5_000 + b"}",
        b'{"reason": "r", "to_revision": 99999999999999999999}',
        b'{"reason": "r", "to_revision": 1e400}',
        b'{"reason": "r", "to_revision": NaN}',
        b'{"reason": "r", "to_revision": -1}',
        b'{"reason": "r", "unknown": 1}',
        b'{"reason": "r", "\\ud800": 1}',
        b'{"reason": "r", "by": "somebody else"}',
        b"[" * 60_000,
        b'{"reason":' * 6_000,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_that_cannot_be_used_changes_nothing(shared_plane: Plane, body: bytes) -> None:
    before = shared_plane.registry.audit.entries()[0].id
    headers = {"content-type": "application/json"}
    assert is_problem(shared_plane.ask("POST", f"{BOT}/rollback", content=body, headers=headers), "invalid")
    assert shared_plane.registry.audit.entries()[0].id == before


@pytest.mark.parametrize(
    ("body", "sent", "detail"),
    [
        (b'{"reason": "r"}', None, "a body is JSON: send content-type: application/json"),
        (b'{"reason": "r"}', "text/plain", "a body is JSON: send content-type: application/json"),
        (
            b'{"reason": "r", "to_revison": 1}',
            "application/json",
            "body.to_revison: unknown key; did you mean 'to_revision'?",
        ),
    ],
)
def test_a_body_that_nearly_is_one_is_told_what_it_lacks(
    shared_plane: Plane, body: bytes, sent: str | None, detail: str
) -> None:
    headers = {} if sent is None else {"content-type": sent}
    answer = shared_plane.ask("POST", f"{BOT}/rollback", content=body, headers=headers)
    assert is_problem(answer, "invalid")
    assert answer.json()["detail"] == detail


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", f"{BOT}/gate-policy", {"policy": {"margins": {"a\x00": 0.1}}}),
        ("PUT", f"{BOT}/gate-policy", {"policy": {"margin": "0.1"}}),
        ("PUT", f"{BOT}/gate-policy", {"policy": {"merge": 1}}),
        ("PUT", f"{BOT}/retraining-policy", {"policy": {"recipe": "nothing.yaml"}}),
        ("PUT", f"{BOT}/route", {"arms": [{"version": 1, "weight_bp": 10_000}]}),
        ("PUT", f"{BOT}/route", {"arms": [], "expected_revision": 2}),
        ("PUT", f"{BOT}/route", {"arms": [{"version": 1, "weight_bp": 5_000}] * 2, "expected_revision": 2}),
        ("PUT", f"{BOT}/route", {"arms": [{"version": 1, "weight_bp": 9_999}], "expected_revision": 2}),
        ("PATCH", f"{BOT}/route/overrides", {"keys": {}}),
        ("PATCH", f"{BOT}/route/overrides", {"keys": {"t": 9}}),
        ("POST", f"{BOT}/versions/1/approvals", {"days": 0}),
        ("POST", f"{BOT}/versions/1/approvals", {"days": 1e9}),
        ("POST", "/v1/keys", {"owner": " "}),
        ("POST", "/v1/keys", {"owner": "x" * 201}),
        ("PUT", "/v1/owner-limits", {"owner": "x" * 201, "limits": {"streams": 2}}),
        ("POST", "/v1/keys", {"owner": "a", "models": ["NOT A NAME"]}),
        ("POST", "/v1/tokens", {"name": "token:ada", "role": "admin"}),
        ("POST", "/v1/tokens", {"name": "ada", "role": "root"}),
    ],
)
def test_a_write_that_makes_no_sense_changes_nothing(
    shared_plane: Plane, method: str, path: str, body: dict[str, object]
) -> None:
    before = shared_plane.registry.audit.entries()[0].id
    assert is_problem(shared_plane.ask(method, path, json=WHY | body), "invalid")
    assert shared_plane.registry.audit.entries()[0].id == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/BOT/route",
        "/v1/models/a%00b/route",
        "/v1/models/%ff/route",
        "/v1/models/bot%0a/route",
        f"{BOT}/versions/0",
        f"{BOT}/versions/1000000000",
        f"{BOT}/versions/one",
        "/v1/retraining/a%2500b%00",
        "/v1/audit?limit=0",
        "/v1/audit?limit=201",
        "/v1/audit?limit=" + "9" * 5_000,
        "/v1/audit?cursor=abc",
        "/v1/audit?cursor=%00",
        "/v1/audit?subject=%00",
        "/v1/audit?lmit=5",
        "/v1/audit/verification?noted=abc",
        "/v1/audit/verification?noted=" + "0" * 64,
    ],
)
def test_a_path_or_a_query_that_cannot_be_used_is_refused(shared_plane: Plane, path: str) -> None:
    assert is_problem(shared_plane.ask("GET", path), "invalid")


def test_a_misspelt_parameter_is_named(shared_plane: Plane) -> None:
    assert shared_plane.ask("GET", "/v1/audit?lmit=5").json()["detail"].endswith("did you mean limit?")


def test_methods_and_slashes_that_are_not_served_are_problems_too(shared_plane: Plane) -> None:
    answer = shared_plane.ask("DELETE", f"{BOT}/route")
    assert is_problem(answer, "method-not-allowed")
    assert answer.headers["allow"]
    assert is_problem(shared_plane.ask("GET", f"{BOT}/route/"), "not-found")


def test_health_and_the_document_need_no_token(shared_plane: Plane) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert shared_plane.ask("GET", path, None).status_code == 200
    assert shared_plane.ask("GET", "/docs", None).status_code == 404, "it would load scripts from elsewhere"


def test_damage_is_told_and_the_rest_goes_on(plane: Plane) -> None:
    with plane.registry.database.writing() as connection:
        connection.exec_driver_sql("UPDATE routes SET arms = '[]' WHERE revision = 2")
    assert is_problem(plane.ask("GET", f"{BOT}/route"), "damaged")
    found = plane.get(f"{BOT}/route/revisions")
    assert [route["revision"] for route in found["items"]] == [1]
    assert "bot 2 cannot be read" in found["unreadable"][0]


def test_a_fault_of_our_own_is_a_problem_that_tells_nothing(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of the code")

    monkeypatch.setattr(plane.registry.audit, "page", fail)
    answer = plane.ask("GET", "/v1/audit")
    assert is_problem(answer, "damaged")
    assert "secret" not in answer.text


def test_a_database_without_its_tables_is_unavailable_and_not_ready(plane: Plane) -> None:
    with plane.registry.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE tokens")
    assert is_problem(plane.ask("GET", "/v1/whoami"), "unavailable")
    time.sleep(READY_FOR_S)
    assert plane.ask("GET", "/readyz", None).status_code == 503
    assert plane.ask("GET", "/healthz", None).status_code == 200


def test_failures_are_told_in_the_log_once_a_minute(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    clock = Seconds()
    app = make_app(registry, GENEROUS, monotonic=clock)

    async def ask(times: int) -> None:
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for _ in range(times):
                assert (await client.get("/v1/whoami")).status_code == 401

    asyncio.run(ask(5))
    assert "without a valid token" not in caplog.text
    clock.now_s = 61.0
    asyncio.run(ask(5))
    told = [record.getMessage() for record in caplog.records if "without a valid token" in record.getMessage()]
    assert told == ["6 requests without a valid token, the last from 192.0.2.7"]


def test_a_gateway_that_does_not_follow_is_told_apart_from_a_change_that_was_not_made(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "APPLY_TIMEOUT_S", 0.2)
    beat_gateway(plane.registry, {"bot": 1}, id="g2")
    answer = plane.ask("POST", f"{BOT}/versions/2/promote", json=WHY)
    assert is_problem(answer, "late")
    assert "revision 3 is written" in answer.json()["detail"]
    assert plane.registry.routes.current("bot").revision == 3


def test_a_bucket_lets_through_its_burst_and_then_its_rate() -> None:
    clock = Seconds()
    buckets = Buckets(2.0, 3, clock)
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    clock.now_s = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0.0, 0.5]
    assert buckets.take("b") == 0.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.floats(0.1, 10), st.integers(1, 10))
def test_no_pattern_of_asking_gets_more_than_burst_and_rate(waits_s: list[float], rate: float, burst: int) -> None:
    clock = Seconds()
    buckets = Buckets(rate, burst, clock)
    through = 0
    for wait_s in waits_s:
        clock.now_s += wait_s
        told_s = buckets.take("a")
        through += told_s == 0.0
        assert through <= burst + rate * clock.now_s + 1e-6
        if told_s:
            clock.now_s += told_s + 1e-9
            assert buckets.take("a") == 0.0, "who waits as long as told is let through"
            through += 1


def test_buckets_take_bounded_memory() -> None:
    clock = Seconds()
    buckets = Buckets(1.0, 2, clock, most=100)
    for number in range(1_000):
        buckets.take(str(number))
    assert len(buckets) == 100
    clock.now_s = 60.0
    buckets.take("new")
    assert len(buckets) == 1, "those that are full again are thrown away"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", "unknown"),
    ],
)
def test_failures_of_one_client_are_counted_together(address: str, network: str) -> None:
    assert network_of(address) == network
