"""GRPO asks the labelled questions, hands each answer with its row to the rewards, and raises what can be verified."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from small_base import WORDS, make_small_base
from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.nouns import Message
from tuneloop.train.data.label_audit import label_prompts
from tuneloop.train.data.labels import Labeller
from tuneloop.train.data.preference import PromptRow
from tuneloop.train.evaluation.metrics import exact_match
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.rewards import Answer, Judge, find_rewards
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

RECIPE = Recipe.model_validate(
    {
        "base": {"model": "small"},
        "data": {"train": "questions.jsonl"},
        "tuning": {"rank": 8},
        "objective": {
            "kind": "grpo",
            "rewards": ["even"],
            "answers": 4,
            "max_prompt_length": 32,
            "max_new_tokens": 6,
            "kl_coefficient": 0.01,
        },
        "optim": {"learning_rate": 1e-2, "schedule": "constant"},
        "run": {"steps": 40, "batch_size": 32, "micro_batch": 32, "dtype": "float32"},
        "evaluate": {"sets": {"held": "held.jsonl"}},
        "publish": {"model": "bot"},
    }
)


def test_grpo_raises_a_verifiable_reward(tmp_path: Path) -> None:
    base = make_small_base(tmp_path)
    tokenizer = models.load_tokenizer(base)
    rows = [PromptRow((Message(role="user", content=WORDS[n]),), {"answer": WORDS[n]}) for n in range(16)]
    prompts, _ = label_prompts(Labeller(tokenizer, 64), rows, 32, base.template_digest)
    seen: list[Answer] = []

    def even(answers: Sequence[Answer]) -> list[float]:
        seen.extend(answers)
        return [sum(token % 2 == 0 for token in answer.ids) / len(answer.ids) for answer in answers]

    bare = models.load_base(base, dtype="float32", device="cpu", attention="sdpa")
    model = models.new_adapter(bare, RECIPE.tuning, seed=0)
    told: list[dict[str, float]] = []
    watch = Watch(Screen(io.StringIO()), lambda metrics, _step: told.append(dict(metrics)), lambda: None)
    made = fit(
        model,
        tokenizer,
        prompts,
        RECIPE,
        device="cpu",
        steps=40,
        validation=[],
        watch=watch,
        judge=Judge({"even": even}),
    )
    rewards = [metrics["reward"] for metrics in told if "reward" in metrics]
    assert made.steps == len(rewards) == 40
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert 0.3 < first < 0.7
    assert last > first + 0.2
    assert list(model.peft_config) == ["default"]
    for answer in seen:
        number = WORDS.index(answer.fields["answer"])
        assert (answer.question, answer.question_ids) == (rows[number].messages, prompts[number].ids)
        assert answer.finished == (answer.ids[-1] == tokenizer.eos_token_id)


def test_how_the_answers_of_a_step_are_split_into_passes_changes_nothing_of_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers, which are otherwise drawn anew for each split, are given here: of every length, so that a token
    would weigh differently where a pass is averaged for itself."""
    base = make_small_base(tmp_path)
    tokenizer = models.load_tokenizer(base)
    rows = [PromptRow((Message(role="user", content=WORDS[n]),)) for n in range(4)]
    prompts, _ = label_prompts(Labeller(tokenizer, 64), rows, 32, base.template_digest)
    lengths = enumerate((1, 6, 2, 5, 3, 4, 6, 1))
    spoken = [tokenizer(" ".join(WORDS[n : n + length]))["input_ids"] for n, length in lengths]
    questions = {prompt.ids: n for n, prompt in enumerate(prompts)}

    def answer_as_given(_trainer: object, prompt_ids: list[list[int]], *_: object, **__: object) -> object:
        nth = dict.fromkeys(questions, 0)
        answers = []
        for asked in map(tuple, prompt_ids):
            answers.append(spoken[2 * questions[asked] + nth[asked]])
            nth[asked] += 1
        return answers, None

    monkeypatch.setattr("tuneloop.train.fit.grpo._PreparedGrpoTrainer._generate_single_turn", answer_as_given)

    def even(answers: Sequence[Answer]) -> list[float]:
        return [sum(token % 2 == 0 for token in answer.ids) / len(answer.ids) for answer in answers]

    found: dict[int, list[tuple[float, float]]] = {}
    for micro_batch in (8, 4, 1):
        values = RECIPE.model_dump(exclude_unset=True)
        values["objective"] |= {"answers": 2, "kl_coefficient": 0.05}
        values["run"] |= {"batch_size": 8, "micro_batch": micro_batch}
        recipe = Recipe.model_validate(values)
        bare = models.load_base(base, dtype="float32", device="cpu", attention="sdpa")
        told: list[dict[str, float]] = []

        def log(metrics: Mapping[str, float], _step: int, told: list[dict[str, float]] = told) -> None:
            told.append(dict(metrics))

        fit(
            models.new_adapter(bare, recipe.tuning, seed=0),
            tokenizer,
            prompts,
            recipe,
            device="cpu",
            steps=3,
            validation=[],
            watch=Watch(Screen(io.StringIO()), log, lambda: None),
            judge=Judge({"even": even}),
        )
        found[micro_batch] = [(one["loss"], one["grad_norm"]) for one in told if "loss" in one]
    assert len(found[8]) == 3
    assert all(norm > 0 for _, norm in found[8])
    for smaller in (4, 1):
        for ours, theirs in zip(found[smaller], found[8], strict=True):
            assert ours[0] == pytest.approx(theirs[0], abs=2e-5)
            assert ours[1] == pytest.approx(theirs[1], rel=1e-3)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two reward functions of its own, as pip would install it."""
    meta = tmp_path / "polite-0.1.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: polite\nVersion: 0.1\n")
    (meta / "entry_points.txt").write_text(
        "[tuneloop.rewards]\npolite = polite_words:score\nfinished = polite_words:score\n"
    )
    (tmp_path / "polite_words.py").write_text("def score(answers):\n    return ['please' in a.text for a in answers]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "polite_words", raising=False)


def answer(text: str, **fields: str) -> Answer:
    return Answer((Message(role="user", content="w1"),), text, True, fields, (1,), (2,))


def test_an_exact_match_is_rewarded_as_it_is_measured() -> None:
    said = [answer("The cat sat.", answer="cat sat"), answer("A dog", answer="cat sat")]
    judge = Judge(find_rewards(["exact_match"]))
    assert judge.part("exact_match", said, batch=2) == exact_match([one.text for one in said], ["cat sat"] * 2)
    assert judge.part("exact_match", said, batch=2) == [1.0, 0.0]


def test_rewards_of_an_installed_package_are_found_by_name(installed: None) -> None:
    judge = Judge(find_rewards(["polite", "contains_answer"]))
    answers = [answer("yes please", answer="YES"), answer("no", answer="yes")]
    assert {name: judge.part(name, answers, batch=2) for name in judge.names} == {
        "polite": [1.0, 0.0],
        "contains_answer": [1.0, 0.0],
    }
    with pytest.raises(NotFound, match="did you mean 'polite'"):
        find_rewards(["polit"])
    with pytest.raises(InvalidInput, match="more than one reward function is named 'finished'"):
        find_rewards(["finished"])


def test_a_reward_that_gives_no_number_for_each_answer_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="gave 1 scores for 2 answers"):
        Judge({"short": lambda _: [1.0]}).part("short", [answer("a"), answer("b")], batch=2)
    with pytest.raises(InvalidInput, match="gave nan for the answer 'a'"):
        Judge({"odd": lambda _: [float("nan")]}).part("odd", [answer("a")], batch=1)
    with pytest.raises(InvalidInput, match="read a row's field `answer`"):
        Judge(find_rewards(["exact_match"])).part("exact_match", [answer("a")], batch=1)
