"""The model card says what was measured and nothing of this machine; its pictures are real and lie where it points."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tuneloop.registry import Registry
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.outcome import Outcome
from tuneloop.train.job.run import run_job
from tuneloop.train.publishing import pictures
from tuneloop.train.publishing.card import _cell
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag


def sliced_recipe(folder: Path, recipe_in: Callable[[Path], Path]) -> Path:
    """Twelve held-out rows with a topic, ten of one; one row stands twice."""
    recipe = recipe_in(folder)
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    rows = [{**lines[n if n < 11 else 0], "topic": "rivers" if n < 10 else "tides | lakes"} for n in range(12)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = recipe.read_text().replace(
        "generate: 2,", "generate: 12, metrics: [exact_match, token_f1], slice_by: topic,"
    )
    recipe.write_text(text)
    return recipe


def test_a_run_leaves_a_card_with_pictures_slices_and_doubts(
    registry: Registry, tmp_path: Path, recipe_in: Callable[[Path], Path]
) -> None:
    recipe = sliced_recipe(tmp_path / "recipe", recipe_in)
    screen = io.StringIO()
    job = job_from_recipe(load_recipe(recipe), registry.settings.home)
    outcome = run_job(job, registry, screen=Screen(screen), stop=StopFlag())
    version = outcome.version
    card = (registry.versions.fetch(version, tmp_path / "fetched") / "README.md").read_text()

    assert set(version.metrics) == {f"{name}.old" for name in ("perplexity", "nll", "bleu", "exact_match", "token_f1")}
    logged = registry.versions.run_metrics(version.run_id)
    assert logged["perplexity.old.low"] < logged["perplexity.old"] < logged["perplexity.old.high"]
    assert [step for step, _ in registry.versions.metric_history(version.run_id, "perplexity.old.low")] == [0, 3]
    assert "token_f1.old.low" not in logged  # none of twelve shares a word: resampling that says nothing

    assert "1 of 12 rows repeat another" in screen.getvalue()
    table = outcome.table()
    assert "not enough rows (under 10) in 1 slices: tides | lakes (2)" in table
    assert "12 of 12 answers were cut at evaluate.max_new_tokens" in table

    for digest in (version.base_digest, version.template_digest, version.data_digest, version.recipe_digest):
        assert digest in card
    assert f"{version.metrics['perplexity.old']:.2f} [" in card
    assert "| old | rivers | 10 | perplexity |" in card
    assert "12 of 12 answers were cut" in card
    assert "nrefs:1|case:mixed" in card
    assert version.run_id in card
    for path in (job.base.folder.parent, tmp_path, registry.settings.home):
        assert str(path) not in card
    pictures_are_real(registry, outcome, card, tmp_path)

    lineage = Lineage(registry.versions, version)
    assert [row.group for row in lineage.set_rows()["old"]] == ["rivers"] * 10 + ["tides | lakes"] * 2
    with registry.versions.fetched_file(version.run_id, "lineage/evaluation.json") as path:
        kept = json.loads(path.read_text())["sets"]["old"]
    assert (kept["duplicate_rows"], len(kept["after"]["metrics"]["token_f1"])) == (1, 12)
    assert kept["after"]["ended"] == [False] * 12
    assert {(one["measure"], one["slice"]) for one in kept["compared"]} >= {("token_f1", None), ("token_f1", "rivers")}
    assert ["token_f1", "tides | lakes", 2] in kept["too_few_rows"]


def pictures_are_real(registry: Registry, outcome: Outcome, card: str, tmp_path: Path) -> None:
    """Every picture the card points to is there, from where the card lies in the run's artifacts, and is not blank."""
    from matplotlib.image import imread

    got = Path(
        mlflow.artifacts.download_artifacts(
            run_id=outcome.version.run_id, dst_path=str(tmp_path / "run"), tracking_uri=registry.settings.mlflow
        )
    )
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card)
    assert {Path(link).name for link in links} == {pictures.LOSS, pictures.MEASURES, pictures.LENGTHS}
    for link in links:
        pixels = imread(got / "model" / link)
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.02


def test_a_run_without_validation_or_intervals_is_drawn_as_well(tmp_path: Path) -> None:
    pictures.draw_loss(tmp_path / "loss.png", [(1, 2.0)], [])
    pictures.draw_token_lengths(tmp_path / "lengths.png", {"training": [3, 4, 4], "old": [2]}, None)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_a_scripts_metric_is_left_out_loudly_where_the_recipe_came_from_the_registry(
    registry: Registry, tiny_recipe: Path
) -> None:
    """A recipe kept with a version stands alone: code is never fetched from the registry and run."""
    from dataclasses import replace

    from tuneloop.registry.errors import InvalidInput
    from tuneloop.train.job.begin import metrics_of

    tiny_recipe.write_text(
        tiny_recipe.read_text().replace("generate: 2,", "generate: 2, metrics: [./mine.py, token_f1],")
    )
    job = job_from_recipe(load_recipe(tiny_recipe), registry.settings.home)
    said = io.StringIO()
    with pytest.raises(InvalidInput, match="there is no script"):
        metrics_of(job, Screen(said))
    assert [metric.name for metric in metrics_of(replace(job, request_id="rt1"), Screen(said))] == ["token_f1"]
    assert "metric ./mine.py is not measured" in said.getvalue()


def test_no_value_breaks_out_of_its_cell() -> None:
    assert _cell("a | b\n# c") == "a \\| b # c"
