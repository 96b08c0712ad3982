"""Objectives that compare answers, cut or starved on their way: killed, stopped, out of memory, gone wild.

`test_fit_recovery` shows it of supervised fine-tuning; what differs here is what a trainer holds beside the weights:
the model it is compared with, answers that were drawn, a head. PPO has a loop of its own: `test_ppo_recovery`.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from small_base import WORDS, make_small_base
from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_pairs, label_prompts
from tuneloop.train.data.labels import Labeller
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.rows import Row
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.child import run_child
from tuneloop.train.fit.handed import hand_over
from tuneloop.train.fit.launch import ChildSpec, Event, load_weights
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.tuning import LoraTuning
from tuneloop.train.rewards import Answer, Judge
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning import models

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo", "max_length": 64},
    "reward": {"kind": "reward", "max_length": 64},
    "grpo": {
        "kind": "grpo",
        "rewards": ["even"],
        "answers": 2,
        "max_prompt_length": 32,
        "max_new_tokens": 4,
        "kl_coefficient": 0.05,
    },
}
EVERY_STEP = {"every_s": 1e-9, "keep": 2}
RANK = 4
STEPS = 3  # the third begins the second epoch
OUT = "CUDA out of memory. Tried to allocate 2.00 GiB"


class Killed(BaseException):
    """As abrupt as a signal: nothing on the way may catch it."""


def even(answers: Sequence[Answer]) -> list[float]:
    return [sum(token % 2 == 0 for token in answer.ids) / len(answer.ids) for answer in answers]


def spoken(question: str, answer: str) -> Row:
    return Row((Message(role="user", content=question), Message(role="assistant", content=answer)))


@cache
def fresh_of(base: Base, head_seed: int | None) -> Any:
    """Read once."""
    return models.Loader(base, LoraTuning(rank=RANK), "float32", "cpu", "sdpa", head_seed).tunable(0, None)


@dataclass
class Bench:
    """A small model, rows of every kind, and what the last fit told."""

    base: Base
    tokenizer: Any
    folder: Path
    said: list[str] = field(default_factory=list)
    told: dict[int, dict[str, float]] = field(default_factory=dict)  # by step
    judge: Judge = field(default_factory=lambda: Judge({"even": even}))

    def recipe(self, kind: str, **run: Any) -> Recipe:
        values = {
            "base": {"model": "small"},
            "data": {"train": "rows.jsonl"},
            "tuning": {"rank": RANK},
            "objective": OBJECTIVES[kind],
            "optim": {"learning_rate": 1e-2},
            "run": {"steps": STEPS, "batch_size": 4, "micro_batch": 4, "dtype": "float32"} | run,
            "evaluate": {"sets": {"held": "held.jsonl"}},
            "publish": {"model": "bot"},
        }
        return Recipe.model_validate(values)

    def rows(self, kind: str) -> Sequence[Any]:
        labeller, words = Labeller(self.tokenizer, 64), WORDS[:6]  # so that an epoch ends within a run
        if kind == "grpo":
            asked = [PromptRow((Message(role="user", content=word),)) for word in words]
            return label_prompts(labeller, asked, 32, "sha256:t")[0]
        pairs = [PreferenceRow(spoken(word, f"{word} good"), spoken(word, f"bad {word} w3")) for word in words]
        return label_pairs(labeller, pairs, "sha256:t")[0]

    def fresh(self, recipe: Recipe) -> Any:
        return copy.deepcopy(fresh_of(self.base, recipe.objective.head_seed(recipe.run.seed)))

    def model(self, recipe: Recipe) -> Any:
        model = self.fresh(recipe)
        torch.manual_seed(1)
        for name, value in model.named_parameters():  # as one that goes on: it is held to more than the bare base
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.05)
        return model

    def fit(
        self,
        recipe: Recipe,
        *,
        model: Any = None,
        before: Callable[[Any, int, int], None] = lambda *_: None,
        told: Callable[[int], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
        **others: Any,
    ) -> tuple[FitResult, dict[str, torch.Tensor]]:
        """The result and the trained weights; `before` hears (model, rows, learning passes so far) of each pass."""
        model = model or self.model(recipe)
        passes: list[int] = []
        self.told = {}

        def heard(_module: Any, _args: Any, values: dict[str, torch.Tensor]) -> None:
            before(model, len(values["input_ids"]), len(passes))
            passes.extend([1] if torch.is_grad_enabled() else [])

        model.get_base_model().register_forward_pre_hook(heard, with_kwargs=True)

        def log(metrics: Mapping[str, float], step: int) -> None:
            if "loss" in metrics:
                self.told[step] = {name: metrics[name] for name in ("loss", "learning_rate")}
                told(step)

        stream = io.StringIO()
        try:
            made = fit(
                model,
                self.tokenizer,
                self.rows(recipe.objective.kind),
                recipe,
                device="cpu",
                steps=STEPS,
                validation=[],
                watch=Watch(Screen(stream), log, check),
                judge=self.judge,
                **others,
            )
        finally:
            self.said += stream.getvalue().splitlines()
        return made, {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    def store(self) -> CheckpointStore:
        return CheckpointStore(self.folder / "checkpoints", 2, self.said.append)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Any]:
    base = make_small_base(tmp_path_factory.mktemp("base"))
    return base, models.load_tokenizer(base)


@pytest.fixture
def bench(small: tuple[Base, Any], tmp_path: Path) -> Bench:
    return Bench(*small, tmp_path)


Whole = tuple[dict[int, dict[str, float]], list[torch.Tensor]]


@pytest.fixture(scope="module")
def whole(small: tuple[Base, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """What nothing happens to: what each step told, and the weights it ends with; once each objective."""

    @cache
    def run(kind: str) -> Whole:
        bench = Bench(*small, tmp_path_factory.mktemp("whole"))
        _, weights = bench.fit(bench.recipe(kind, micro_batch=2))
        assert set(bench.told) == set(range(1, STEPS + 1))
        return bench.told, trained(weights)

    return run


def trained(weights: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [weights[name] for name in sorted(weights)]


def equal(ours: Mapping[str, torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(trained(ours), theirs, strict=True))


def spoil(model: Any) -> None:
    next(value for value in model.parameters() if value.requires_grad).data.fill_(float("nan"))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_killed_and_resumed_is_the_run_that_was_not_to_the_bit(
    bench: Bench, whole: Callable[[str], Whole], kind: str
) -> None:
    """What it is held to is how training began, not the checkpoint it goes on from."""
    recipe = bench.recipe(kind, checkpoint=EVERY_STEP, micro_batch=2)
    expected, weights = whole(kind)

    def die(step: int) -> None:
        if step == 3:  # after its update, before anything of it is written
            raise Killed

    with pytest.raises(Killed):
        bench.fit(recipe, store=bench.store(), told=die)
    made, ours = bench.fit(recipe, store=bench.store(), resume=True)
    assert bench.told == {3: expected[3]}
    assert (made.first_loss, made.last_loss) == (expected[1]["loss"], expected[3]["loss"])
    assert equal(ours, weights)


@pytest.mark.parametrize(("kind", "learning"), [("dpo", [True, False]), ("reward", [True]), ("grpo", [False])])
def test_a_stop_in_the_midst_of_a_step_leaves_it_after_the_pass_it_is_in(
    bench: Bench, whole: Callable[[str], Whole], kind: str, learning: list[bool]
) -> None:
    """The third step's two passes, which of dpo are the reference's too; grpo samples all answers before the first of
    them, token by token. Asked to stop in the first pass of all."""
    recipe, flag, passes = bench.recipe(kind, micro_batch=2), StopFlag(), list[bool]()
    expected, weights = whole(kind)

    def hear(_model: Any, _rows: int, _before: int) -> None:
        if 2 in bench.told:
            passes.append(torch.is_grad_enabled())
            flag.stop(Stopped("asked to end"))

    with pytest.raises(Stopped, match="the state after step 2 is kept"):
        bench.fit(recipe, before=hear, check=flag.check, store=bench.store())
    assert passes == learning, "no pass follows"
    _, ours = bench.fit(recipe, store=bench.store(), resume=True)
    assert bench.told == {3: expected[3]}
    assert equal(ours, weights)


class Scarce:
    """A reward model that has room for two answers at a time, and finds none better than another."""

    def scores(self, ids: Sequence[Sequence[int]], *, batch: int, check: Callable[[], None]) -> list[float]:
        check()
        if batch > 2:
            raise torch.OutOfMemoryError(OUT)
        return [0.0] * len(ids)


@pytest.mark.parametrize(("kind", "judging"), [("dpo", False), ("grpo", False), ("grpo", True)])
def test_out_of_memory_in_the_first_step_is_the_run_that_began_smaller(
    bench: Bench, whole: Callable[[str], Whole], kind: str, *, judging: bool
) -> None:
    """Wherever it happens: with grpo already while answers are sampled, which TRL does for all of them at once, or
    while they are judged."""

    def run_out(_model: Any, rows: int, _before: int) -> None:
        if rows > (2 if kind == "grpo" else 4) and not judging:  # a preference is two rows
            raise torch.OutOfMemoryError(OUT)

    if judging:
        bench.judge = Judge({"even": even}, Scarce())

    expected, weights = whole(kind)
    made, ours = bench.fit(bench.recipe(kind), before=run_out, store=bench.store())
    assert made.micro_batch == 2
    assert bench.told == expected
    assert equal(ours, weights)
    assert any("going on with micro-batch 2 and 2 accumulated, batch size 4 as before" in line for line in bench.said)


def test_a_run_gone_wild_goes_back_to_where_it_was_whole_with_a_lower_rate(bench: Bench) -> None:
    recipe = bench.recipe("dpo", checkpoint=EVERY_STEP, divergence={"action": "rollback", "max_rollbacks": 1})
    spoilt: list[int] = []

    def once(model: Any, _rows: int, before: int) -> None:
        if before == 2 and torch.is_grad_enabled() and not spoilt:
            spoilt.append(before)
            spoil(model)

    made, weights = bench.fit(recipe, before=once, store=bench.store())
    assert (made.steps, spoilt) == (STEPS, [2])
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert any("rolled back to step 2 with learning rate 0.005 (1 of 1)" in line for line in bench.said), bench.said


def test_a_run_gone_wild_ends_with_the_step_its_questions_and_what_to_do(bench: Bench) -> None:
    asked = list[list[str]]()

    def always(model: Any, _rows: int, before: int) -> None:
        if before == 2 and torch.is_grad_enabled():
            spoil(model)

    def heard(answers: Sequence[Answer]) -> list[float]:
        asked.append(list(dict.fromkeys(answer.question[-1].content for answer in answers)))
        return even(answers)

    bench.judge = Judge({"even": heard})
    places = [f"rows.jsonl:{WORDS.index(word)}" for word in WORDS[:6]]
    recipe = bench.recipe("grpo", checkpoint=EVERY_STEP)
    with pytest.raises(TuneloopError, match=r"step 3: the (loss|gradient norm) is nan.*learning_rate") as raised:
        bench.fit(recipe, before=always, store=bench.store(), places=places)
    named = ", ".join(f"rows.jsonl:{WORDS.index(word)}" for word in asked[-1])
    assert len(asked[-1]) == 2
    assert f"; its questions: {named}; " in str(raised.value)
    found = bench.store().newest_valid()
    assert found is not None
    assert found.state.step == 2, "nothing of it was kept"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward function as pip would install it, for a process that knows its name alone."""
    meta = tmp_path / "even-0.1.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: even\nVersion: 0.1\n")
    (meta / "entry_points.txt").write_text("[tuneloop.rewards]\neven = train.test_fit_cut:even\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", ["reward", "grpo"])
