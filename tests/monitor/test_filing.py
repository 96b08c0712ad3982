"""Filing retraining: corrections are counted from the drift on, one request is filed, and holding says why once."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from monitor.scene import SMALL, Scene
from tests_support import alert_episode, statements
from tuneloop.monitor.filing import pursue
from tuneloop.registry.nouns import AlertEpisode, RetrainingState
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import Estimate


@pytest.fixture
def drifting(scene: Scene) -> Scene:
    """A drift is seen and an episode is open; no user has corrected anything since."""
    set_policy(scene)
    scene.correct(scene.usual(60)[:30])  # before the drift: of no use
    scene.drifted(20)
    scene.watch()
    return scene


def set_policy(scene: Scene, **changes: object) -> None:
    policy = RetrainingPolicy.model_validate({"min_rows": 10} | changes)
    scene.registry.policies.set("bot", policy, by="ada", reason="test")


def episode_of(scene: Scene) -> AlertEpisode:
    return scene.registry.episodes.all("bot")[0]


def test_holding_is_written_down_once_and_retried_on_each_pass(drifting: Scene) -> None:
    drifting.watch()
    drifting.correct(drifting.drifted(5))
    drifting.watch()
    (note,) = episode_of(drifting).done
    assert "no retraining yet: 0 of 10 corrections since" in note
    assert drifting.requests() == []
    drifting.correct(drifting.drifted(5))
    drifting.watch()
    (request,) = drifting.requests()
    assert request.rows == 10
    assert request.state == RetrainingState.PROPOSED
    assert request.recipe == "bot@1"
    assert request.episode_id == episode_of(drifting).id
    assert "filed retraining" in episode_of(drifting).done[-1]


def test_the_data_window_holds_the_first_drifted_record_and_every_correction(drifting: Scene) -> None:
    drifting.correct(drifting.drifted(12))
    drifting.watch()
    (request,) = drifting.requests()
    first = drifting.registry.episodes.score(episode_of(drifting).windows[0])
    found = drifting.registry.traffic.window("bot", since=request.window_start, until=request.window_end)
    assert found[0].id == first.request_ids[0]
    assert len(drifting.registry.traffic.feedback_for([record.id for record in found])) == request.rows


@pytest.mark.parametrize(("policy", "counts"), [({"enabled": False}, 0), ({"min_rows": 99}, 1)])
def test_no_record_is_read_to_decide_whether_a_request_is_due(
    drifting: Scene, policy: dict[str, object], counts: int
) -> None:
    drifting.correct(drifting.drifted(12))
    set_policy(drifting, **policy)
    with statements(drifting.registry) as asked:
        pursue(drifting.registry, episode_of(drifting), SMALL)
    traffic = [statement for statement in asked if "FROM requests" in statement or "FROM feedback" in statement]
    assert len(traffic) == counts
    assert not any("messages" in statement.split("FROM")[0] for statement in asked), "that there are some is asked"
    assert drifting.requests() == []


def test_what_did_not_help_backs_off_and_waits_for_corrections_it_has_not_learned_from(drifting: Scene) -> None:
    set_policy(drifting, cooldown_s=100, auto_approve=True)
    drifting.correct(drifting.drifted(12))
    drifting.clock.advance(1)  # the last correction came a second after its answer
    drifting.watch()
    queue = drifting.registry.retraining
    claimed = queue.claim("w1", lease_s=60)
    assert claimed is not None
    queue.finish(claimed, RetrainingState.FAILED, by="w1", outcome="no better")
    drifting.clock.advance(100)
    pursue(drifting.registry, episode_of(drifting), SMALL)
    assert f"{claimed.id} did not help: failed (no better); after 1" in episode_of(drifting).done[-1]
    drifting.clock.advance(100)
    pursue(drifting.registry, episode_of(drifting), SMALL)
    assert "0 of 10 corrections since" in episode_of(drifting).done[-1]
    assert f"when {claimed.id} was filed" in episode_of(drifting).done[-1]
    drifting.correct(drifting.drifted(10))
    drifting.clock.advance(1)
    pursue(drifting.registry, episode_of(drifting), SMALL)
    second, _ = drifting.requests()
    assert (second.rows, second.window_start) == (22, claimed.window_start), "it learns from the whole drift"


def test_one_request_however_often_it_is_looked_at(drifting: Scene) -> None:
    drifting.correct(drifting.drifted(12))
    for _ in range(3):
        drifting.drifted(20)
        drifting.watch()
    assert len(drifting.requests()) == 1
    assert sum("filed" in line for line in episode_of(drifting).done) == 1


def test_auto_approval_is_on_record_and_done_even_when_cut_off_after_filing(drifting: Scene) -> None:
    drifting.correct(drifting.drifted(12))
    drifting.watch()
    (request,) = drifting.requests()
    set_policy(drifting, auto_approve=True)
    drifting.watch()
    (approved,) = drifting.requests()
    assert approved.state == RetrainingState.QUEUED
    assert {entry.actor for entry in drifting.registry.audit.entries(request.id)} == {"monitor", "policy"}


def test_a_champion_that_replaced_the_version_resolves_the_episode_and_a_return_holds_for_the_cooldown(
    drifting: Scene,
) -> None:
    drifting.correct(drifting.drifted(12))
    drifting.watch()
    (request,) = drifting.requests()
    drifting.registry.retraining.cancel(request.id, by="ada", reason="by hand")
    drifting.promote(2, "retrained by hand")
    drifting.watch()
    episode = episode_of(drifting)
    assert episode.state == "resolved"
    assert episode.done[-1].endswith("bot@2 took over from bot@1 with revision 2 (ada: retrained by hand)")
    assert episode.evidence["champion"] == {"before": "bot@1", "after": "bot@2"}
    drifting.promote(1, "rollback")
    drifting.correct(drifting.drifted(20))
    drifting.watch()
    second = episode_of(drifting)
    assert second.id != episode.id
    assert second.state == "open"
    assert "the cooldown lasts until" in second.done[-1]
    assert len(drifting.requests()) == 1


def test_a_request_that_a_budget_sent_back_is_a_persons_to_approve_not_the_policys(drifting: Scene) -> None:
    set_policy(drifting, auto_approve=True, cost_usd_per_month=1)
    drifting.correct(drifting.drifted(12))
    drifting.watch()
    queue = drifting.registry.retraining
    claimed = queue.claim("w1", lease_s=60)
    assert claimed is not None
    queue.begin(claimed, Estimate(1.0, 1, Decimal(2), "the plan"), by="w1")
    drifting.watch()
    (request,) = drifting.requests()
    assert (request.state, request.held) == (
        RetrainingState.PROPOSED,
        "0.00 of 1 USD a month are spent, it costs 2.00 (the plan)",
    )


def test_what_nobody_decides_about_expires_at_the_monitors_turn(drifting: Scene) -> None:
    drifting.correct(drifting.drifted(12))
    drifting.watch()
    set_policy(drifting, expires_s=0.001, cooldown_s=1e6)
    time.sleep(0.01)
    drifting.watch()
    (request,) = drifting.requests()
    assert request.state == RetrainingState.EXPIRED


@pytest.mark.parametrize(
    ("written", "rows"), [({}, []), ({"since": "this morning", "signals": {"prompt_drift": {}}}, [10])]
)
def test_an_episode_that_somebody_else_wrote_is_kept_like_any_other_whatever_it_says_of_itself(
    scene: Scene, written: dict[str, object], rows: list[int]
) -> None:
    set_policy(scene, min_rows=1)
    scene.correct(scene.usual(70)[60:])  # before anybody saw it
    scene.registry.episodes.open(alert_episode(scene.clock(), evidence=written))
    scene.correct(scene.usual(10))
    assert scene.watch().failure == ""
    assert [request.rows for request in scene.requests()] == rows  # without a signal it asks for none
    scene.drifted(20)
    assert scene.watch().failure == ""
    assert "numpy" in str(episode_of(scene).evidence["signals"] | {"said": episode_of(scene).evidence.get("summary")})
    scene.usual(80)
    assert scene.watch().failure == ""
    assert episode_of(scene).state == "resolved"
    assert len(scene.registry.episodes.all("bot")) == 1
