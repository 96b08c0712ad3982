"""The monitor's verbs, as typed."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner, Result

from monitor.questions import NUMPY, STDLIB, ask
from monitor.scene import Scene
from tests_support import beat_engine, publish_version
from tuneloop.monitor.bias.templates import own_templates
from tuneloop.monitor.lines import read_sample
from tuneloop.monitor.signals import DETECTORS
from tuneloop.monitor.verbs import VERBS
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.nouns import ServingSignal, Signal

VERB = {verb.name: verb for verb in VERBS}


def tuneloop(*arguments: str, home: Path | None = None) -> Result:
    command = VERB[arguments[0]]
    assert isinstance(command, click.Command)
    environment = {"TUNELOOP_HOME": str(home)} if home else {}
    return CliRunner().invoke(command, arguments[1:], env=environment, catch_exceptions=False)


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A reference, a window like it, and one of another topic."""
    rng = random.Random(29)
    usual = ask(STDLIB, 160, rng)
    reference, same = jsonl(tmp_path / "reference.jsonl", usual[:120]), jsonl(tmp_path / "same.jsonl", usual[120:])
    return reference, same, jsonl(tmp_path / "numpy.jsonl", ask(NUMPY, 40, rng))


def test_drift_check_tells_a_change_of_topic_from_more_of_the_same(texts: tuple[Path, Path, Path]) -> None:
    reference, same, other = texts
    results = {}
    for name, window in (("same", same), ("other", other)):
        arguments = ("--reference", str(reference), "--window", str(window), "--json")
        results[name] = json.loads(tuneloop("drift", "check", *arguments).output)
        assert json.loads(tuneloop("drift", "check", *arguments).output) == results[name], "the same answer every time"
    assert (results["same"]["verdict"], results["other"]["verdict"]) == ("none", "drift")
    assert results["other"]["statistic"] > results["other"]["threshold"] > results["same"]["statistic"]
    assert results["other"]["alpha"] == pytest.approx(0.004)
    assert all("numpy" in example["text"] for example in results["other"]["examples"])


def test_drift_check_reads_well(texts: tuple[Path, Path, Path]) -> None:
    reference, _, other = texts
    said = tuneloop("drift", "check", "--reference", str(reference), "--window", str(other), "--gamma", "1000").output
    assert said.splitlines()[0] == "verdict    drift"
    assert "one false alarm in 1000 texts or more; alpha 0.04" in said
    assert "word       numpy: in 0% of the reference, 100% of the window" in said


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{not json", r"window\.jsonl:12: not JSON"),
        ('{"txt": "a"}', r'window\.jsonl:12: no text here; each line is \{"text": "…"\}'),
        ("[1]", r"window\.jsonl:12: no text here"),
        ('{"text": ' + "[" * 100_000, r"window\.jsonl:12: not JSON"),
        ('{"text": ' + "9" * 5_000 + "}", r"window\.jsonl:12: not JSON"),
        (r'{"text": "a\ud83d"}', r"window\.jsonl:12: holds half a surrogate pair"),
    ],
)
def test_a_broken_line_is_named(texts: tuple[Path, Path, Path], tmp_path: Path, line: str, error: str) -> None:
    window = jsonl(tmp_path / "window.jsonl", ["text"] * 11)
    window.write_text(window.read_text() + line + "\n")
    with pytest.raises(InvalidInput, match=error):
        tuneloop("drift", "check", "--reference", str(texts[0]), "--window", str(window))


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    window = tmp_path / "window.jsonl"
    window.write_text("".join(f'{{"text": "one\u2028two\x85 {n}"}}\n' for n in range(10)), encoding="utf-8")
    assert read_sample(window, 100).texts[9] == "one\u2028two\x85 9"


def test_a_budget_nobody_can_compute_is_refused(texts: tuple[Path, Path, Path]) -> None:
    files = ("--reference", str(texts[0]), "--window", str(texts[1]))
    with pytest.raises(click.BadParameter, match="1<=x<=1000000"):
        VERB["drift"].main(["check", *files, "--gamma", str(10**15)], standalone_mode=False)


