"""Four days of the simulated quarter (`benchmarks/simulated_quarter.py`): what goes wrong in it is found within
its bound, named rightly and told once, and only the drift asks for a retraining."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_four_days_with_an_attack_and_a_drift_are_told_as_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    plan, world, judged, story = (
        importlib.import_module(f"quarter_parts.{name}") for name in ("plan", "world", "findings", "story")
    )
    with world.quarter_of(plan.days(), tmp_path, examples=0) as played:
        played.run()
        found = judged.findings(played)
        document = story.document(played, found)
    attack, drift = found.rows
    assert found.faults == []
    assert (attack.named, attack.requests) == ("attack", ())
    assert "under attack" in attack.held
    assert (drift.named, len(drift.requests)) == ("drift", 1)
    assert played.traffic.asked["blocked"] > 10, "the guards' own verdicts stop most attempts, and let some through"
    assert "cause      attack: guards caught" in document
    assert f"| {drift.event.name} (drift) |" in document
