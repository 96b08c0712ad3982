"""Declarations, the store that keeps them and the records it reads: strict, and immutable once started."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from registry.experiment_traffic import DECLARED, NO_PLAN, declared
from tests_support import Clock, request_record
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Refused, Unreadable
from tuneloop.registry.experiments.measures import contributions
from tuneloop.registry.nouns import Arm, Feedback
from tuneloop.registry.tables import experiments
from tuneloop.registry.traffic import Opinion, Outcome


def test_every_error_of_a_declaration_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
model: bot
hypotesis: it is better
arms: {1: 5000, 2: 4000}
primary:
  kind: binary
  measure: thumb_down
  goal: lower
guardrails:
  - {kind: quantile, measure: total_ms, goal: lower, margin: 40}
alpha: 0.5
"""
    with pytest.raises(InvalidInput) as caught:
        declared(tmp_path, text)
    told = str(caught.value).replace(str(tmp_path / "experiment.yaml"), "E")
    assert "E:2: hypotesis: unknown key; did you mean 'hypothesis'?" in told
    assert "hypothesis: is missing" in told
    assert "E:3: arms: the shares sum to 9000, not 10000 basis points" in told
    assert "E:6: primary.measure: input should be" in told
    assert "did you mean 'thumbs_down'?" in told
    assert "primary.minimum_effect: is missing" in told
    assert "E:9: guardrails.0: a quantile needs q" in told
    assert "E:10: alpha: input should be less than or equal to 0.2 (given: 0.5)" in told
    assert len(told.splitlines()) == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("arms: {1: 5000, 2: 5000}", "arms: {1: 10000}"), "at least two versions"),
        (("arms: {1: 5000, 2: 5000}", "arms: {1: 5000, 2: 5000}\ncontrol: 3"), "control 3 is none of the arms 1, 2"),
        (("measure: thumbs_down", "measure: total_ms"), "measure total_ms makes no binary"),
        (("minimum_effect: 0.1", "minimum_effect: 20"), "minimum_effect 20 is no difference of shares"),
        (("minimum_effect: 0.1", "minimum_effect: 1.0e-300"), "greater than or equal to 0.000000001"),
        (("model: bot", "model: bot\nalpha: 1.0e-300"), "alpha: input should be greater than or equal to"),
        (("per: asked, ", ""), "a ratio needs per"),
        (("goal: lower\n  min", "goal: lower\n  per: rated\n  min"), "a ratio needs per, and nothing else has it"),
        (
            ("model: bot", "model: bot\nunit: request"),
            "send a fresh x-tuneloop-unit with each and declare unit: header",
        ),
        (("model: bot", "model: bot\nmax_units: 900"), "gives the smallest arm 90 units a look, under 150"),
        (("model: bot", "model: bot\nmode: bandit\nmax_units: 9000"), "judged by the always-valid sequence"),
        (("model: bot", "model: bot\nmode: bandit\nfloor_bp: 5000\narms: {1: 1, 2: 1}"), "arms: stands twice"),
    ],
)
def test_a_declaration_that_could_not_be_judged_is_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        declared(tmp_path, DECLARED.replace(*change))


def test_the_declaration_in_the_document_is_one(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```yaml\n(.*?)^```$", document, re.M | re.S)
    shown = declared(tmp_path, text)
    assert shown.arms == {8: 5_000, 7: 5_000}
    assert len(shown.guardrails) == 2


def test_an_experiment_is_kept_started_and_stopped_on_record(registries: Registry, tmp_path: Path) -> None:
    store, arms = registries.experiments, (Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000))
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    settled = declared(tmp_path).model_copy(update={"control": 1})
    first, second = (store.new(settled, NO_PLAN, by="ada", reason="why") for _ in range(2))
    assert store.get(first.id) == first
    with pytest.raises(Conflict, match="you saw revision 2, it is at 1 now"):
        store.start(first.id, revision=2, by="ada", reason="go")
    running = store.start(first.id, revision=1, by="ada", reason="go")
    assert store.get(first.id) == running
    with pytest.raises(Refused, match=f"{first.id} of the same model is running; one at a time"):
        store.start(second.id, revision=1, by="ada", reason="go")
    with pytest.raises(Refused, match=f"{first.id} is running, not draft"):
        store.start(first.id, revision=1, by="ada", reason="go")
    stopped = store.stop(first.id, by="grace", reason="done")
    with pytest.raises(Refused, match="is stopped, not running"):
        store.stop(first.id, by="grace", reason="done")
    assert {one.id: one.state for one in store.all("bot")} == {first.id: "stopped", second.id: "draft"}
    assert store.all("other") == []
    assert stopped.stopped_at is not None
    entries = registries.audit.entries(first.id)[::-1]
    assert [(e.action, e.actor) for e in entries] == [
        ("experiment.new", "ada"),
        ("experiment.start", "ada"),
        ("experiment.stop", "grace"),
    ]
    assert registries.audit.verify().faults == ()
    with pytest.raises(NotFound, match="`tuneloop experiment list` shows them"):
        store.get("exp_0")


