"""`tuneloop alert`, as typed: silences, receivers, deliveries; and the monitor as a process tells whom it should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import Result

from monitor.delivery.post import open_episode
from monitor.delivery.servers import HttpReceiver, http_receiver
from monitor.scene import Scene
from monitor.test_verbs import tuneloop
from tests_support import ODD_EVIDENCE
from tuneloop.monitor.delivery.page import next_commands
from tuneloop.monitor.heartbeat import Heartbeat
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.verbs import VERBS
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.receivers import MOST_EXAMPLES
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.nouns import Arm


@pytest.fixture
def home(registry: Registry) -> Path:
    registry.routes.write("bot", [Arm(version=1, weight_bp=10_000)], by="ada", reason="r", expected_revision=0)
    return registry.settings.home


@pytest.fixture
def hook() -> Iterator[HttpReceiver]:
    with http_receiver() as running:
        yield running


def typed(home: Path, line: str, *more: str) -> Result:
    return tuneloop(*line.split(), *more, home=home)


def receivers(tmp_path: Path, text: str) -> str:
    path = tmp_path / "receivers.yaml"
    path.write_text(text)
    return str(path)


def test_episodes_of_which_nothing_can_be_understood_are_listed_and_shown(registry: Registry, home: Path) -> None:
    for number, evidence in enumerate(ODD_EVIDENCE):
        open_episode(registry, id=f"odd{number}", version=number + 1, evidence=evidence)
    listed = typed(home, "alerts").output.splitlines()[1:]
    assert sorted(line.split()[0] for line in listed) == [f"odd{number}" for number in range(len(ODD_EVIDENCE))]
    for line in listed:
        assert line.split()[4:] == ["open", "prompt_drift"]
        assert "prompt_drift" in typed(home, f"alert show {line.split()[0]}").output


def test_an_episode_is_silenced_listed_and_heard_again(registry: Registry, home: Path) -> None:
    open_episode(registry)
    said = typed(home, "alert silence ep1 --for 2h --by ada", "--reason", "a load test").output
    silence = said.partition(":")[0]
    assert ": ep1 is silenced until 20" in said
    assert "it is silenced for drift; what joins it by another cause (attack or deploy or engine) is told once" in said
    assert typed(home, "alerts").output.splitlines()[1].split()[4] == "silenced"
    assert json.loads(typed(home, "alerts --json").output)[0]["shown_as"] == "silenced"
    assert typed(home, "alert show ep1 --json").exit_code == 0
    (listed,) = json.loads(typed(home, "alert silences --json").output)
    assert (listed["id"], listed["episode_id"], listed["reason"]) == (silence, "ep1", "a load test")
    assert typed(home, f"alert unsilence {silence} --by ada --reason over").output == f"{silence} is over\n"
    assert typed(home, "alert silences").output == "nothing is silenced\n"
    assert silence in typed(home, "alert silences --all").output
    assert typed(home, "alerts").output.splitlines()[1].split()[4] == "open"


def test_a_model_is_silenced_whole_or_by_signal(registry: Registry, home: Path) -> None:
    open_episode(registry)
    said = typed(home, "alert silence --model bot --signal latency --for 30m --by ada --reason r").output
    assert ": latency of bot is silenced until" in said
    assert typed(home, "alerts").output.splitlines()[1].split()[4] == "open", "another signal"
    assert "everything of bot" in typed(home, "alert silence --model bot --for 1d --by ada --reason r").output
    assert typed(home, "alerts").output.splitlines()[1].split()[4] == "silenced"


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("alert silence --for 2h --by a --reason r", InvalidInput, "name one episode, or a model"),
        ("alert silence ep1 --model bot --for 2h --by a --reason r", InvalidInput, "name one episode, or a model"),
        ("alert silence ep1 --signal latency --for 2h --by a --reason r", InvalidInput, "name one episode"),
        ("alert silence --model bott --for 2h --by a --reason r", NotFound, "did you mean bot"),
        ("alert silence ep9 --for 2h --by a --reason r", NotFound, "no alert episode 'ep9'"),
        ("alert silence ep1 --for 100d --by a --reason r", InvalidInput, "90 days at most"),
        ("alert deliveries ep9", NotFound, "no alert episode 'ep9'"),
    ],
)
def test_what_cannot_be_silenced_is_said(
    registry: Registry, home: Path, line: str, error: type[Exception], message: str
) -> None:
    open_episode(registry)
    with pytest.raises(error, match=message):
        typed(home, line)


@pytest.mark.parametrize("given", ["2", "0h", "h", "2 h", "-2h", "1.5h"])
def test_a_time_is_a_number_and_a_unit(home: Path, given: str) -> None:
    alert = next(verb for verb in VERBS if verb.name == "alert")
    with pytest.raises(click.BadParameter, match="is no time; write 90s, 30m, 2h or 3d"):
        alert.main(["silence", "ep1", "--for", given, "--by", "a", "--reason", "r"], standalone_mode=False)


def test_receivers_are_set_from_a_file_that_is_read_strictly(home: Path, tmp_path: Path) -> None:
    assert "nobody is told of episodes" in typed(home, "alert receivers").output
    text = "receivers:\n  - {kind: slack, name: chat, url_file: /run/secrets/slack, severity: page, models: [bot]}\n"
    said = typed(home, "alert receivers --by ada --reason r --set", receivers(tmp_path, text)).output
    assert said.splitlines()[1].split() == ["chat", "slack", "page", "bot", "5"]
    for wrong, message in (
        ("receivers:\n  - {kind: slack, name: chat}\n", "receivers.yaml:2: .*give url or url_file"),
        ("receivers:\n  - {kind: pager, name: chat}\n", r"receivers\.yaml:2: .*slack"),
        ("receivers:\n  - {kind: slack, name: c, url: 'https://x/y', secret: abc}\n", r"receivers\.yaml:2: .*secret"),
    ):
        with pytest.raises(InvalidInput, match=message):
            typed(home, "alert receivers --by ada --reason r --set", receivers(tmp_path, wrong))
    with pytest.raises(InvalidInput, match="needs --by and --reason"):
        typed(home, "alert receivers --set", receivers(tmp_path, text))


def test_one_pass_of_the_monitor_delivers_what_is_due(
    scene: Scene, hook: HttpReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # these are the test run's own
    home = scene.registry.settings.home
    text = f"receivers:\n  - {{kind: slack, name: chat, url: '{hook.url}', examples: 0}}\n"
    typed(home, "alert receivers --by ada --reason r --set", receivers(tmp_path, text))
    assert typed(home, "alert deliveries").output == "nothing was to be delivered yet\n"
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    typed(home, "monitor --once")
    said = [json.loads(told.body)["text"] for told in hook.told]
    assert "bot@1 is asked other questions than before" in said[0]
    (episode,) = scene.registry.episodes.all("bot")
    rows = json.loads(typed(home, f"alert deliveries {episode.id} --json").output)
    assert [(row["transition"], row["state"]) for row in rows][-1] == ("opened", "sent")
    typed(home, f"alert resolve {episode.id} --by ada --reason r")
    with pytest.raises(Refused, match="is resolved already; there is nothing to silence"):
        typed(home, f"alert silence {episode.id} --for 2h --by ada --reason r")


def test_the_heartbeat_is_asked_for_and_its_failure_stops_nothing(
    hook: HttpReceiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Heartbeat(hook.url)
    assert beat.beat()
    assert (hook.told[0].path, hook.told[0].body) == ("/hook", b"")
    with http_receiver() as elsewhere:
        hook.status, hook.answer_headers = 302, {"Location": elsewhere.url}
        assert not beat.beat()
        assert not beat.beat()
        assert elsewhere.told == []
    assert caplog.text.count("heartbeat_url does not take the heartbeat: it answers 302") == 1
    assert not Heartbeat("http://127.0.0.1:9/").beat()
    assert Heartbeat("").beat()
    monkeypatch.setenv("TUNELOOP_MONITOR_HEARTBEAT_URL", "hc-ping.com/x")
    with pytest.raises(InvalidInput, match="write http://HOST"):
        MonitorSettings.load()


def test_a_heartbeat_follows_each_whole_pass_and_no_other(scene: Scene) -> None:
    from tuneloop.monitor.metrics import Metrics
    from tuneloop.monitor.watch import Monitor

    beats: list[str] = []
    passes = iter(["whole", "cut short", "whole"])

    def ending(_pause_s: float) -> None:
        current.append(next(passes, "end"))

    current = [next(passes)]
    made = Monitor(
        scene.registry,
        scene.settings,
        scene.monitor()._scorer,
        Metrics(),
        stopping=lambda: current[-1] == "end",
        alive=lambda: beats.append(current[-1]),
    )
    watch = made._watch

    def watched(model: str) -> object:
        if current[-1] == "cut short":
            raise NotFound("something of this model is gone")
        return watch(model)

    made._watch = watched  # type: ignore[method-assign, assignment]
    made.run(ending)
    assert beats == ["whole", "whole"]


@pytest.mark.parametrize(
    ("causes", "signal", "expected"),
    [
        (["deploy", "drift"], "refusals", "tuneloop route history bot"),
        (["attack"], "injections", "tuneloop guard policy bot"),
        (["load"], "latency", "tuneloop status"),
        ([], "served_model_change", "tuneloop status"),
        (["drift"], "prompt_drift", "tuneloop retraining list"),
    ],
)
def test_an_alert_leads_where_its_page_does(
    registry: Registry, home: Path, causes: list[str], signal: str, expected: str
) -> None:
    evidence = {"causes": [{"kind": kind, "why": "it is"} for kind in causes]}
    episode = open_episode(registry, signal=signal, evidence=evidence)
    acknowledge = "tuneloop alert ack ep1 --by YOU"
    assert list(next_commands(episode)) == ["tuneloop alert show ep1", expected, acknowledge]
    shown = typed(home, "alert show ep1").output.splitlines()
    assert shown[-2:] == [f"next       {expected}; tuneloop report bot", f"           {acknowledge}"]
    typed(home, "alert ack ep1 --by ada")
    assert typed(home, "alert show ep1").output.splitlines()[-1] == shown[-2], "nobody is asked to take it again"


def test_an_alert_shows_as_many_examples_as_a_page_carries(registry: Registry, home: Path) -> None:
    open_episode(registry)  # it has seven
    assert typed(home, "alert show ep1").output.count("\nexample ") == MOST_EXAMPLES