def test_a_process_of_its_own_learns_what_this_one_does(
    bench: Bench, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it is handed, and what it hands back, is whole: rows, head, reward functions; weights."""
    recipe = bench.recipe(kind, max_restarts=1)
    rows = bench.rows(kind)
    _, expected = bench.fit(recipe, model=bench.fresh(recipe))
    spec = ChildSpec(
        recipe=recipe.model_dump(mode="json", exclude_unset=True),
        base=bench.base.folder,
        start=None,
        device="cpu",
        attention="sdpa",
        steps=STEPS,
        store=bench.folder,
        owner=os.getpid(),
        threads=1,
    )
    hand_over(spec.store, rows, [f"rows.jsonl:{number}" for number in range(len(rows))], [])
    assert run_child(spec) == 0
    events = [Event.model_validate_json(line) for line in capsys.readouterr().out.splitlines() if line[:7] == '{"kind"']
    assert events[-1].kind == "done"
    assert {event.step: event.metrics["loss"] for event in events if "loss" in event.metrics} == {
        step: told["loss"] for step, told in bench.told.items()
    }
    found = CheckpointStore(bench.folder, 2, pytest.fail).at(events[-1].result["weights_step"])
    assert found is not None
    model = bench.fresh(recipe)
    load_weights(model, found.folder)
    ours = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert equal(ours, trained(expected))