def test_a_started_declaration_can_be_changed_by_nobody(registries: Registry, tmp_path: Path) -> None:
    store, arms = registries.experiments, (Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000))
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    settled = declared(tmp_path).model_copy(update={"control": 1})
    bold = settled.model_copy(update={"alpha": 0.2})
    draft = store.new(settled, NO_PLAN, by="ada", reason="why")
    assert store.redeclare(draft.id, bold, NO_PLAN, by="ada", reason="bolder").declaration.alpha == 0.2
    store.redeclare(draft.id, settled, NO_PLAN, by="ada", reason="no")
    store.start(draft.id, revision=1, by="ada", reason="go")
    with pytest.raises(Refused, match="is running, not draft: its declaration stands"):
        store.redeclare(draft.id, bold, NO_PLAN, by="ada", reason="bolder")
    assert store.get(draft.id).declaration == settled
    with registries.database.writing() as connection:  # somebody with the database's password
        body = bold.model_dump(mode="json")
        connection.execute(sa.update(experiments).where(experiments.c.id == draft.id).values(declaration=body))
    with pytest.raises(Unreadable, match="is not the one it started with"):
        store.get(draft.id)


def test_nobody_speaks_for_other_peoples_users(registries: Registry, clock: Clock) -> None:
    registries.traffic.add_requests([request_record(number, clock()) for number in (1, 2, 3)])
    given = {"1": "key_1", "2": "key_2", "3": None}
    registries.traffic.add_feedback(
        [
            Feedback(id=f"f{number}", request_id=f"req-{number}", at=clock(), thumb="down", correction=" ", api_key=key)
            for number, key in given.items()
        ]
    )
    outcomes, opinions = registries.traffic.outcomes("bot", since=clock() - timedelta(days=1), until=clock())
    assert [outcome.id for outcome in outcomes] == ["req-1", "req-2", "req-3"]
    assert opinions.keys() == {"req-1", "req-3"}
    assert not any(opinion.corrected for found in opinions.values() for opinion in found)
    later = clock() + timedelta(days=1)
    assert registries.traffic.outcomes("bot", since=clock(), until=later) == ([], {})


def test_opening_a_registry_pays_for_no_statistics() -> None:
    code = (
        "import sys, tuneloop.registry, tuneloop.registry.verbs, tuneloop.registry.rollouts.rollout\n"
        "print(sorted({'numpy', 'scipy', 'matplotlib', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _outcome(**changes: object) -> Outcome:
    record = request_record(1, Clock().now, prompt_tokens=7)
    return Outcome.model_validate({name: getattr(record, name) for name in Outcome.model_fields} | changes)


def test_the_newest_opinion_counts_from_its_own_time_on(tmp_path: Path) -> None:
    at, metric = Clock().now, declared(tmp_path).primary
    opinions = [
        Opinion(request_id="req-1", at=at + timedelta(minutes=minute), score=None, thumb=thumb, corrected=False)
        for minute, thumb in ((1, "down"), (2, None), (3, "up"))
    ]
    found = [(part.at - at, part.value, part.weight) for part in contributions(metric, _outcome(), opinions)]
    assert found == [(timedelta(minutes=1), 1.0, 1.0), (timedelta(minutes=3), -1.0, 0.0)]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, [0.0]),
        ({"status": 502}, [1.0]),
        ({"error": "the stream ended early"}, [1.0]),
        ({"served_version": 2}, [1.0]),  # another version had to answer
        ({"status": 400}, []),  # the client's fault
        ({"status": 499}, []),
    ],
)
def test_a_request_fails_as_it_does_for_a_canary(
    tmp_path: Path, changes: dict[str, object], failed: list[float]
) -> None:
    metric = declared(tmp_path, DECLARED.replace("thumbs_down", "error")).primary
    assert [part.value for part in contributions(metric, _outcome(**changes), ())] == failed


def test_a_damaged_experiment_that_is_over_stops_no_other(registries: Registry, tmp_path: Path) -> None:
    registries.routes.write(
        "bot",
        [Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000)],
        by="ada",
        reason="r",
        expected_revision=0,
    )
    settled = declared(tmp_path).model_copy(update={"control": 1})
    over, another = (registries.experiments.new(settled, NO_PLAN, by="ada", reason="r") for _ in range(2))
    registries.experiments.start(over.id, revision=1, by="ada", reason="r")
    registries.experiments.stop(over.id, by="ada", reason="r")
    with registries.database.writing() as connection:
        connection.execute(sa.update(experiments).where(experiments.c.id == over.id).values(plan=[]))
    assert registries.experiments.running("bot") is None
    registries.experiments.start(another.id, revision=1, by="ada", reason="r")
    running = registries.experiments.running("bot")
    assert running is not None
    assert running.id == another.id
