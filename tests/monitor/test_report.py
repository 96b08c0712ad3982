"""The report: every picture there is data for, every figure as JSON, nothing loaded from elsewhere."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitor.engine import fake_engine
from monitor.scene import Scene, opened
from tests_support import beat_engine, publish_version, retraining_request
from tuneloop.monitor.bias.check import check_version
from tuneloop.monitor.bias.templates import own_templates
from tuneloop.monitor.report import write_report
from tuneloop.monitor.report.arms import rows_of
from tuneloop.monitor.report.draw import _round_ticks
from tuneloop.monitor.report.figures import Figures
from tuneloop.monitor.report.gather import gather
from tuneloop.monitor.report.page import render
from tuneloop.registry.database import row_of
from tuneloop.registry.episodes import noted
from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.experiments.declaration import Declaration, ExperimentPlan, Primary
from tuneloop.registry.nouns import Arm, RetrainingRun
from tuneloop.registry.nouns import RetrainingState as S
from tuneloop.registry.rollouts.advancing import go_on
from tuneloop.registry.rollouts.controller import LEASE_S
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.statistics.intervals import wilson
from tuneloop.registry.tables import retraining_runs

HALVES = {1: 5_000, 2: 5_000}
PICTURES = ("loss", "perplexity", "traffic", "drift", "quality", "served", "heat", "speed", "latency", "guards")


@dataclass(frozen=True)
class Told:
    """A story, and its report as it was written when it ended."""

    scene: Scene
    page: Path
    text: str
    figures: Figures


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Iterator[Told]:
    """Written once: those who look at it change nothing of it."""
    folder = tmp_path_factory.mktemp("told")
    home = Path(shutil.copytree(empty_state, folder / "home"))
    with fake_engine() as engine, opened(home, engine) as scene:
        play(scene, folder)
        page, values = write_report(scene.registry, "bot", folder / "out")
        yield Told(scene, page, page.read_text(), Figures.model_validate_json(values.read_text()))


def play(scene: Scene, folder: Path) -> None:
    """Two versions with their runs, traffic that drifted, an episode, guards that found something, a promotion."""
    versions = scene.registry.versions
    for number, (parent, metrics, before) in enumerate(
        (
            (None, {"perplexity.stdlib": 9.0}, {"perplexity.stdlib": 38.0}),
            (1, {"perplexity.stdlib": 9.1, "perplexity.numpy": 12.0}, {"perplexity.numpy": 31.0}),
        ),
        1,
    ):
        made = publish_version(scene.registry, folder / f"v{number}", parent=parent, metrics=metrics)
        versions.log_metrics(made.run_id, before, step=0)
        versions.log_metrics(made.run_id, metrics, step=20)
        for step in range(1, 21):
            versions.log_metrics(made.run_id, {"loss": 3 * math.exp(-step / 8)}, step=step)
    scene.settings = scene.settings.model_copy(update={"canary_every_s": 1.0})
    scene.watch()  # the canaries' first reading
    scene.correct(scene.usual(80, ttft_ms=20.0)[:3])
    scene.drifted(20)
    scene.drifted(2, status=503, served_version=None)
    scene.watch()
    retrained(scene)
    scene.promote(2, "<script>alert(1)</script>")
    streamed = {"stream": True, "ttft_ms": 20.0, "total_ms": 420.0, "completion_tokens": 21, "queue_ms": 5.0}
    scene.drifted(30, served_version=2, guards={"personal": "redact: EMAIL_ADDRESS"}, **streamed)
    shipped(scene)


def shipped(scene: Scene) -> None:
    """What the episode shows of the version that its request made, before enough is known of it."""
    episode, (request, *_) = scene.the_episode(), scene.requests()
    figures_of = {"unit": "nats per token", "before": {"value": 6.1, "low": 6.0, "high": 6.2}, "after": None}
    after: dict[str, Any] = {"request": request.id, "before": "bot@1", "after": "bot@2"}
    after |= {"verdict": "not enough data yet"}
    after |= {"signals": {"perplexity": figures_of | {"moved": "not enough data yet"}}}
    found = noted(episode, "shipped", scene.clock(), aftermath=after)
    scene.registry.episodes.update(episode, found, by="m", action="e")


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', text, re.S)
    assert found is not None
    return found[0]


def retrained(scene: Scene) -> None:
    """One shipped, two failed, one that a budget holds for a person."""
    queue, began = scene.registry.retraining, scene.clock.now
    became: list[tuple[S, dict[str, Any]]] = [
        (S.SHIPPED, {"result_version": 2, "outcome": "bot@2 got everything"}),
        (S.FAILED, {"outcome": "given up after 3 attempts; the last worker was w"}),
        (S.FAILED, {"outcome": "the base model is gone"}),
        (S.PROPOSED, {"held": "above the month"}),
    ]
    for number, (state, changes) in enumerate(became):
        at = began - timedelta(hours=9 - 2 * number)
        named = {"id": f"rt_{number}b9709f92d19", "idempotency_key": str(number), "state": state, "updated_at": at}
        queue.file(retraining_request(at, **(named | changes)), by="monitor")
    run = RetrainingRun(
        request_id="rt_0b9709f92d19",
        fencing_token=1,
        model="bot",
        worker="w",
        started_at=began - timedelta(hours=8),
        ended_at=began - timedelta(hours=7.25),
        devices=1,
        usd_per_hour=Decimal(2),
    )
    with scene.registry.database.writing() as connection:
        connection.execute(sa.insert(retraining_runs).values(**row_of(run, retraining_runs)))


def rolling(scene: Scene, folder: Path) -> None:
    """`bot@2` on its first step, judged once by a controller that lives."""
    registry = scene.registry
    for number in (1, 2):
        publish_version(registry, folder / f"v{number}")
        registry.gates.approve("bot", number, by="ada", reason="test")
    scene.promote(2)
    scene.promote(1)
    declared = declare(registry, "bot", 2, RolloutPlan(), Change("ada", "answers the drift"))
    for _ in range(3):  # its place, its share, and a look that decides nothing
        beat_engine(registry, "bot@1", "bot@2")
        held = registry.rollouts.claim(declared.id, "c", LEASE_S)
        assert held is not None
        go_on(registry, held, controller="c")


def test_the_report_holds_every_picture_and_every_figure(told: Told) -> None:
    text, figures = told.text, told.figures
    assert "tuneloop bias check bot@2" in text
    for name in PICTURES:
        assert len(section(text, name).split("<path")) > 10, f"the picture of {name} is empty"
    assert figures.perplexity == {
        "stdlib": {"base": 38.0, "bot@1": 9.0, "bot@2": 9.1},
        "numpy": {"bot@1": 31.0, "bot@2": 12.0},
    }
    assert [len(version.loss) for version in figures.versions] == [20, 20]
    assert figures.traffic is not None
    totals = {name: sum(counts) for name, counts in figures.traffic.answers.items()}
    assert totals == {"bot@1": 100, "bot@2": 30, "none": 2}
    assert (figures.requests, figures.answered, figures.corrections) == (132, 130, 3)
    assert [point.verdict for point in figures.drift["prompt_drift"]] == ["none", "drift"]
    assert sum(figures.latency["total"].counts) == figures.latency["total"].n == 130
    assert figures.latency["ttft"].n == 110
    assert len(figures.episodes) == len(figures.open_episodes) == 1
    assert (figures.champion, figures.revision) == ("bot@2", 2)
    assert (figures.rollout, "None is open." in text) == (None, True)
    (request, *_) = told.scene.requests()
    assert f"<b>bot@2, which {request.id} made, in place of bot@1: not enough data yet</b>" in text
    assert "perplexity 6.1 [6 to 6.2] nats per token → not known: not enough data yet" in text


def test_the_retraining_history_says_what_became_of_each_request(told: Told) -> None:
    became = told.figures.retraining
    assert (became.by_state, became.ended) == ({"proposed": 1, "shipped": 1, "failed": 2}, 3)
    assert became.shipped == wilson(1, 3)
    assert "Of the 3 that ended, <b>33 %</b> shipped (95 % interval 6 to 79 %)" in " ".join(told.text.split())
    held, shipped = became.requests[0], became.requests[-1]
    assert (held.request.held, held.runs, held.cost_usd) == ("above the month", 0, Decimal("0.00"))
    assert (shipped.runs, shipped.hours, shipped.cost_usd) == (1, 0.75, Decimal("1.50"))


def test_each_signal_stands_as_its_newest_window_left_it(told: Told) -> None:
    states = {state.signal: state for state in told.figures.signals}
    drifted, unread = states["prompt_drift"], states["thumbs_down"]
    assert (drifted.newest.verdict, drifted.windows, drifted.alarms) == ("drift", 2, 1)
    assert drifted.newest == told.figures.drift["prompt_drift"][-1]
    assert (unread.newest.verdict, unread.reason[:9]) == ("not enough data", "3 answers")
    shown = section(told.text, "signals")
    assert f'<td class="fails">drift</td>\n      <td class="n">{drifted.newest.statistic:.4g}</td>' in shown
    assert f"not enough data: {unread.reason}" in shown


def test_how_fast_answers_came_and_what_guards_found_are_shares_and_times_of_records(told: Told) -> None:
    figures = told.figures
    assert figures.heat is not None
    assert figures.speed is not None
    assert figures.guards is not None
    rows = [sum(column) for column in zip(*figures.heat.answers, strict=True)]
    assert dict(zip(figures.heat.bounds_ms, rows, strict=False)) == {100.0: 100, 200.0: 30}
    between = [middle for middle in figures.speed.between_tokens_ms if middle is not None]
    assert {(middle.p50, middle.p95) for middle in between} == {(20.0, 20.0)}, "400 ms after the first, 20 more tokens"
    assert sum(middle.n for middle in between) == 30
    written = sum(figures.speed.tokens_per_s) * figures.speed.span_s
    assert math.isclose(written, 30 * 21)
    assert figures.guards.shares["personal data or secrets found"] == wilson(30, 132)
    assert figures.guards.shares["stopped by a guard"] == wilson(0, 132)


def test_each_slice_says_how_it_does_with_an_interval_or_that_it_is_too_small(told: Told) -> None:
    found = {(one.field, one.value): one for one in told.figures.slices}
    assert {field for field, _ in found} == {"version", "streamed"}, "no other field has two values"
    first, second = found["version", "bot@1"], found["version", "bot@2"]
    assert (first.requests, second.requests) == (102, 30)
    assert first.failed == wilson(2, 102), "a request that nobody answered counts for the version that was to"
    assert second.failed == wilson(0, 30)
    assert (first.corrected, first.thumbs_down) == (wilson(3, 100), None)
    assert second.p95_ms is not None
    assert (second.p95_ms.estimate, second.p95_ms.high) == (420.0, None), "thirty bound no 95th percentile from above"
    assert "2.0 % [0.5, 6.9]" in section(told.text, "slices")


def test_an_experiment_stands_in_the_report_with_its_arms_and_their_difference(scene: Scene, tmp_path: Path) -> None:
    registry = scene.registry
    metric = Primary(kind="binary", measure="error", goal="lower", minimum_effect=0.1)
    declared = Declaration(model="bot", hypothesis="<b>it</b> fails less", arms=HALVES, control=1, primary=metric)
    made = registry.experiments.new(declared, ExperimentPlan(days_seen=1.5, units_seen=7), by="ada", reason="r")
    arms = [Arm(version=version, weight_bp=share) for version, share in HALVES.items()]
    route = registry.routes.write("bot", arms, by="ada", reason="half", expected_revision=1)
    registry.experiments.start(made.id, revision=route.revision, by="ada", reason="r")
    for version, failed in ((1, 60), (2, 0)):
        served = {"revision": route.revision, "assigned_version": version, "served_version": version}
        scene.usual(failed, status=503, error="cut", **served)
        scene.usual(120 - failed, **served)
    page, values = write_report(registry, "bot", tmp_path / "out")
    (report,) = Figures.model_validate_json(values.read_text()).experiments
    shown = section(page.read_text(), "experiments")
    assert "&lt;b&gt;it&lt;/b&gt; fails less" in shown
    control, treatment = rows_of(report)
    assert (control.units.units, control.value, control.difference) == (120, "50.0 %", "–")
    assert (treatment.value, treatment.verdict) == ("0.0 %", "better")
    assert treatment.difference.startswith("\u221250.0 points [\u2212")
    assert treatment.difference in shown


def test_what_was_checked_for_bias_stands_in_the_report_with_its_intervals(told: Told, tmp_path: Path) -> None:
    story = told.scene
    beat_engine(story.registry, "bot@1", "bot@2", url=story.engine.url, at=story.clock.now)
    for number in (2, 1):  # the champion first
        version = story.registry.versions.get("bot", number)
        check_version(story.registry, story.client, version, own_templates(), margin=0.1, concurrency=2)
    figures = gather(story.registry, "bot")
    assert [(result.of, result.champion) for result in figures.bias] == [("bot@1", "bot@2"), ("bot@2", None)]
    (gender, *_) = figures.bias[1].attributes
    assert gender.alone.gap is not None
    assert f"{gender.alone.gap.estimate:+.3f} [{gender.alone.gap.low:+.3f}" in section(render(figures), "bias")


def test_an_open_rollout_is_shown_with_its_step_and_its_last_judgement(scene: Scene, tmp_path: Path) -> None:
    rolling(scene, tmp_path)
    page, values = write_report(scene.registry, "bot", tmp_path / "out")
    figures, text = Figures.model_validate_json(values.read_text()), " ".join(page.read_text().split())
    assert figures.rollout is not None
    assert figures.rollout.report.verdict == "inconclusive"
    assert "<b>bot@2</b> against bot@1 is <b>running</b>. Step 1 of 2 (10 %) since" in text
    assert "Driven by c." in text
    assert "<td>samples</td><td>inconclusive</td><td>0 answered on this step" in text
    scene.clock.advance(LEASE_S + 1)
    page, _ = write_report(scene.registry, "bot", tmp_path / "out")
    assert "No controller drives it." in page.read_text()


def test_the_page_loads_nothing_and_runs_nothing(told: Told) -> None:
    text = told.text
    assert "<script" not in text
    assert "&lt;script&gt;" in text, "a reason is text, not markup"
    assert not re.search(r'(?:src|href)="(?!#|data:,")', text)
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r'https?://[^\s"<]+', text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
        "http://purl.org/dc/elements/1.1/",
        "http://creativecommons.org/ns#",
        "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
        "http://purl.org/dc/dcmitype/StillImage",
        "https://matplotlib.org/",
    }
    ids = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "pictures share clip paths"


def test_a_model_without_anything_yet_still_has_a_page(scene: Scene, tmp_path: Path) -> None:
    page, _ = write_report(scene.registry, "bot", tmp_path / "out")
    assert page.read_text().count("No data yet.") == len(PICTURES)
    with pytest.raises(NotFound, match="no model named 'nobody'"):
        write_report(scene.registry, "nobody", tmp_path / "out")


@pytest.mark.parametrize(("low", "high"), [(95.0, 111.3), (19.0, 21.0), (0.4, 0.5), (3.0, 90_000.0)])
def test_every_range_of_latencies_has_ticks_inside_it(low: float, high: float) -> None:
    ticks = _round_ticks(low, high)
    assert len(ticks) >= 3
    assert all(low <= tick <= high for tick in ticks)


def test_a_folder_that_cannot_be_written_is_one_clear_error(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"file/out cannot be written to \(Not a directory\); give --out a folder"):
        write_report(scene.registry, "bot", tmp_path / "file" / "out")


def test_a_browser_shows_it_without_complaint(told: Told, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        ["chromium", *options, "--enable-logging=stderr", "--dump-dom", told.page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == len(PICTURES)
