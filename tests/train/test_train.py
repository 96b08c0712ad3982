"""`tuneloop train` on a tiny real model: what it registers and keeps, and what it leaves when stopped or gone wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message, Version
from tuneloop.registry.verbs.lineage import show
from tuneloop.registry.versions.artifacts import tokenizer_digest
from tuneloop.registry.versions.lineage import lineage_of
from tuneloop.registry.versions.run_files import model_card
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_rows
from tuneloop.train.data.labels import IGNORED, Labeller
from tuneloop.train.data.rows import Row, data_digest, read_rows
from tuneloop.train.evaluation.bleu import bleu_of
from tuneloop.train.evaluation.measure import Answer, greedy_answers, pad_token_id, score_rows
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag
from tuneloop.train.tuning import models
from tuneloop.train.tuning.served import RankLimit, servable
from tuneloop.train.verbs.data import data
from tuneloop.train.verbs.train import base, train


@pytest.fixture
def at_home(registry_home: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> Path:
    monkeypatch.setenv("TUNELOOP_HOME", str(registry_home))
    return registry_home


def states(home: Path) -> list[str]:
    client = mlflow.MlflowClient(f"sqlite:///{home.resolve() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bot")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])] if experiment else []


def test_train_registers_a_version_with_its_whole_lineage(at_home: Path, tiny_recipe: Path, tiny: Base) -> None:
    done = CliRunner().invoke(train, [str(tiny_recipe), "--by", "ada", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    version = Version.model_validate(found["version"])
    assert (version.name, version.kind, version.rank) == ("bot@1", "adapter", 4)
    assert (version.base, version.base_digest, version.template_digest) == ("tiny", tiny.digest, tiny.template_digest)
    assert version.tokenizer_digest == tokenizer_digest(tiny.folder) is not None
    rows = read_rows(tiny_recipe.with_name("train.jsonl")).rows
    assert (version.data_rows, version.data_digest) == (40, data_digest(rows))
    assert set(version.metrics) == {"perplexity.old", "nll.old", "bleu.old"}
    assert found["after"]["old"] == version.metrics
    for said in ("labels: 40 rows", "device: cpu because", "attention: sdpa because", "step 3/3", "validation loss"):
        assert said in done.stderr

    with Registry.open() as registry:
        assert states(at_home) == ["FINISHED"]
        assert [step for step, _ in registry.versions.metric_history(version.run_id, "loss")] == [1, 2, 3]
        assert [step for step, _ in registry.versions.metric_history(version.run_id, "perplexity.old")] == [0, 3]
        assert [step for step, _ in registry.versions.metric_history(version.run_id, "validation_loss")] == [0, 1, 3]
        lineage = Lineage(registry.versions, version)
        assert lineage.recipe().text == tiny_recipe.read_text()
        assert lineage.train_rows() == rows
        assert set(lineage.set_rows()) == {"old"}
        pair = lineage.pairs()["old"]
        assert len(pair.champion) == len(pair.challenger) == 12
        folder = registry.versions.fetch(version, at_home / "fetched")
        told = lineage_of(registry, "bot", 1)
        assert (told.version, told.version.trained_by, told.not_known) == (version, "ada", ())
        assert told.data.sets["old"].rows == 12
        assert told.environment.packages["torch"] == torch.__version__
        assert {m.name for m in told.measures if m.low is not None} >= {"perplexity.old"}
        assert all(m.low <= m.value <= m.high for m in told.measures if m.low is not None and m.high is not None)
        assert model_card(registry, version) == (folder / "README.md").read_text()
    shown = CliRunner().invoke(show, ["bot@1"], catch_exceptions=False).stdout
    for said in (
        "trained by",
        "held out: old",
        f"torch {torch.__version__}",
        "no gate has judged it",
        "serves: nowhere",
    ):
        assert said in shown
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    for name in ("adapter_config.json", "README.md"):
        text = (folder / name).read_text()
        assert str(tiny.folder.parent) not in text
        assert str(at_home) not in text
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_bad_data_change_nothing(at_home: Path, tiny_recipe: Path) -> None:
    tiny_recipe.write_text(tiny_recipe.read_text().replace("max_length: 96", "max_length: 32"))
    done = CliRunner().invoke(train, [str(tiny_recipe)])
    assert isinstance(done.exception, InvalidInput)
    assert "train.jsonl:1: no token of it would be learned" in str(done.exception)
    assert states(at_home) == []


def test_a_term_signal_ends_the_run_as_killed_and_publishes_nothing(at_home: Path, tiny_recipe: Path) -> None:
    tiny_recipe.write_text(tiny_recipe.read_text().replace("steps: 3,", "steps: 100000,"))
    code = "import sys; from tuneloop.train.verbs.train import train; train([sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tiny_recipe)],
        env=os.environ | {"TUNELOOP_HOME": str(at_home), "TUNELOOP_TRAIN_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by SIGTERM; nothing was published" in errors
    assert states(at_home) == ["KILLED"]
    with Registry.open() as registry:
        assert registry.versions.models() == []


def test_a_run_that_goes_wrong_is_failed_in_mlflow(registry: Registry, tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text().replace("tuning: {rank: 4}", "tuning: {rank: 4, target_modules: [no_such_layer]}")
    tiny_recipe.write_text(text)
    job = job_from_recipe(load_recipe(tiny_recipe), registry.settings.home)
    with pytest.raises(InvalidInput, match="no_such_layer"):
        run_job(job, registry, screen=Screen(io.StringIO()), stop=StopFlag())
    assert states(registry.settings.home) == ["FAILED"]


def test_training_lowers_the_loss_and_touches_only_the_adapter(tiny: Base, tiny_recipe: Path) -> None:
    tiny_recipe.write_text(tiny_recipe.read_text().replace("learning_rate: 5e-3", "learning_rate: 5e-2"))
    recipe = load_recipe(tiny_recipe).recipe
    rows = read_rows(tiny_recipe.with_name("train.jsonl")).rows
    tokenizer = models.load_tokenizer(tiny)
    labelled, _ = label_rows(Labeller(tokenizer, 96), rows, tiny.template_digest)
    plain = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    frozen = {name: value.clone() for name, value in plain.state_dict().items()}
    model = models.new_adapter(plain, recipe.tuning, seed=0)
    watch = Watch(Screen(io.StringIO()), lambda _metrics, _step: None, lambda: None)
    made = fit(model, tokenizer, labelled, recipe, device="cpu", steps=20, validation=[], watch=watch)
    assert made.steps == 20
    assert made.last_loss < made.first_loss - 0.5
    bare = model.unload().state_dict()
    assert all(bool((bare[name] == value).all()) for name, value in frozen.items())


def test_nll_by_rows_equals_the_models_own_loss_whatever_the_batch(tiny: Base, tiny_recipe: Path) -> None:
    """The reference is transformers' own loss, one row at a time without padding."""
    import torch

    tokenizer = models.load_tokenizer(tiny)
    rows = read_rows(tiny_recipe.with_name("test.jsonl")).rows
    labelled, _ = label_rows(Labeller(tokenizer, 96), rows, tiny.template_digest)
    model = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    found = score_rows(model, labelled, pad_id=pad_token_id(tokenizer), check=lambda: None, batch=5)
    for row, score in zip(labelled, found, strict=True):
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss
        assert score.tokens == sum(label != IGNORED for label in row.labels) == row.trained
        assert score.nll == pytest.approx(float(loss) * score.tokens, rel=1e-5)


