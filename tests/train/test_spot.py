"""A spot notice ends a run in order, whichever provider gives it; its metadata service is a real server here."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from tuneloop.train.screen import Screen
from tuneloop.train.spot import Provider, stop_on_notice
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.verbs.train import train


class Metadata(BaseHTTPRequestHandler):
    """Answers as the three providers document it: nothing so far, until `noticed`."""

    noticed: ClassVar[threading.Event]
    asked: ClassVar[list[str]]

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
        self.answer(200, "token-1")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        now = self.noticed.is_set()
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "token-1":
                self.answer(401, "")
            elif now:
                self.answer(200, json.dumps({"action": "terminate", "time": "2026-11-28T08:22:00Z"}))
            else:
                self.answer(404, "")
        elif self.path == "/computeMetadata/v1/instance/preempted":
            self.answer(
                *((200, "TRUE" if now else "FALSE") if self.headers["Metadata-Flavor"] == "Google" else (403, ""))
            )
        else:
            assert self.path.startswith("/metadata/scheduledevents?")
            assert self.headers["Metadata"] == "true"
            freeze = {"EventType": "Freeze", "NotBefore": ""}
            preempt = {"EventType": "Preempt", "NotBefore": "Mon, 19 Sep 2026 18:29:47 GMT"}
            self.answer(200, json.dumps({"Events": [freeze, *([preempt] if now else [])]}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@contextmanager
def metadata() -> Iterator[tuple[str, type[Metadata]]]:
    class Here(Metadata):
        noticed = threading.Event()
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def until(true: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(1000):
        if true():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come true within 10 s")


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("aws", "a spot notice of aws (terminate at 2026-11-28T08:22:00Z)"),
        ("gcp", "a spot notice of gcp (preempted)"),
        ("azure", "a spot notice of azure (preempted, not before Mon, 19 Sep 2026 18:29:47 GMT)"),
    ],
)
def test_a_notice_stops_what_runs_and_its_absence_does_not(provider: Provider, said: str) -> None:
    flag, warnings = StopFlag(), list[str]()
    with metadata() as (host, service), stop_on_notice(flag, provider, warnings.append, host=host, poll_s=0.01):
        until(lambda: len(service.asked) > 3)
        flag.check()
        service.noticed.set()
        assert flag.wait(10)
    with pytest.raises(Stopped, match=re.escape(said)):
        flag.check()
    assert warnings == []


def test_a_service_that_does_not_answer_is_said_once_and_stops_nothing() -> None:
    flag, warnings = StopFlag(), list[str]()
    with metadata() as (host, _):
        pass
    with stop_on_notice(flag, "aws", warnings.append, host=host, poll_s=0.01):
        until(lambda: bool(warnings))
        threading.Event().wait(0.1)
    flag.check()
    assert len(warnings) == 1
    assert f"while {host} does not answer" in warnings[0]


def test_a_run_on_a_spot_machine_keeps_its_step_and_goes_on_from_there(
    tiny_recipe: Path, registry_home: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    monkeypatch.setenv("TUNELOOP_HOME", str(registry_home))
    progress = Screen.progress
    with metadata() as (host, service), monkeypatch.context() as here:

        def take_the_machine_away(screen: Screen, line: str, *, keep: bool) -> None:
            progress(screen, line, keep=keep)
            if line.startswith("step 1/"):
                service.noticed.set()
                until(lambda: all(thread.name != "spot" for thread in threading.enumerate()))  # it has told

        here.setenv("TUNELOOP_TRAIN_SPOT", "gcp")
        here.setenv("TUNELOOP_TRAIN_SPOT_HOST", host)
        here.setattr("tuneloop.train.spot.stop_on_notice", partial(stop_on_notice, poll_s=0.01))
        here.setattr(Screen, "progress", take_the_machine_away)
        cut = CliRunner().invoke(train, [str(tiny_recipe)])
    assert isinstance(cut.exception, Stopped)
    assert "stopped by a spot notice of gcp (preempted)" in str(cut.exception)
    assert "the state after step 1 is kept: the same command with --resume goes on from there" in str(cut.exception)
    assert [kept.name for kept in registry_home.glob("runs/*/checkpoints/step-*")] == ["step-00000001"]
    done = CliRunner().invoke(train, [str(tiny_recipe), "--resume"], catch_exceptions=False)
    assert "resumed after step 1" in done.stdout
    assert "step 3/3" in done.stdout
