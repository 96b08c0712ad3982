"""The report: every picture there is data for, every figure as JSON, nothing loaded from elsewhere."""

from __future__ import annotations

import math
import re
import subprocess
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitor.scene import Scene
from tests_support import beat_engine, publish_version, retraining_request
from tuneloop.monitor.bias.check import check_version
from tuneloop.monitor.bias.templates import own_templates
from tuneloop.monitor.report import write_report
from tuneloop.monitor.report.draw import _round_ticks
from tuneloop.monitor.report.figures import Figures
from tuneloop.registry.database import row_of
from tuneloop.registry.episodes import noted
from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.nouns import RetrainingRun
from tuneloop.registry.nouns import RetrainingState as S
from tuneloop.registry.rollouts.advancing import go_on
from tuneloop.registry.rollouts.controller import LEASE_S
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.statistics.intervals import wilson
from tuneloop.registry.tables import retraining_runs

PICTURES = ("loss", "perplexity", "traffic", "drift", "quality", "served", "latency")


@pytest.fixture
def story(scene: Scene, tmp_path: Path) -> Scene:
    """Two versions with their runs, traffic that drifted, an episode, a promotion."""
    versions = scene.registry.versions
    for number, (parent, metrics, before) in enumerate(
        (
            (None, {"perplexity.stdlib": 9.0}, {"perplexity.stdlib": 38.0}),
            (1, {"perplexity.stdlib": 9.1, "perplexity.numpy": 12.0}, {"perplexity.numpy": 31.0}),
        ),
        1,
    ):
        made = publish_version(scene.registry, tmp_path / f"v{number}", parent=parent, metrics=metrics)
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
    scene.drifted(30, served_version=2)
    return scene


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


def test_what_was_checked_for_bias_stands_in_the_report_with_its_intervals(story: Scene, tmp_path: Path) -> None:
    beat_engine(story.registry, "bot@1", "bot@2", url=story.engine.url, at=story.clock.now)
    for number in (2, 1):  # the champion first
        version = story.registry.versions.get("bot", number)
        check_version(story.registry, story.client, version, own_templates(), margin=0.1, concurrency=2)
    page, values = write_report(story.registry, "bot", tmp_path / "out")
    figures = Figures.model_validate_json(values.read_text())
    assert [(result.of, result.champion) for result in figures.bias] == [("bot@1", "bot@2"), ("bot@2", None)]
    section = re.search(r'<section id="bias">.*?</section>', page.read_text(), re.S)
    assert section is not None
    (gender, *_) = figures.bias[1].attributes
    assert gender.alone.gap is not None
    assert f"{gender.alone.gap.estimate:+.3f} [{gender.alone.gap.low:+.3f}" in section[0]


def test_the_report_holds_every_picture_and_every_figure(story: Scene, tmp_path: Path) -> None:
    episode, (request, *_) = story.the_episode(), story.requests()
    figures_of = {"unit": "nats per token", "before": {"value": 6.1, "low": 6.0, "high": 6.2}, "after": None}
    after: dict[str, Any] = {"request": request.id, "before": "bot@1", "after": "bot@2"}
    after |= {"verdict": "not enough data yet"}
    after |= {"signals": {"perplexity": figures_of | {"moved": "not enough data yet"}}}
    story.registry.episodes.update(
        episode, noted(episode, "shipped", story.clock(), aftermath=after), by="m", action="e"
    )
    page, values = write_report(story.registry, "bot", tmp_path / "out")
    text = page.read_text()
    assert "tuneloop bias check bot@2" in text
    for name in PICTURES:
        section = re.search(rf'<section id="{name}">.*?</section>', text, re.S)
        assert section is not None
        assert len(section[0].split("<path")) > 10, f"the picture of {name} is empty"
    figures = Figures.model_validate_json(values.read_text())
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
    assert figures.latency["ttft"].n == 80
    assert len(figures.episodes) == len(figures.open_episodes) == 1
    assert (figures.champion, figures.revision) == ("bot@2", 2)
    assert f"<b>bot@2, which {request.id} made, in place of bot@1: not enough data yet</b>" in text
    assert "perplexity 6.1 [6 to 6.2] nats per token → not known: not enough data yet" in text
    became = figures.retraining
    assert (became.by_state, became.ended) == ({"proposed": 1, "shipped": 1, "failed": 2}, 3)
    assert became.shipped == wilson(1, 3)
    assert "Of the 3 that ended, <b>33 %</b> shipped (95 % interval 6 to 79 %)" in " ".join(text.split())
    held, shipped = became.requests[0], became.requests[-1]
    assert (held.request.held, held.runs, held.cost_usd) == ("above the month", 0, Decimal("0.00"))
    assert (shipped.runs, shipped.hours, shipped.cost_usd) == (1, 0.75, Decimal("1.50"))
    assert (figures.rollout, "None is open." in text) == (None, True)


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


def test_the_page_loads_nothing_and_runs_nothing(story: Scene, tmp_path: Path) -> None:
    page, _ = write_report(story.registry, "bot", tmp_path / "out")
    text = page.read_text()
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


def test_a_browser_shows_it_without_complaint(story: Scene, tmp_path: Path) -> None:
    page, _ = write_report(story.registry, "bot", tmp_path / "out")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        ["chromium", *options, "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == len(PICTURES)
