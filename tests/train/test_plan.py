"""A plan from a recipe and a table of devices: what fits, what it costs, and what would make it cheaper."""

from __future__ import annotations

import json
import math
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.train.base import MANIFEST, Base, made_before
from tuneloop.train.plan import advice, compare
from tuneloop.train.plan.advice import advise
from tuneloop.train.plan.memory import GIB, Load, memory_of
from tuneloop.train.plan.plan import Machine, Plan, make_plan
from tuneloop.train.plan.prices import PriceTable, load_prices
from tuneloop.train.plan.rows import RowFacts, assumed
from tuneloop.train.plan.shapes import planned_base
from tuneloop.train.recipe import Recipe, load_recipe
from tuneloop.train.recipe.combinations import refusals
from tuneloop.train.recipe.layers import READY
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning, QloraTuning


def recipe(**sections: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "base": {"model": "x"},
        "data": {"train": "train.jsonl"},
        "run": {"steps": 10, "batch_size": 16, "micro_batch": 4},
        "evaluate": {"sets": {"test": "test.jsonl"}, "generate": 0},  # what answers take: `test_plan_answering`
        "publish": {"model": "m"},
    }
    return Recipe.model_validate(values | sections)


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return load_prices()


def planned(table: PriceTable, size: str, device: str, rows: RowFacts | None = None, **sections: Any) -> Plan:
    name, found = table.device(device)
    machine = Machine(name, "cuda", found, tuple(o for o in table.offers if o.device == name))
    facts = rows or assumed(1000, 1024, "assumed")
    return make_plan(recipe(**sections), compare.guide_shape(size), facts, machine)


def test_what_is_known_of_7b_comes_out(table: PriceTable) -> None:
    """All weights: 16 bytes a parameter, 4 more while a GPU's optimiser steps; NF4 weights of 7B below 4 GiB."""
    shape = compare.guide_shape("7B")
    assert shape.parameters == 6_738_415_616
    full = memory_of(shape, FullTuning(method="full"), Load(1, 16, "float32", accumulates=True), "cuda")
    assert full.weights + full.gradients + full.optimizer == 20 * shape.parameters
    quantised = memory_of(shape, QloraTuning(method="qlora"), Load(1, 16, "bfloat16"), "cuda")
    assert 3.5 * 2**30 < quantised.weights < 4.0 * 2**30
    assert planned(table, "7B", "V100", tuning={"method": "full"}).fits == "no"


def test_the_largest_micro_batch_fits_and_the_next_does_not(table: PriceTable) -> None:
    first = planned(table, "7B", "RTX4090", tuning={"method": "qlora"})
    assert 1 <= first.largest_micro_batch < 16
    run = {"steps": 10, "batch_size": 16, "micro_batch": first.largest_micro_batch}
    assert planned(table, "7B", "RTX4090", tuning={"method": "qlora"}, run=run).fits == "yes"
    run["micro_batch"] = 2 * first.largest_micro_batch
    assert planned(table, "7B", "RTX4090", tuning={"method": "qlora"}, run=run).fits != "yes"


def test_a_run_by_epochs_is_planned_for_as_many_steps_as_it_takes(table: PriceTable) -> None:
    """With grpo `batch_size` counts answers, several to a question."""
    run = {"epochs": 2, "batch_size": 16, "micro_batch": 4}
    assert planned(table, "7B", "H100", run=run).steps == 2 * math.ceil(1000 / 16)
    grpo = {"kind": "grpo", "rewards": ["short"], "answers": 8}
    assert planned(table, "7B", "H100", run=run, objective=grpo).steps == 2 * 8 * 1000 / 16


