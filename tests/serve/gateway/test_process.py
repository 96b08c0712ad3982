"""`tuneloop gateway` as a process: started twice, stopped, killed."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path

import pytest

from serve.gateway.world import Address, World, until
from tests_support import free_port


def test_a_second_gateway_on_a_taken_port_gets_one_clear_error(world: World) -> None:
    port = free_port()
    with world.process(port), world.process(port, ready=False, TUNELOOP_GATEWAY_ID="other") as second:
        code, errors = second.wait()
    assert code == 1
    assert errors.strip().splitlines()[-1].startswith(f"tuneloop: gateway cannot listen on 127.0.0.1:{port}:")
    assert "Traceback" not in errors


def test_wrong_settings_are_named_all_at_once(world: World) -> None:
    wrong = {"TUNELOOP_GATEWAY_POLL_S": "9", "TUNELOOP_GATEWAY_RECORD_TEXT": "all"}
    with world.process(free_port(), ready=False, **wrong) as process:
        code, errors = process.wait()
    assert code == 2
    assert "[gateway] poll_s" in errors
    assert "[gateway] record_text" in errors


def ask_and_be_cut_off(gateway: Address) -> None:
    with pytest.raises((OSError, http.client.HTTPException)):
        gateway.chat(stream=True)


def test_killed_and_started_again_it_serves_again(world: World) -> None:
    engine = world.engine("e1", "bot@1", pause_s=0.05, words=1_000)
    world.route((1, 10_000))
    with world.process(free_port()) as process:
        threading.Thread(target=ask_and_be_cut_off, args=(process.address,)).start()
        until(lambda: engine.at_work == 1)
        process.kill()
        until(lambda: engine.left == 1, what="the engine learns that its client died")
        engine.pause_s, engine.words = 0.0, 1
        process.start()
        assert process.address.chat().status == 200


def test_acknowledged_feedback_survives_kill_9(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    with world.process(free_port()) as process:
        gateway = process.address
        acknowledged = []
        for _ in range(5):
            request_id = gateway.chat().headers["x-request-id"]
            body = {"request_id": f"chatcmpl-{request_id}", "score": 0.5, "thumb": "up"}
            acknowledged.append(gateway.call("/v1/feedback", body).json)
        process.kill()
    for said in acknowledged:
        stored = world.registry.traffic.feedback_for([said["request_id"]])[said["request_id"]]
        assert [(f.id, f.score, f.thumb) for f in stored] == [(said["id"], 0.5, "up")]


def test_kill_9_loses_the_newest_records_alone_and_none_that_did_not_wait_any_more(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    with world.process(free_port()) as process:
        gateway = process.address
        early = [gateway.chat().headers["x-request-id"] for _ in range(5)]
        until(lambda: gateway.metric("tuneloop_records_pending") == 0)
        late = [gateway.chat().headers["x-request-id"] for _ in range(40)]
        process.kill()
    stored = {record.id for record in world.registry.traffic.window("bot")}
    assert stored >= set(early)
    kept = [one in stored for one in late]
    assert kept == sorted(kept, reverse=True), "none was lost that was answered before one that is there"


def test_on_sigterm_streams_end_records_are_stored_and_the_gateway_leaves_the_list(world: World) -> None:
    engine = world.engine("e1", "bot@1", pause_s=0.05, words=20)
    world.route((1, 10_000))
    with world.process(free_port()) as process:
        until(world.registry.fleet.gateways)
        bodies: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: bodies.append(process.address.chat(stream=True).body)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        until(lambda: engine.at_work == 4)
        started = time.monotonic()
        code, errors = process.end()
        for thread in threads:
            thread.join()
    assert code == 0, errors
    assert time.monotonic() - started < 8
    assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
    assert [record.status for record in world.registry.traffic.window("bot")] == [200] * 4
    assert world.registry.fleet.gateways() == []
    assert "Traceback" not in errors


@pytest.mark.parametrize("in_the_way", ["home", "home/gateway", "home/gateway/gw"])
def test_a_file_where_its_folder_should_be_gets_one_clear_error(world: World, tmp_path: Path, in_the_way: str) -> None:
    file = tmp_path / "other" / in_the_way
    file.parent.mkdir(parents=True)
    file.write_text("in the way")
    with world.process(free_port(), ready=False, TUNELOOP_HOME=str(tmp_path / "other" / "home")) as process:
        code, errors = process.wait()
    assert code == 2
    assert "must be a folder this user may write" in errors
    assert "Traceback" not in errors
