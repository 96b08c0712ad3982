"""`tuneloop rollout` and `tuneloop controller` as people and scripts meet them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from registry.verbs import WHO, Verb
from registry.world import CHANGE, World, set_up
from tuneloop.registry import Registry
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import RolloutPlan, RolloutState, RolloutStep
from tuneloop.registry.rollouts.steering import declare, drive
from tuneloop.registry.routes.promotion import Change, set_route


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def ready(registry: Registry) -> Registry:
    """`bot@1` serves, `bot@2` may be rolled out; no engine and no gateway lives."""
    set_up(registry)
    return registry


def test_a_steps_own_checks_are_shown_and_a_misspelt_one_is_told_with_its_line(
    ready: Registry, verb: Verb, tmp_path: Path
) -> None:
    policy = tmp_path / "rollout.yaml"
    policy.write_text("steps:\n  - {weight_bp: 1000, checks: {errors: 0.02, latency}}\n  - {weight_bp: 5000}\n")
    assert verb("rollout", "policy", "bot", "--set", str(policy), *WHO)[0] == 0
    assert verb("rollout", "start", "bot@2", "--detach", *WHO)[0] == 0
    _, out, _ = verb("rollout", "status", "bot")
    shown = [line.split() for line in out.splitlines() if line.startswith(("STEP", "1  ", "2  "))]
    assert shown[0] == ["STEP", "SHARE", "AT", "LEAST", "SAMPLES", "CHECKS", "VERDICT"]
    assert shown[1][6:-1] == ["errors", "0.02,", "latency"]
    assert shown[2][6:-1] == ["every", "one"]
    policy.write_text("steps:\n  - weight_bp: 1000\n    checks:\n      latncy: 1.2\n      errors: 2\n")
    code, _, err = verb("rollout", "policy", "bot", "--set", str(policy), *WHO)
    assert code == 2
    assert "rollout.yaml:4: steps.0.checks.latncy: " in err
    assert "did you mean 'latency'?" in err
    policy.write_text("steps:\n  - weight_bp: 1000\n    checks:\n      errors: 2\n")
    _, _, err = verb("rollout", "policy", "bot", "--set", str(policy), *WHO)
    assert "rollout.yaml:2: steps.0: checks.errors: input should be less than or equal to 1 (given: 2)" in err


def test_a_declared_rollout_in_verbs_from_detaching_to_aborting(ready: Registry, verb: Verb) -> None:
    code, out, _ = verb("rollout", "start", "bot@2", "--detach", *WHO)
    assert (code, out.split(" ", 1)[1]) == (0, "of bot@2 is declared; a controller goes on with it\n")
    rollout_id = out.split(" ")[0]
    _, out, _ = verb("rollout", "status", "bot")
    assert out.splitlines()[1] == f"{rollout_id} of bot@2 is running"
    assert "step 0 of 2 since" in out
    assert "declared by ada (test), gone on with by no controller yet" in out
    assert out.endswith("no canary is running\n")
    for dead in ("first", "second"):
        assert ready.rollouts.claim(rollout_id, dead, lease_s=-1)
    _, out, _ = verb("rollout", "status", "bot")
    assert re.search(
        r"gone on with by second, whose lease ended at \d\d:\d\d:\d\d UTC\nits lease was taken over once ", out
    )
    assert ready.rollouts.claim(rollout_id, "third", lease_s=60)
    _, out, _ = verb("rollout", "status", "bot")
    assert re.search(
        r"by third, whose lease ends at .* UTC\nits lease was taken over 2 times within the last hour ", out
    )
    assert json.loads(verb("rollout", "status", "bot", "--json")[1])["taken_over"] == 2
    ready.rollouts.release(ready.rollouts.get(rollout_id))
    assert re.search(r"gone on with by no controller since \d\d:\d\d:\d\d UTC", verb("rollout", "status", "bot")[1])
    assert verb("controller", "--once")[0] == 0
    _, out, _ = verb("rollout", "status", "bot")
    assert "step 1 of 2 since" in out
    assert [line.split() for line in out.splitlines() if line.startswith(("1  ", "2  "))] == [
        ["1", "10", "%", "60", "s", "30", "held"],
        ["2", "50", "%", "60", "s", "30", "-"],
    ]
    assert "bot@2: inconclusive (by the rollout's own limits)" in out
    set_route(ready, "bot", {2: 500, 1: 9_500}, Change("grace", "less"))
    verb("controller", "--once")
    listed = json.loads(verb("rollout", "list", "--model", "bot", "--json")[1])
    assert [(one["id"], one["state"]) for one in listed] == [(rollout_id, "paused")]
    assert "paused" in verb("rollout", "list")[1]
    assert "grace wrote revision 3" in verb("rollout", "status", "bot")[1]
    assert verb("status")[1].splitlines()[-1].startswith(f"{rollout_id}  bot@2    paused  grace wrote revision 3")
    code, out, _ = verb("rollout", "resume", "bot", "--detach", *WHO, "--json")
    assert (code, json.loads(out)["state"]) == (0, "running")
    code, out, _ = verb("rollout", "abort", "bot", *WHO)
    assert (code, out) == (0, f"{rollout_id} of bot@2 is aborted\nbot revision 4: 2=0 1=10000 (by ada: test)\n")
    assert verb("rollout", "status", "bot")[1].endswith("no canary is running\n")
    assert "aborted" in verb("rollout", "list")[1]
    code, _, err = verb("rollout", "resume", "bot", *WHO)
    assert (code, "no rollout of bot is open" in err) == (2, True)


def test_status_of_a_share_that_was_set_by_hand_judges_by_the_policy(ready: Registry, verb: Verb) -> None:
    set_route(ready, "bot", {2: 500, 1: 9_500}, CHANGE)
    assert (
        "bot@2: inconclusive (by the policy's limits; no rollout set this share)" in verb("rollout", "status", "bot")[1]
    )


def test_a_policy_says_how_rollouts_go_and_flags_say_it_of_one(
    ready: Registry, verb: Verb, registry_home: Path
) -> None:
    path = registry_home / "rollout.yaml"
    path.write_text(
        "steps:\n"
        "  - {weight_bp: 500, hold_s: 5, min_samples: 7}\n"
        "  - {weight_bp: 2000, hold_s: 30}\n"
        "limits: {feedback_margin: 0.2, token_ratio: 1.3}\n"
        "give_up_s: 900\n"
        "aliases: adopt\n"
    )
    code, out, _ = verb("rollout", "policy", "bot", "--set", str(path), *WHO, "--json")
    assert (code, json.loads(out)["aliases"]) == (0, "adopt")
    path.write_text(verb("rollout", "policy", "bot")[1])
    assert "weight_bp: 500, hold_s: 5.0, min_samples: 7" in path.read_text()
    assert verb("rollout", "policy", "bot", "--set", str(path), *WHO, "--json")[1] == out, "what is shown can be set"
    verb("rollout", "start", "bot@2", "--detach", "--margin", "0.3", *WHO)
    plan = ready.rollouts.all("bot")[0].plan
    assert [(step.weight_bp, step.hold_s, step.min_samples) for step in plan.steps] == [(500, 5, 7), (2_000, 30, 30)]
    assert (plan.limits.feedback_margin, plan.limits.token_ratio, plan.give_up_s) == (0.3, 1.3, 900)
    verb("rollout", "start", "bot@2", "--detach", "--steps", "100,200,300,10000", "--hold-s", "1", *WHO)
    plan = ready.rollouts.all("bot")[0].plan
    assert [(step.weight_bp, step.hold_s, step.min_samples) for step in plan.steps] == [
        (100, 1, 7),
        (200, 1, 30),
        (300, 1, 30),
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("steps: [{weight_bp: 5000}, {weight_bp: 1000}]\n", "must rise"),
        ("steps: [{weigth_bp: 5000}]\n", ":1: steps.0.weigth_bp: unknown key; did you mean 'weight_bp'?"),
        ("limits: {latency: 2}\n", ":1: limits.latency: unknown key; did you mean 'latency_ratio'?"),
        ("aliases: ignore\n", ":1: aliases: input should be 'revert', 'adopt' or 'report'"),
        ("give_up_s: 1\n", "give_up_s 1 is under hold_s 60"),
    ],
)
def test_a_policy_that_is_wrong_is_refused(
    ready: Registry, verb: Verb, registry_home: Path, body: str, message: str
) -> None:
    path = registry_home / "rollout.yaml"
    path.write_text(body)
    code, _, err = verb("rollout", "policy", "bot", "--set", str(path), *WHO)
    assert (code, message in err) == (2, True), err


def test_start_in_the_foreground_says_each_step_and_ends_with_its_verdict(
    registry: Registry, world: World, verb: Verb
) -> None:
    world.score = {1: 0.5, 2: 0.8}
    flags = ("--hold-s", "0", "--min-samples", "5", "--margin", "0.2", "--error-margin", "0.1", "--give-up-s", "60")
    code, out, err = verb("rollout", "start", "bot@2", *flags, *WHO)
    assert code == 0, err
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("revision")] == [
        "revision 3: bot@2 10 %, bot@1 the rest",
        "revision 4: bot@2 50 %, bot@1 the rest",
        "revision 5: bot@2 100 %",
    ]
    assert [line.startswith("  samples: pass (") for line in lines] == [False, True, False, True, False, False]
    assert lines[-1] == "bot@2: pass"


def test_start_follows_a_rollout_that_another_controller_holds(registry: Registry, world: World) -> None:
    world.score = {1: 0.5, 2: 0.8}
    steps = (RolloutStep(weight_bp=1_000, hold_s=0, min_samples=5),)
    plan = RolloutPlan(steps=steps, limits=Limits(feedback_margin=0.2, error_margin=0.1), give_up_s=60)
    declared, other, said = declare(registry, "bot", 2, plan, CHANGE), Controller(registry), list[str]()
    assert registry.rollouts.claim(declared.id, other.owner, 60) is not None
    follower = threading.Thread(target=drive, args=(registry, declared, said.append))
    follower.start()
    deadline = time.monotonic() + 120
    while registry.rollouts.get(declared.id).state is RolloutState.RUNNING and time.monotonic() < deadline:
        other.look(declared.id)
        time.sleep(0.05)
    follower.join()
    assert [line for line in said if line.startswith("revision")] == [
        "revision 3: bot@2 10 %, bot@1 the rest",
        "revision 4: bot@2 100 %",
    ]
    steps_by = {e.detail["controller"] for e in registry.audit.entries("bot") if "controller" in e.detail}
    assert steps_by == {other.owner}


def test_a_controller_ends_in_order_and_hands_over_at_once(registry: Registry, world: World) -> None:
    declared = declare(registry, "bot", 2, RolloutPlan(), CHANGE)
    environment = os.environ | {"TUNELOOP_HOME": str(registry.settings.home)}
    command = [sys.executable, "-m", "tuneloop.cli", "controller", "--every-s", "0.1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while registry.rollouts.get(declared.id).step is None and time.monotonic() < deadline:
            time.sleep(0.1)
        held = registry.rollouts.get(declared.id)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (held.step, held.lease_owner is None) == (0, False)
    assert process.returncode == 0, said
    assert "SIGTERM: ending" in said
    released = registry.rollouts.get(declared.id)
    assert (released.lease_owner, released.state) == (None, RolloutState.RUNNING)
