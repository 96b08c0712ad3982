"""The report: every picture there is data for, every figure as JSON, nothing loaded from elsewhere."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import pytest

from monitor.scene import Scene
from tests_support import publish_version
from tuneloop.monitor.report import write_report
from tuneloop.monitor.report.figures import Figures
from tuneloop.registry.errors import InvalidInput, NotFound

PICTURES = ("loss", "perplexity", "traffic", "drift", "latency")


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
    scene.correct(scene.usual(80, ttft_ms=20.0)[:3])
    scene.drifted(20)
    scene.drifted(2, status=503, served_version=None)
    scene.watch()
    scene.promote(2, "<script>alert(1)</script>")
    scene.drifted(30, served_version=2)
    return scene


def test_the_report_holds_every_picture_and_every_figure(story: Scene, tmp_path: Path) -> None:
    page, values = write_report(story.registry, "bot", tmp_path / "out")
    text = page.read_text()
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
    with pytest.raises(NotFound, match="nobody has no route yet"):
        write_report(scene.registry, "nobody", tmp_path / "out")


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