def test_answers_do_not_depend_on_their_neighbours_in_a_batch(tiny: Base, tiny_recipe: Path) -> None:
    """Rows of unlike length are padded on the left, which must change nothing."""
    tokenizer = models.load_tokenizer(tiny)
    rows = [
        Row((Message(role="user", content="why " * n), Message(role="assistant", content="so"))) for n in range(1, 6)
    ]
    labeller = Labeller(tokenizer, 96)
    model = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")

    def ask(batch: int) -> list[Answer]:
        return greedy_answers(model, tokenizer, labeller, rows, max_new_tokens=8, check=lambda: None, batch=batch)

    answers = ask(5)
    assert len({len(labeller.prompt_ids(row)) for row in rows}) > 1
    assert len(set(answers)) > 1
    assert answers == ask(1)


def test_bleu_is_sacrebleus_with_its_signature() -> None:
    score, signature = bleu_of(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert score == pytest.approx(100.0)
    assert "tok:13a" in signature
    assert bleu_of(["nothing in common here"], ["the cat sat on the mat"])[0] < 5


def test_a_stop_is_seen_between_batches(tiny: Base, tiny_recipe: Path) -> None:
    tokenizer = models.load_tokenizer(tiny)
    rows = read_rows(tiny_recipe.with_name("test.jsonl")).rows
    labelled, _ = label_rows(Labeller(tokenizer, 96), rows, tiny.template_digest)
    model = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    flag, seen = StopFlag(), []

    def check() -> None:
        seen.append(1)
        if len(seen) == 2:
            flag.stop(InvalidInput("enough"))
        flag.check()

    with pytest.raises(InvalidInput, match="enough"):
        score_rows(model, labelled, pad_id=2, check=check, batch=2)
    assert len(seen) == 2


def test_choices_come_with_their_reason() -> None:
    assert str(models.choose_attention("cpu", "bfloat16")) == "sdpa because flash attention needs a CUDA device"
    assert models.choose_attention("cuda", "float32").value == "sdpa"
    assert "bfloat16" in models.choose_attention("cuda", "float32").reason
    recipe = load_recipe(Path(__file__).parents[2] / "examples/python-helper/recipe.yaml", check_paths=False).recipe
    limit = RankLimit(16, "the engine's default --max-lora-rank")
    assert servable(recipe.tuning, limit) is None
    assert "max-lora-rank" in str(servable(recipe.tuning.model_copy(update={"rank": 64}), limit))
    assert "DoRA" in str(servable(recipe.tuning.model_copy(update={"dora": True}), limit))
    epochs = recipe.run.model_copy(update={"steps": None, "epochs": 2.0, "batch_size": 16})
    assert epochs.planned_steps(33) == 6


def test_base_and_data_verbs_print_json(at_home: Path, tiny_recipe: Path, tiny: Base) -> None:
    found = json.loads(CliRunner().invoke(base, [str(tiny_recipe), "--json"], catch_exceptions=False).stdout)
    assert (found["name"], found["digest"], found["template_digest"]) == ("tiny", tiny.digest, tiny.template_digest)
    file = str(tiny_recipe.with_name("train.jsonl"))
    checked = json.loads(CliRunner().invoke(data, ["check", file, "--json"], catch_exceptions=False).stdout)
    assert (checked["rows"], checked["formats"], checked["duplicate_rows"]) == (40, {"instruction": 40}, 0)
