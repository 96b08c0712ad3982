"""A real Alertmanager: an episode arrives, repetitions are the same alert, a page replaces its ticket, and it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.delivery.post import EVIDENCE, acknowledge, deliverer, end, open_episode, tell, worsen
from monitor.delivery.servers import HttpReceiver, http_receiver
from tests_support import Clock, free_port
from tuneloop.monitor.delivery.rounds import RENEW_S
from tuneloop.registry import Registry
from tuneloop.registry.nouns import utc_now


@pytest.fixture
def clock() -> Clock:
    """Alertmanager goes by the real time; this stands still at it."""
    return Clock(utc_now())


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)
    return found


def asked(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (http, on this machine)
            return json.loads(answer.read() or b"null") if "api" in url else answer.status == 200
    except OSError:
        return None


@contextmanager
def alertmanager(folder: Path, hook: HttpReceiver) -> Iterator[str]:
    """One that tells `hook` at once; its URL."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.fail("Alertmanager is not installed; `make setup` installs it (apt-get install prometheus-alertmanager)")
    route = {
        "receiver": "hook",
        "group_by": ["..."],
        "group_wait": "0s",
        "group_interval": "1s",
        "repeat_interval": "1h",
    }
    config = {"route": route, "receivers": [{"name": "hook", "webhook_configs": [{"url": hook.url}]}]}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [program, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with (folder / "alertmanager.log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
    try:
        url = f"http://127.0.0.1:{port}"
        until(
            lambda: asked(f"{url}/-/ready"), 30, f"Alertmanager is ready\n{(folder / 'alertmanager.log').read_text()}"
        )
        yield url
    finally:
        running.terminate()
        running.wait(20)


def test_an_episode_arrives_once_becomes_a_page_and_ends(ours: Registry, clock: Clock, tmp_path: Path) -> None:
    with http_receiver() as hook, alertmanager(tmp_path, hook) as url, deliverer(ours) as made:
        tell(ours, {"kind": "alertmanager", "name": "am", "url": url})

        def alerts() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = asked(f"{url}/api/v2/alerts")
            return found

        def notified() -> list[tuple[str, str]]:
            """(status, severity) of everything people were told, in order."""
            bodies = [json.loads(told.body) for told in hook.told]
            return [(alert["status"], alert["labels"]["severity"]) for body in bodies for alert in body["alerts"]]

        episode = open_episode(ours, evidence=EVIDENCE, opened_at=clock.now - timedelta(seconds=5))
        made.round(to_the_end=True)
        (alert,) = alerts()
        labels = {"alertname": "TuneloopEpisode", "episode": "ep1", "model": "bot", "version": "1"}
        assert alert["labels"] == labels | {"signal": "prompt_drift", "severity": "ticket"}
        assert alert["annotations"]["summary"] == "bot@1 is asked other questions than before"
        assert "cause      drift" in alert["annotations"]["description"]
        until(lambda: notified() == [("firing", "ticket")], 20, "people are told")

        first = alert["endsAt"]
        clock.advance(RENEW_S)
        made.round(to_the_end=True)
        (again,) = alerts()
        assert again["fingerprint"] == alert["fingerprint"], "a repetition is the same alert"
        assert again["endsAt"] > first, "which stands longer for it"

        clock.now = utc_now()
        episode = acknowledge(ours, worsen(ours, episode))
        made.round(to_the_end=True)
        (page,) = alerts()
        assert page["labels"]["severity"] == "page"
        assert page["annotations"]["state"] == "acknowledged"
        until(lambda: ("resolved", "ticket") in notified() and ("firing", "page") in notified(), 20, "a page instead")

        clock.now = utc_now()
        end(ours, episode)
        made.round(to_the_end=True)
        until(lambda: alerts() == [], 20, "the alert is over")
        until(lambda: ("resolved", "page") in notified(), 20, "people are told so")
        assert sorted(notified()) == sorted(
            [("firing", "ticket"), ("resolved", "ticket"), ("firing", "page"), ("resolved", "page")]
        ), "each once, however often it was repeated"
    assert {row.state for row in ours.outbox.all()} == {"sent"}


def test_an_alertmanager_that_forgot_everything_hears_of_what_is_open_again(
    ours: Registry, clock: Clock, tmp_path: Path
) -> None:
    with http_receiver() as hook:
        open_before = []
        for life in ("first", "second"):
            (tmp_path / life).mkdir()
            with alertmanager(tmp_path / life, hook) as url, deliverer(ours) as made:
                tell(ours, {"kind": "alertmanager", "name": "am", "url": url})
                if life == "first":
                    open_episode(ours)
                made.round(to_the_end=True)
                open_before.append([alert["labels"]["episode"] for alert in asked(f"{url}/api/v2/alerts")])
        assert open_before == [["ep1"], ["ep1"]]
    (row,) = ours.outbox.all()
    assert row.attempts == 1, "the outbox has no part in it"
