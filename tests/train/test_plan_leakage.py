"""A plan tells of rows both learned and measured what the run would: nobody rents a machine to hear it there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneloop.registry.errors import Refused
from tuneloop.train.data.load import load_data
from tuneloop.train.data.rows import read_rows
from tuneloop.train.data.sources import Places
from tuneloop.train.plan import leakage
from tuneloop.train.plan.leakage import leakage_of
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.data import QualitySection, Source
from tuneloop.train.verbs.plan import plan as plan_verb


def test_rows_that_are_also_measured_are_told_as_the_run_refuses_them(tiny_recipe: Path) -> None:
    rows = tiny_recipe.with_name("train.jsonl").read_text().splitlines(keepends=True)
    test, validation = (tiny_recipe.with_name(name) for name in ("test.jsonl", "validation.jsonl"))
    measured = test.read_text().splitlines(keepends=True)
    test.write_text("".join([*measured, *rows[:2]]))
    validation.write_text("".join([validation.read_text(), rows[0], measured[0]]))
    planned = json.loads(CliRunner().invoke(plan_verb, [str(tiny_recipe), "--json"], catch_exceptions=False).output)
    leakage = planned["leakage"]
    assert (leakage["rows"], leakage["compared"], leakage["exact"], leakage["left_out"]) == (40, 40, 2, [])
    shown = CliRunner().invoke(plan_verb, [str(tiny_recipe)], catch_exceptions=False).output
    assert "leakage (40 rows): 2 are also measured" in shown
    with pytest.raises(Refused) as raised:
        load_data(load_recipe(tiny_recipe))
    assert len(leakage["refused"]) == 2, "rows that are learned and measured, and validation rows that are"
    assert "\n".join(leakage["refused"]) == str(raised.value)
    assert all(said in shown for said in leakage["refused"])


def test_of_a_large_set_a_sample_is_compared_and_what_cannot_be_is_named(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "SAMPLE", 10)
    rows = read_rows(tiny_recipe.with_name("train.jsonl")).rows
    sets = {"same": (Source(path="train.jsonl"),), "away": (Source(hub="owner/set", split="test"),)}
    found = leakage_of(rows, sets, Places(tiny_recipe.parent), QualitySection())
    assert (found.rows, found.compared, found.exact, found.left_out) == (40, 10, 10, ("away",))
    off = leakage_of(rows, sets, Places(tiny_recipe.parent), QualitySection(leakage="off", near_leakage="off"))
    assert (off.exact, off.near, off.refused) == (0, 0, ())
