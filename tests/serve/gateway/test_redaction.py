"""Text is redacted before it is stored, by the real Presidio in a process of its own; if that fails, none is."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from serve.gateway.test_answers import recorded
from serve.gateway.world import World, until
from tests_support import free_port
from tuneloop.registry.errors import Unavailable
from tuneloop.serve.gateway.records import EDGE_CHARS
from tuneloop.serve.gateway.redactor import Redactor
from tuneloop.serve.gateway.worker import START_TIMEOUT_S
from tuneloop.serve.guards import secrets

SECRET = "write to ada@example.com"
KEY = "AKIA" + "IOSFODNN7EXAMPLE"
PEM = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 3 + "-----END PRIVATE KEY-----"


def test_prompts_answers_and_corrections_are_redacted_before_they_are_stored(world: World) -> None:
    world.engine("e1", "bot@1", words=3)
    world.route((1, 10_000))
    gateway = world.gateway(record_text="redacted", record_text_chars=60, drain_s=30.0)
    got = gateway.chat(text=f"{SECRET} {KEY}", stream=True)
    request_id = got.headers["x-request-id"]
    body = {
        "request_id": request_id,
        "correction": f"Better {SECRET}\n{PEM}",
        "comment": f"{KEY}, {SECRET}",
        "label": KEY,
    }
    assert gateway.call("/v1/feedback", body).status == 201
    feedback = world.registry.traffic.feedback_for([request_id])[request_id][0]
    assert (feedback.correction, feedback.comment, feedback.label) == (
        "Better write to <EMAIL_ADDRESS>\n<PRIVATE-KEY>",
        "<AWS-KEY>, write to <EMAIL_ADDRESS>",
        "<AWS-KEY>",
    )
    record = recorded(world, request_id)
    assert record.question == "write to <EMAIL_ADDRESS> <AWS-KEY>"
    assert record.answer == '{"model":"bot@1"} "choices":[] é\n\nw0 w1 w2 '
    assert gateway.chat(text="x" * 50 + f" {KEY} {SECRET}").status == 200  # the cut goes through the key
    assert (
        until(lambda: next((r for r in world.registry.traffic.window("bot") if r.question[:1] == "x"), None)).question
        == "x" * 50 + " <AWS-KEY>"
    )

    # So much is taken out that the cut goes through what would be kept.
    lengthy = PEM.replace("MIIEvQ", "MIIEvQ" * 250)
    gone = f"{lengthy}\n" * 5 + "y" * 60
    long = "z" * (60 + EDGE_CHARS - len(gone) - 16) + gone + KEY  # of whose twenty characters sixteen are left
    assert gateway.chat(text=long + " " + SECRET).status == 200
    kept = until(lambda: next((r for r in world.registry.traffic.window("bot") if r.question[:1] in "z<"), None))
    assert KEY[:8] not in kept.question

    workers = multiprocessing.active_children()
    assert len(workers) == 1
    workers[0].kill()  # the worker dies: one record may go without its text, the next has it again
    workers[0].join(60)
    assert not workers[0].is_alive()
    first = recorded(world, gateway.chat(text=SECRET).headers["x-request-id"])
    assert (first.messages, first.answer, first.guards) == ((), None, {"redaction": "failed"})
    assert gateway.metric("tuneloop_records_without_text_total") == 1
    second = gateway.chat(text=SECRET).headers["x-request-id"]
    until(lambda: any(r.id == second for r in world.registry.traffic.window("bot")), 2 * START_TIMEOUT_S)
    assert recorded(world, second).question == "write to <EMAIL_ADDRESS>"


def test_a_worker_that_overruns_its_deadline_is_replaced() -> None:
    redactor = Redactor()
    try:
        assert redactor.redact([SECRET], 20.0) == ["write to <EMAIL_ADDRESS>"]
        with pytest.raises(Unavailable, match="no answer within"):
            redactor.redact(["call 555 1234 " * 200_000], 0.2)
    finally:
        redactor.stop()
    with pytest.raises(Unavailable, match="stopped"):
        redactor.redact([SECRET], 20.0)
    assert multiprocessing.active_children() == []


def test_no_unredacted_text_ever_reaches_the_disk_and_no_worker_outlives_a_killed_gateway(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    with world.process(free_port(), TUNELOOP_GATEWAY_RECORD_TEXT="redacted") as process:
        until(process.children)
        workers = process.children()
        assert process.address.chat(text=SECRET).status == 200
        assert b"ada@example.com" not in b"".join(files(world.home))
        process.kill()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 15)
    assert b"ada@example.com" not in b"".join(files(world.home))


def test_a_role_is_the_clients_text_too(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway(record_text="redacted")
    for role in ("user", "ada@example.com", "us\0er"):
        assert gateway.chat(messages=[{"role": role, "content": "Hello?"}]).status == 200
    records = until(lambda: len(found := world.registry.traffic.window("bot")) == 3 and found, 30)
    assert [message.role for record in records for message in record.messages] == ["user", "other", "other"]


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def test_a_private_key_that_was_cut_is_redacted_to_where_it_ends() -> None:
    cut = PEM[:80]
    assert [(one.kind, one.start, one.end) for one in secrets.find(f"so: {cut}")] == [("private-key", 4, 84)]
    in_json = r'{"private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nMIIEvQ'
    assert [one.end for one in secrets.find(in_json)] == [len(in_json)]
    encrypted = PEM.replace("-----\nMII", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\nMII", 1)
    assert [one.end for one in secrets.find(f"{encrypted} so")] == [len(encrypted)]
    [header] = secrets.find("A file begins with -----BEGIN PRIVATE KEY-----, then base64.")
    assert header.end - header.start == len("-----BEGIN PRIVATE KEY-----")
