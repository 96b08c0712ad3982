"""A plan of preferences or questions reads their rows: lengths as the trainers see them, the audit, the leakage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from small_base import make_small_base
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.data.sources import Places
from tuneloop.train.plan.material import facts_of_material
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.file import RecipeFile
from tuneloop.train.verbs.plan import plan as plan_verb

PAIRS = [
    {
        "prompt": "please" + f" w{n}" * (n + 1),
        "chosen": "good" + " w1" * n,
        "rejected": "bad w2" + " w3" * (2 * (n % 3)),
    }
    for n in range(9)
]
QUESTIONS = [{"prompt": "please" + f" w{n}" * (n + 1)} for n in range(9)]
Written = Callable[..., RecipeFile]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def written(base: Base, tmp_path: Path) -> Written:
    """Writes a recipe and its rows into the test's folder."""

    def write(objective: str, rows: list[dict[str, str]], held: list[dict[str, str]], keys: str = "") -> RecipeFile:
        for name, values in (("train", rows), ("held", held)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
        (tmp_path / "recipe.yaml").write_text(
            f"base: {{model: {base.folder}}}\ndata: {{train: train.jsonl{keys}}}\ntuning: {{rank: 4}}\n"
            f"objective: {{{objective}}}\nrun: {{epochs: 2, batch_size: 4, micro_batch: 2, dtype: float32}}\n"
            "evaluate: {sets: {held: held.jsonl}, generate: 0}\npublish: {model: bot}\n"
        )
        return load_recipe(tmp_path / "recipe.yaml")

    return write


def planned(tmp_path: Path, *options: str) -> Any:
    asked = [str(tmp_path / "recipe.yaml"), *options, "--json"]
    return json.loads(CliRunner().invoke(plan_verb, asked, catch_exceptions=False).output)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_pairs_are_as_long_as_the_trainer_reads_them(kind: str, written: Written, base: Base, tmp_path: Path) -> None:
    from tuneloop.train.data.label_audit import label_pairs
    from tuneloop.train.data.labels import Labeller
    from tuneloop.train.data.material import load_material
    from tuneloop.train.fit.reward import sides
    from tuneloop.train.tuning.models import load_tokenizer

    file = written(f"kind: {kind}, max_length: 21", PAIRS, [PAIRS[2], {**PAIRS[0], "prompt": "please w50"}])
    with pytest.raises(Exception, match="leakage"):
        load_material(file)
    (tmp_path / "held.jsonl").write_text(json.dumps({**PAIRS[0], "prompt": "please w50"}) + "\n")
    rows = load_material(file).train
    labelled, audit = label_pairs(Labeller(load_tokenizer(base), 21), rows, base.template_digest)  # type: ignore[arg-type]
    longer = [max(len(one), len(other)) for one, other in zip(*sides(labelled), strict=True)]
    facts = facts_of_material(file.recipe, Places(file.folder), base.folder)
    assert facts.lengths == tuple(longer)
    assert (facts.rows, facts.longest, facts.audit) == (len(PAIRS), max(longer), audit)
    assert audit.truncated_rows > 0, "cut as the run cuts them"
    assert facts.learned_share == audit.trained_tokens / (2 * sum(longer))
    found = planned(tmp_path)
    assert (found["rows"]["longest_tokens"], found["steps"]) == (21, 2 * 3)


def test_memory_and_time_follow_from_real_lengths_and_leakage_is_told(written: Written, tmp_path: Path) -> None:
    written("kind: dpo", PAIRS, [PAIRS[2], PAIRS[3]])
    found, full = planned(tmp_path), planned(tmp_path, "--rows", "9")
    assert found["memory_bytes"]["activations"] * 1024 == pytest.approx(
        full["memory_bytes"]["activations"] * found["rows"]["longest_tokens"], rel=1e-3
    )
    assert found["step_s"]["estimate"] < full["step_s"]["estimate"] / 20
    leakage = found["leakage"]
    assert (leakage["rows"], leakage["exact"]) == (9, 2)
    assert leakage["refused"]


@pytest.mark.parametrize("objective", ["kind: grpo, answers: 2", "kind: ppo"])
def test_a_question_is_as_long_as_its_answer_may_make_it(
    objective: str, written: Written, base: Base, tmp_path: Path
) -> None:
    """One word, one token: a question of n words has n + 3, with its user's and the assistant's marks."""
    keys = "rewards: [finished], max_prompt_length: 11, max_new_tokens: 5"
    file = written(f"{objective}, {keys}", QUESTIONS, [{"prompt": "please w50", "completion": "good"}])
    facts = facts_of_material(file.recipe, Places(file.folder), base.folder)
    assert facts.lengths == tuple(n + 2 + 3 + 5 for n in range(7)), "the two longest are left out"
    assert (facts.rows, facts.longest) == (7, 16)
    assert facts.audit is not None
    found = planned(tmp_path)
    assert found["label_audit"]["left_out"] == 2
    per_question = 2 if "grpo" in objective else 1
    assert found["steps"] == 2 * -(-7 * per_question // 4)
    shown = CliRunner().invoke(plan_verb, [str(tmp_path / "recipe.yaml")], catch_exceptions=False).output
    assert "2 are left out as longer than objective.max_prompt_length; answers end with <|end|>" in shown


def test_without_its_tokenizer_lengths_are_guessed_from_characters(written: Written) -> None:
    held = [{**PAIRS[0], "prompt": "please w50"}]
    for objective, rows in (("kind: dpo", PAIRS), ("kind: ppo, rewards: [finished], max_new_tokens: 5", QUESTIONS)):
        file = written(objective, rows, held)
        facts = facts_of_material(file.recipe, Places(file.folder), None)
        assert "guessed" in facts.source
        assert facts.audit is None
        assert facts.lengths[0] < facts.lengths[-1] == facts.longest == max(facts.lengths)


def test_equal_answers_are_left_out_or_refused_as_the_recipe_says(written: Written, base: Base) -> None:
    equal = [*PAIRS, {"prompt": "please w51", "chosen": "good", "rejected": "good "}]
    file = written("kind: dpo", equal, PAIRS[:1], ", quality: {identical: drop}")
    assert facts_of_material(file.recipe, Places(file.folder), base.folder).rows == len(PAIRS)
    file = written("kind: dpo", equal, PAIRS[:1])
    with pytest.raises(InvalidInput, match=r"train\.jsonl:10: chosen and rejected are the same answer"):
        facts_of_material(file.recipe, Places(file.folder), base.folder)


def test_rows_that_are_no_files_here_are_asked_for(written: Written, tmp_path: Path) -> None:
    written("kind: dpo", PAIRS, PAIRS[:1])
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("{train: train.jsonl}", "{train: [{hub: owner/set, split: train}]}"))
    with pytest.raises(InvalidInput, match="say how many rows there are with --rows"):
        planned(tmp_path)
    assert planned(tmp_path, "--rows", "8")["rows"]["count"] == 8