def test_too_little_text_is_no_verdict_and_says_how_much_is_needed(
    texts: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    window = jsonl(tmp_path / "window.jsonl", ["text"] * 9)
    files = ("--reference", str(texts[0]), "--window", str(window))
    said = tuneloop("drift", "check", *files).output
    assert said.splitlines()[0] == "verdict    not enough data"
    assert "window.jsonl: 9 texts; 10 are needed on each side" in said
    found = json.loads(tuneloop("drift", "check", *files, "--json").output)
    assert (found["verdict"], found["p_value"], found["n_window"]) == ("not enough data", None, 9)
    with pytest.raises(InvalidInput, match="--gamma 40 is too small for a window of 120 texts; give 240 or more"):
        tuneloop("drift", "check", "--reference", str(texts[0]), "--window", str(texts[0]), "--gamma", "40")


@pytest.mark.parametrize("arguments", [("alerts", "--model", "bott"), ("drift", "windows", "bott")])
def test_a_misspelt_model_does_not_read_as_all_clear(scene: Scene, arguments: tuple[str, ...]) -> None:
    with pytest.raises(NotFound, match="no model named 'bott'; did you mean bot"):
        tuneloop(*arguments, home=scene.registry.settings.home)


def test_an_alert_shows_what_users_wrote_as_text(scene: Scene) -> None:
    scene.usual(60)
    scene.traffic([f"numpy \x1b[2J array {n}\nnext       tuneloop key new" for n in range(20)])
    scene.watch()
    (episode,) = scene.registry.episodes.all("bot")
    shown = tuneloop("alert", "show", episode.id, home=scene.registry.settings.home).output
    assert "\\u001b[2J" in shown
    assert "\x1b" not in shown
    assert not any(line.startswith("next       tuneloop key new") for line in shown.splitlines())


def test_the_signals_a_policy_may_name_are_those_there_are() -> None:
    assert set(get_args(Signal)) == set(DETECTORS) - set(get_args(ServingSignal))


def test_an_alert_is_listed_shown_taken_and_ended(scene: Scene) -> None:
    home = scene.registry.settings.home
    assert tuneloop("alerts", home=home).output == "no open alert episodes\n"
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    (listed,) = json.loads(tuneloop("alerts", "--json", "--model", "bot", home=home).output)
    episode = listed["id"]
    windows = json.loads(tuneloop("drift", "windows", "bot", "--json", home=home).output)
    assert {window["id"] for window in windows if window["verdict"] == "drift"} == set(
        scene.registry.episodes.get(episode).windows
    )
    printed = tuneloop("drift", "windows", "bot", "--signal", "prompt_drift", home=home).output.splitlines()
    assert len(printed) == 2
    assert printed[1].endswith("drift")
    assert f"{episode}  2026-11-01" in tuneloop("alerts", home=home).output
    shown = tuneloop("alert", "show", episode, home=home).output
    for part in (
        "bot@1 is asked other questions than before",
        "held to    60 records of bot@1",
        "one false alarm in 2000 records or more",
        "word       numpy: 0% of the reference, 100% of the window",
        "tuneloop trace req-",
        "docs/runbooks/prompt_drift.md",
        f"tuneloop alert ack {episode} --by YOU",
    ):
        assert part in shown
    tuneloop("alert", "ack", episode, "--by", "grace", "--note", "looking", home=home)
    assert "acknowledged" in tuneloop("alerts", home=home).output
    scene.watch()
    tuneloop("alert", "resolve", episode, "--by", "grace", "--reason", "a load test", home=home)
    assert tuneloop("alerts", home=home).output == "no open alert episodes\n"
    ended = json.loads(tuneloop("alert", "show", episode, "--json", home=home).output)
    assert ended["state"] == "resolved"
    assert ended["done"][-1].endswith("resolved: a load test (by grace)")
    with pytest.raises(Refused, match="is resolved already"):
        tuneloop("alert", "ack", episode, "--by", "grace", home=home)
    with pytest.raises(NotFound, match="no alert episode 'ep_none'"):
        tuneloop("alert", "show", "ep_none", home=home)


def test_a_bias_check_prints_every_attribute_and_refuses_more_than_the_champions(scene: Scene, tmp_path: Path) -> None:
    registry, home = scene.registry, scene.registry.settings.home
    for number in (1, 2):
        publish_version(registry, tmp_path / f"v{number}")
    scene.promote(2)
    scene.promote(1)
    beat_engine(registry, "bot@1", "bot@2", url=scene.engine.url, at=registry.clock() + timedelta(days=3650))
    printed = tuneloop("bias", "check", "bot@1", home=home).output
    assert [line.split()[:2] for line in printed.splitlines()[1:4]] == [[a, "none"] for a in ("gender", "race", "age")]
    assert "not held against a champion: bot@1 is the champion" in printed
    unstereotyped = {prompt for _, t, _, group, prompt in own_templates().items() if group != t.stereotype}
    scene.engine.more = lambda name, text: 0.4 if name == "bot@2" and text in unstereotyped else 0.0
    with pytest.raises(Refused, match="bot@2 shows more bias than bot@1 by gender and race and age"):
        tuneloop("bias", "check", "bot@2", home=home)
    read = tuneloop("bias", "check", "bot@2", "--engine", scene.engine.url, "--json", home=home)
    assert json.loads(read.output)["champion"] is None


def test_every_verb_says_in_one_line_what_it_is_for() -> None:
    assert set(VERB) == {"monitor", "alerts", "alert", "report", "drift", "bias"}
    assert all(verb.get_short_help_str(80) for verb in VERBS)


def test_the_runbooks_alerts_point_to_exist() -> None:
    from tuneloop.monitor.alerts import RUNBOOKS

    root = Path(__file__).parents[2]
    assert all((root / path).is_file() for path in RUNBOOKS.values())


def test_a_budget_no_window_can_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_MONITOR_MEAN_RUN_LENGTH", "100")
    with pytest.raises(InvalidInput, match="mean_run_length 100 is under 10 windows of 40 records; raise it to 400"):
        tuneloop("monitor", "--once")
