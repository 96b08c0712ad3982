"""What a plan counts where answers are written is what torch allocates, and the fullest of all moments decides."""

from __future__ import annotations

from typing import Any

import pytest

from train.test_plan_shapes import build, tiny_config, with_method
from tuneloop.train.plan import compare
from tuneloop.train.plan.answering import (
    LEARNED,
    MEASURED,
    Answers,
    cache_bytes,
    learned_answers,
    measured_answers,
    memory_of_answers,
)
from tuneloop.train.plan.memory import GIB, Load, memory_of
from tuneloop.train.plan.plan import Machine, Plan, make_plan
from tuneloop.train.plan.prices import load_prices
from tuneloop.train.plan.rows import RowFacts, assumed
from tuneloop.train.plan.shapes import shape_of_config
from tuneloop.train.recipe import Recipe, TuningSection
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning, QloraTuning

CONFIG = tiny_config(
    hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=8, max_position_embeddings=1024
)


def allocated(model: Any, answers: Answers) -> tuple[int, int]:
    """(bytes of keys and values at the end, most bytes alive at once beside the weights) of one generate()."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import GenerationConfig

    ids = torch.randint(5, 90, (answers.rows, answers.question))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padding on the left, as a batch of questions has it
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=answers.answer, min_new_tokens=answers.answer, pad_token_id=0, eos_token_id=1
    )
    settings.return_dict_in_generate = True
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in made.past_key_values.layers), most


@pytest.mark.parametrize(
    ("tuning", "dtype", "known"),
    [
        (LoraTuning(rank=4), "float32", 0.1),
        (FullTuning(method="full"), "float32", 0.1),
        (LoraTuning(rank=4), "bfloat16", 0.3),  # what products in bfloat16 take beside depends on the processor
    ],
    ids=["lora", "full", "lora in bfloat16"],
)
@pytest.mark.parametrize(("question", "answer"), [(160, 2), (8, 48)], ids=["long questions", "long answers"])
def test_what_is_planned_while_answers_are_written_is_what_torch_allocates(
    question: int, answer: int, tuning: TuningSection, dtype: str, known: float
) -> None:
    answers, shape = Answers(8, question, answer), shape_of_config(CONFIG, "tiny")
    cache, most = allocated(with_method(build(CONFIG, dtype), tuning).eval(), answers)
    assert cache == cache_bytes(shape, 8, question + answer - 1, 4 if dtype == "float32" else 2)
    load = Load(rows=8, length=64, dtype="bfloat16" if dtype == "bfloat16" else "float32")
    planned = memory_of_answers(shape, tuning, load, answers, "cpu")
    assert planned.activations + planned.loss + planned.cache == pytest.approx(most, rel=known)


def planned(rows: RowFacts, device: str = "H100", *, evaluate: dict[str, Any] | None = None, **sections: Any) -> Plan:
    table = load_prices()
    values: dict[str, Any] = {
        "base": {"model": "x"},
        "data": {"train": "train.jsonl"},
        "run": {"steps": 10, "batch_size": 16, "micro_batch": 4, "dtype": "bfloat16"},
        "evaluate": {"sets": {"test": "test.jsonl"}} | (evaluate or {}),
        "publish": {"model": "m"},
    }
    machine = Machine(device, "cuda", table.device(device)[1])
    return make_plan(Recipe.model_validate(values | sections), compare.guide_shape("7B"), rows, machine)


SAMPLED = {"kind": "ppo", "rewards": ["short"], "max_prompt_length": 256, "max_new_tokens": 256}
SILENT = {"generate": 0}


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_method_that_learns_from_its_own_answers_holds_their_keys_and_values(kind: str) -> None:
    """7B: two of 32 layers × 4,096 × 2 bytes a token; a micro-batch at a time."""
    plan = planned(assumed(1000, 512, "assumed"), evaluate=SILENT, objective=SAMPLED | {"kind": kind})
    assert plan.answering is not None
    assert plan.answering.moment == LEARNED
    assert plan.answering.cache == 2 * 32 * 4096 * 2 * 4 * 511
    assert plan.memory.total >= plan.answering.total
    assert planned(assumed(1000, 512, "assumed"), evaluate=SILENT).answering is None


def test_the_fullest_moment_decides_and_no_two_are_added() -> None:
    """A few long questions that are measured beside many short rows that are learned one at a time."""
    ragged = RowFacts(1000, 2000, 260.0, (20,) * 9 + (2000,), 0.5, "made up")
    run = {"steps": 10, "batch_size": 16, "micro_batch": 1, "dtype": "bfloat16", "gradient_checkpointing": True}
    quiet, loud = planned(ragged, run=run, evaluate=SILENT), planned(ragged, run=run)
    assert loud.answering is not None
    assert (quiet.answering, quiet.memory.cache) == (None, 0)
    assert loud.memory == max(quiet.memory, loud.answering, key=lambda moment: moment.total) == loud.answering
    assert loud.memory.moment == MEASURED
    assert (loud.memory.optimizer, loud.memory.gradients) == (0, 0), "they are gone, or not there yet"
    assert any("a smaller evaluate.generate" in note for note in loud.notes)
    assert loud.largest_micro_batch == quiet.largest_micro_batch


def test_what_cannot_be_measured_does_not_fit_though_its_steps_do() -> None:
    rows, tuning = assumed(1000, 1024, "assumed"), {"method": "qlora"}
    run = {"steps": 10, "batch_size": 16, "micro_batch": 1, "dtype": "bfloat16", "gradient_checkpointing": True}
    assert planned(rows, "RTX4090", tuning=tuning, run=run, evaluate=SILENT).fits == "yes"
    refused = planned(rows, "RTX4090", tuning=tuning, run=run, evaluate={"max_new_tokens": 32_000})
    assert refused.memory.total > 24 * GIB
    assert refused.fits == "no"
    assert refused.memory.weights > 2 * compare.guide_shape("7B").parameters, "it is measured on the unquantised base"


def test_held_out_questions_are_batched_as_they_are_measured() -> None:
    """At most 32 at a time, and 16,384 tokens; the longest are together."""
    recipe = planned(assumed(10, 100, "assumed")).recipe

    def of(*lengths: int, **changes: Any) -> Answers | None:
        asked = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=changes)})
        return measured_answers(asked, RowFacts(100, max(lengths), 1.0, lengths, 0.5, "made up"))

    assert of(100) == Answers(24, 100, 64)
    assert of(100, generate=40) == Answers(32, 100, 64)
    assert of(2000) == Answers(16384 // 2064, 2000, 64)
    assert of(20000) == Answers(1, 20000, 64), "one row is never cut"
    assert of(*[50] * 9, 3000) == Answers(2, 3000, 64), "they are not put beside the short ones"
    assert of(100, generate=0) is None
    assert learned_answers(recipe, Load(rows=4, length=100, dtype="float32")) is None


def test_whole_weights_are_measured_as_they_are_trained() -> None:
    shape, load = compare.guide_shape("7B"), Load(rows=1, length=64, dtype="bfloat16")
    full = memory_of_answers(shape, FullTuning(method="full"), load, Answers(1, 32, 32), "cuda")
    assert full.weights == 4 * shape.parameters
    assert full.cache == cache_bytes(shape, 1, 63, 4)
    quantised = QloraTuning(method="qlora", evaluate_unquantized=False)
    kept = memory_of_answers(shape, quantised, load, Answers(1, 32, 32), "cuda")
    assert kept.weights == memory_of(shape, quantised, load, "cuda").weights