def test_a_base_of_the_same_name_from_elsewhere_is_not_taken_for_it(
    tmp_path: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`team-a/tiny` was downloaded before; `team-b/tiny` is another model."""
    made = tmp_path / "tiny"
    shutil.copytree(tiny.folder, made)
    (made / MANIFEST).write_text(json.dumps({"source": "team-a/tiny", "digest": "team-a/tiny"}))
    assert made_before("team-a/tiny", tmp_path, None) == made
    assert made_before("team-b/tiny", tmp_path, None) is None
    assert planned_base("team-a/tiny", tmp_path, relative_to=tmp_path).folder == made
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="team-b/tiny"):
        planned_base("team-b/tiny", tmp_path, relative_to=tmp_path)


def test_sharding_and_checkpointing_save_what_they_should(table: PriceTable) -> None:
    def total(method: str, **run: Any) -> Plan:
        shared = {"steps": 10, "batch_size": 16, "micro_batch": 4, "dtype": "bfloat16"}
        return planned(table, "7B", "H100", tuning={"method": method}, run=shared | run)

    alone, checkpointed = total("lora"), total("lora", gradient_checkpointing=True)
    assert checkpointed.memory.activations < alone.memory.activations / 5
    assert checkpointed.step.estimate > alone.step.estimate
    whole, spread = total("full"), total("full", launch={"processes": 4, "strategy": "zero3"})
    assert spread.memory.optimizer <= whole.memory.optimizer // 4


def test_money_is_exact_and_an_instance_is_paid_whole(table: PriceTable) -> None:
    plan = planned(table, "7B", "A100-40G")
    aws = next(cost for cost in plan.costs if cost.offer.provider == "aws" and not cost.spot)
    hours = Decimal(repr(plan.hours.estimate))
    assert aws.usd == (aws.offer.usd * hours).quantize(Decimal("0.01"))
    assert aws.offer.devices == 8
    assert plan.costs == tuple(sorted(plan.costs, key=lambda cost: cost.usd))


def test_advice_makes_a_run_fit_or_cheaper_by_what_it_says(table: PriceTable) -> None:
    short = planned(table, "13B", "A100-40G", tuning={"method": "full"})
    changes = [one.change for one in advise(short)]
    assert short.fits == "no"
    assert "tuning.method: lora" in changes
    ragged = RowFacts(1000, 1000, 120.0, (20,) * 90 + (1000,) * 10, 0.5, "made up")
    run = {"steps": 1000, "batch_size": 16, "micro_batch": 16, "gradient_checkpointing": True}
    fitting = planned(table, "7B", "H100", rows=ragged, run=run)
    packing = next(one for one in advise(fitting) if one.change == "run.packing: true")
    assert packing.time_share < -0.3
    assert all(Decimal(one.usd or 0) < 0 for one in advise(fitting))


@pytest.mark.parametrize("name", sorted(path.stem for path in READY.glob("*.yaml") if path.stem != "rlhf"))
@pytest.mark.parametrize("device", ["RTX4090", "H100"])
def test_what_is_advised_is_a_recipe_that_loads(
    table: PriceTable, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is planned as a change; of rows that differ, so that packing would save."""
    tried: list[Recipe] = []

    def make(changed: Recipe, *others: Any) -> Plan:
        tried.append(changed)
        return make_plan(changed, *others)

    monkeypatch.setattr(advice, "make_plan", make)
    found, chosen = table.device(device)
    ragged = RowFacts(1000, 1000, 120.0, (20,) * 90 + (1000,) * 10, 0.5, "made up")
    ready = load_recipe(READY / f"{name}.yaml", check_paths=False).recipe
    advise(make_plan(ready, compare.guide_shape("7B"), ragged, Machine(found, "cuda", chosen)))
    assert tried
    for changed in tried:
        assert Recipe.model_validate(changed.model_dump(exclude_unset=True)) == changed
        assert not refusals(changed)
        if isinstance(ready.tuning, LoraTuning) and isinstance(changed.tuning, QloraTuning):
            assert changed.tuning.model_dump(include=set(LoraTuning.model_fields) - {"method"}) == (
                ready.tuning.model_dump(exclude={"method"})
            )


def test_packed_rows_are_masked_from_each_other_at_the_whole_sequences_price(table: PriceTable) -> None:
    """Rows all alike, so that packing saves no padding; only flash attention's kernels leave other rows out."""

    def step_s(**run: Any) -> float:
        return planned(table, "7B", "H100", run={"steps": 10, "batch_size": 16, "micro_batch": 4} | run).step.estimate

    alone, masked, apart = step_s(), step_s(packing=True), step_s(packing=True, attention="flash_attention_2")
    assert apart == alone
    attention = 32 * 2 * 4096 * 1024 * 3.5  # layers, both products, width, tokens of a row, forward and backward
    tokens = 16 * 1024
    assert masked - alone == pytest.approx(3 * attention * tokens / (0.4 * 989e12), rel=1e-6)


def test_the_guides_table_is_drawn_whole_and_differences_are_told(table: PriceTable) -> None:
    lines = compare.compare(table)
    assert [(line.size, line.method) for line in lines] == [
        (size, method) for size in ("7B", "13B", "70B") for method in ("qlora", "lora", "full")
    ]
    assert next(line for line in lines if (line.size, line.method) == ("70B", "qlora")).devices == 1
    assert all(line.why for line in lines)
    text = compare.shown(lines)
    assert "7B full: shorter than the guide's 20-40 h" in text
    assert "70B full: the guide leaves it out" in text
    money = next(line for line in text.splitlines() if "$128-256" in line)
    ours = lines[6].usd["azure"]
    assert ours is not None
    order = [money.index(each) for each in (f"${ours[1]} [", "$160-320", "$144-288")]
    assert order == sorted(order), "each provider beside the guide's own column"
    assert compare.as_json(lines)[6]["guide_usd"]["azure"] == (160, 320)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('  - {provider: aws, device: B9, devices: 1, instance: x, usd: 1, as_of: "2026-01-01"}', "no device 'B9'"),
        (
            '  - {provider: aws, device: T4, devices: 0, instance: x, usd: 1, as_of: "2026-01-01"}',
            "greater than or equal",
        ),
        ('  - {provider: aws, device: T4, devices: 1, instance: x, usb: 1, as_of: "2026-01-01"}', "unknown key"),
    ],
)
def test_a_wrong_price_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prices.yaml"
    device = "T4: {memory_gib: 16, tflops_bf16: 65, tflops_fp32: 8, bandwidth_gb_s: 300, watts: 70}"
    path.write_text(f"devices:\n  {device}\noffers:\n{line}\n")
    with pytest.raises(InvalidInput, match=rf"prices\.yaml:4: .*{said}"):
        load_prices(path)


def test_a_device_nobody_lists_is_refused(table: PriceTable) -> None:
    with pytest.raises(NotFound, match="the table lists no device 'B200'; it has A100-40G"):
        table.device("B200")


def test_what_must_be_held_whole_is_told_and_decides(table: PriceTable) -> None:
    """70 billion weights in 4 bits fit where they cannot be measured unquantised; shards come from a whole."""
    qlora = {"method": "qlora"}
    run = {"steps": 10, "batch_size": 8, "micro_batch": 1, "gradient_checkpointing": True}
    refused = planned(table, "70B", "A100-80G", tuning=qlora, run=run)
    assert refused.memory.high < 80 * GIB * 0.95
    assert refused.fits == "no"
    assert any("set tuning.evaluate_unquantized to false" in note for note in refused.notes)
    assert planned(table, "70B", "A100-80G", tuning=qlora | {"evaluate_unquantized": False}, run=run).fits == "yes"
    sharded = run | {"launch": {"processes": 8, "strategy": "zero3"}}
    assert planned(table, "70B", "A100-80G", run=sharded).fits == "no"
    assert any("loads the weights whole" in note for note in planned(table, "7B", "A100-80G", run=sharded).notes)
