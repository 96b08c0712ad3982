"""An experiment from its file to its verdict, on real stores: what counts, what does not, what nobody can change."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import pytest

from registry.aged import retain
from registry.experiment_traffic import CHANGE, DECLARED, NO_PLAN, Users, bring_up, declared
from registry.verbs import WHO, verb_at
from tests_support import Clock, beat_engine, request_record
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, NotFound, Refused
from tuneloop.registry.experiments import conduct, words
from tuneloop.registry.experiments.contributed import parts_at
from tuneloop.registry.experiments.declaration import Experiment
from tuneloop.registry.experiments.effect import difference
from tuneloop.registry.experiments.gather import gather
from tuneloop.registry.experiments.page import render, write_page
from tuneloop.registry.retention_policy import RetentionPolicy
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.assignment import held_out, key_hash
from tuneloop.registry.routes.promotion import Change, hold_out, override, set_route
from tuneloop.registry.settings import RegistrySettings

SHIP = "ship it: `tuneloop promote bot@2 --by YOU --reason WHY`"
GUARDED = "guardrail mean total time is fine; guardrail failed requests per request is fine"


@pytest.fixture(scope="module")
def brought_up(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A home to copy: publishing takes seconds."""
    home = tmp_path_factory.mktemp("brought-up")
    shutil.copy(empty_mlflow, home)
    with Registry.open(RegistrySettings(home=home), clock=Clock()) as registry, pytest.MonkeyPatch.context() as patch:
        source = random.Random(2)  # of the route's salt
        patch.setattr("secrets.token_hex", lambda size: source.randbytes(size).hex())
        bring_up(registry, home / "made")
    return home


@pytest.fixture
def world(brought_up: Path, tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    """`bot@1` serves everything, `bot@2` waits."""
    home = shutil.copytree(brought_up, tmp_path / "home")
    with Registry.open(RegistrySettings(home=home), clock=clock) as registry:
        yield registry


def started(registry: Registry, folder: Path, text: str = DECLARED) -> Experiment:
    """A running experiment."""
    settled = conduct.settled(registry, declared(folder, text))
    made = registry.experiments.new(settled, conduct.plan(registry, settled), by="ada", reason="test")
    beat_engine(registry, *(f"bot@{version}" for version in (1, *settled.arms)))
    return conduct.start(registry, made.id, CHANGE)[0]


def test_a_better_version_is_found_and_said_in_words(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.4, 2: 0.2})
    users.ask(range(200))
    experiment = started(world, tmp_path)
    assert experiment.plan.units is not None
    assert experiment.plan.baseline == pytest.approx(0.4, abs=0.06)
    users.ask(range(1_000, 1_100))
    early = conduct.report(world, experiment.id)
    [said] = words.verdict(early)
    assert said.startswith("Version 2: not decided yet, there are too few units to compare")
    for start in range(1_100, 1_900, 200):
        users.ask(range(start, start + 200))
        users.ask(range(1_000, 1_050))
    report = conduct.report(world, experiment.id)
    [treatment], [said] = report.treatments, words.verdict(report)
    assert treatment.verdict == "better"
    assert treatment.difference is not None
    assert treatment.difference.low < -0.2 < treatment.difference.high < 0
    assert re.fullmatch(
        r"Version 2 gets fewer thumbs-down: [\d.]+ % against [\d.]+ %, difference −[\d.]+ points, "
        rf"95 % sure it is between −[\d.]+ and −[\d.]+ points; {GUARDED}; {SHIP}\.",
        said,
    )
    assert sum(arm.units for arm in report.arms) == 900
    assert sum(arm.requests for arm in report.arms) == 2_200
    assert words.left_out(report) == []


def test_versions_that_are_alike_are_not_decided_and_it_says_how_long(
    world: Registry, tmp_path: Path, clock: Clock
) -> None:
    users = Users(world, clock, {1: 0.3, 2: 0.3})
    experiment = started(world, tmp_path)
    for start in range(0, 300, 100):
        users.ask(range(start, start + 100))
    [said] = words.verdict(conduct.report(world, experiment.id))
    more = re.search(r"not decided yet: about ([\d,]+) more units, (\d+) (hours|days) at today's traffic", said)
    assert more is not None, said
    needed = int(more[1].replace(",", ""))
    assert int(more[2]) == pytest.approx(needed / 100, abs=2)
    for start in range(300, 300 + 2 * needed, 200):
        users.ask(range(start, start + 200))
    [treatment] = conduct.report(world, experiment.id).treatments
    assert treatment.verdict == "no difference"


def test_a_split_that_is_not_what_was_declared_hides_the_results(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.4, 2: 0.2})
    experiment = started(world, tmp_path, DECLARED.replace("Version 2 gets", "<script>alert(1)</script>"))
    users.lost = lambda record: record.assigned_version == 2 and users.random.random() < 0.5
    users.ask(range(800), each=1)
    report = conduct.report(world, experiment.id)
    assert report.hidden
    assert report.treatments == ()
    [said] = words.verdict(report)
    assert said.startswith("Results are hidden because the split is not what was declared: ")
    assert "thumbs" not in said
    page = tmp_path / "page.html"
    write_page(report, page)
    assert "Results are hidden" in page.read_text()
    assert "<figure" not in page.read_text()
    assert "<script" not in page.read_text()


def test_harm_is_said_whatever_the_primary_metric_says(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.4, 2: 0.2})
    experiment = started(world, tmp_path)
    users.ask(range(800))
    split = world.routes.current("bot")
    slow = [
        request_record(
            i,
            clock(),
            id=f"slow-{i}",
            revision=split.revision,
            assigned_version=2,
            served_version=2,
            key_hash=record.key_hash,
            total_ms=900.0,
        )
        for i, record in enumerate(world.traffic.window("bot", version=2, newest=600))
    ]
    world.traffic.add_requests(slow)
    report = conduct.report(world, experiment.id)
    [treatment], [said] = report.treatments, words.verdict(report)
    assert treatment.verdict == "harmful"
    assert "guardrail mean total time is harmed" in said
    assert said.endswith("do not ship it: a guardrail is worse by more than was allowed.")


def test_what_does_not_count_is_counted(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.3, 2: 0.3})
    experiment = started(world, tmp_path)
    override(world, "bot", {"user-0": 2, "user-1": 1}, CHANGE)
    users.ask(range(400))
    users.ask(range(400, 410), each=1, assigned_version=None)  # they pinned their version
    users.ask(range(500, 520), each=1, key_source="request")
    set_route(world, "bot", {2: 2_000, 1: 8_000}, Change("eve", "too hot"))
    users.ask(range(100, 200), each=1)
    set_route(world, "bot", {2: 5_000, 1: 5_000}, CHANGE)
    users.ask(range(300, 600), each=1)
    report = conduct.report(world, experiment.id)
    assert report.left_out["requests without a sticky identity"] == 20
    assert report.left_out["requests that pinned their version"] == 10
    assert report.left_out["units that were given a version by name"] == 2
    assert report.left_out["requests under another split"] == 100
    crossed = report.left_out["units that met another arm under another split (they count as they began)"]
    assert 15 <= crossed <= 45  # three in ten of a hundred
    assert [strata.split(":")[0] for strata in report.strata] == ["revision 2–3", "revision 5"]
    assert report.other_revisions == ("4 (2=2000 1=8000, by eve)",)
    assert sum(arm.units for arm in report.arms) == 398 + 200
    assert any(line.startswith("compared within each of these") for line in words.left_out(report))


def test_requests_that_are_on_record_no_more_are_told(world: Registry, tmp_path: Path, clock: Clock) -> None:
    """Every look counts what is on record anew, also of an experiment that has been stopped."""
    users = Users(world, clock, {1: 0.3, 2: 0.3})
    experiment = started(world, tmp_path)
    users.ask(range(400))
    before = conduct.report(world, experiment.id)
    world.policies.set("bot", RetentionPolicy(record_days=30), by="ada", reason="what the law asks for")
    clock.advance(29 * 86_400)
    assert conduct.report(world, experiment.id).gone_until is None
    clock.advance(10 * 86_400)
    retain(world)
    report = conduct.report(world, experiment.id)
    assert sum(arm.units for arm in report.arms) < sum(arm.units for arm in before.arms)
    said = f"on record no more, and not counted: requests until {clock() - timedelta(days=30):%Y-%m-%d %H:%M} UTC"
    assert any(line.startswith(said) for line in words.left_out(report))


def test_a_unit_may_be_what_one_source_gave(world: Registry, tmp_path: Path, clock: Clock) -> None:
    """A client that forgets the header falls back to its API key: one large unit among users, which does not count."""
    users = Users(world, clock, {1: 0.3, 2: 0.3})
    users.ask(range(60), each=1, key_source="header")
    users.ask([60], each=30, key_source="api_key")
    experiment = started(world, tmp_path, f"{DECLARED}unit: header\n")
    assert experiment.plan.units_seen == 60
    users.ask(range(100, 200), each=1, key_source="header")
    users.ask([60], each=40, key_source="api_key")
    users.ask(range(100, 110), each=1, key_source="user")
    report = conduct.report(world, experiment.id)
    assert sum(arm.units for arm in report.arms) == 100
    assert report.left_out["requests whose key something else gave than the declared unit"] == 50
    assert "not counted: 50 requests whose key something else gave than the declared unit" in words.left_out(report)
    assert "A unit is one value of x-tuneloop-unit." in render(report)


def test_a_key_that_is_held_out_is_no_pin(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.3, 2: 0.3})
    experiment = started(world, tmp_path)
    route = hold_out(world, "bot", 2_000, CHANGE)
    held = [user for user in range(400) if held_out(route, key_hash(f"user-{user}"))]
    assert 40 < len(held) < 120
    users.ask(held, each=1, assigned_version=None)  # as a gateway records them
    users.ask([user for user in range(400) if user not in held], each=1)
    report = conduct.report(world, experiment.id)
    assert report.left_out["requests of keys that are held out"] == len(held)
    assert report.left_out["requests that pinned their version"] == 0
    assert sum(arm.units for arm in report.arms) == 400 - len(held)


def test_a_rollout_and_an_experiment_do_not_change_each_others_split(world: Registry, tmp_path: Path) -> None:
    experiment = started(world, tmp_path)
    with pytest.raises(Refused, match=f"experiment {experiment.id} of bot is running, and a rollout would change"):
        declare(world, "bot", 2, RolloutPlan(), CHANGE)
    world.experiments.stop(experiment.id, by="ada", reason="over")
    rollout = declare(world, "bot", 2, RolloutPlan(), CHANGE)
    settled = conduct.settled(world, declared(tmp_path))
    another = world.experiments.new(settled, NO_PLAN, by="ada", reason="again")
    with pytest.raises(Refused, match=rf"bot@2 is being rolled out \({rollout.id}\), and an experiment would change"):
        conduct.start(world, another.id, CHANGE)


def test_the_covariate_is_what_was_known_before_the_start(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.5, 2: 0.5}, apart=0.5)  # what they said tells what they will say
    users.ask(range(300), each=4)
    experiment = started(world, tmp_path, f"{DECLARED}covariate: prior_mean\n")
    users.ask(range(200, 500))
    evidence = gather(world, experiment, clock())
    thumbs: dict[str, list[float]] = {}
    before = world.traffic.window("bot", until=experiment.started_at)
    said = world.traffic.feedback_for([record.id for record in before])
    for record in before:
        thumbs.setdefault(record.key_hash, []).append(float(said[record.id][0].thumb == "down"))
    known = [fmean(thumbs[key_hash(f"user-{user}")]) for user in range(200, 300)]
    assert sorted(evidence.covariate) == pytest.approx(sorted(known + [fmean(known)] * 200))
    stream, left = evidence.streams[0], []
    for adjusted in (True, False):
        pairs = parts_at(experiment.declaration.primary, stream, evidence, 1, 2e9, adjusted=adjusted)
        left.append(float(difference(pairs, share=True).spread))
    assert left[0] < 0.97 * left[1]


def test_planned_looks_see_only_what_was_there_by_then(world: Registry, tmp_path: Path, clock: Clock) -> None:
    """Asked later, the same looks say the same: nothing that came since is in them."""
    users = Users(world, clock, {1: 0.35, 2: 0.25})
    experiment = started(world, tmp_path, f"{DECLARED}max_units: 1200\nlooks: 4\n")
    users.ask(range(700))
    before = conduct.report(world, experiment.id).treatments[0]
    assert [look.planned for look in before.curve] == [1, 2]
    users.ask(range(700, 1_400))
    after = conduct.report(world, experiment.id).treatments[0]
    assert [look.units for look in after.curve] == [300, 600, 900, 1_200]
    assert after.curve[:2] == before.curve
    first = next(look for look in after.curve if not look.difference.low <= 0 <= look.difference.high)
    assert after.difference == first.difference


def test_a_bandit_moves_shares_to_the_better_arm_and_keeps_the_floor(
    world: Registry, tmp_path: Path, clock: Clock
) -> None:
    users = Users(world, clock, {1: 0.5, 2: 0.2})
    experiment = started(world, tmp_path, f"{DECLARED}mode: bandit\nfloor_bp: 1500\n")
    _, route, none = conduct.step(world, experiment.id)
    assert none.split == {1: 5_000, 2: 5_000}
    assert none.chances == {}
    users.ask(range(400))
    running, route, wanted = conduct.step(world, experiment.id)
    assert wanted.split == {1: 1_500, 2: 8_500}
    clock.advance(1)
    moved = conduct.move(world, running, route, wanted, CHANGE)
    assert moved.split == {1: 1_500, 2: 8_500}
    with pytest.raises(Conflict):
        conduct.move(world, running, route, wanted, CHANGE)
    [entry] = world.audit.entries("bot", action="experiment.step")
    assert entry.detail["experiment"] == experiment.id
    users.ask(range(300, 900))
    report = conduct.report(world, experiment.id)
    assert report.treatments[0].verdict == "better"
    left = report.left_out["units that a later split gave to another arm (they count until then)"]
    assert 15 <= left <= 60  # 35 in a hundred of those who came back
    assert sum(arm.requests for arm in report.arms) == 2 * (400 + 600 - left)
    assert len(report.strata) == 2
    assert report.left_out["requests under another split"] == 0
    settled = declared(tmp_path).model_copy(update={"control": 1})
    plain = world.experiments.new(settled, NO_PLAN, by="ada", reason="r")
    world.experiments.stop(experiment.id, by="ada", reason="done")
    conduct.start(world, plain.id, CHANGE)
    for other in (plain.id, experiment.id):
        with pytest.raises(Refused, match="only a running bandit moves its shares"):
            conduct.step(world, other)


def test_a_start_that_was_killed_after_the_split_goes_on(world: Registry, tmp_path: Path) -> None:
    settled = conduct.settled(world, declared(tmp_path))
    made = world.experiments.new(settled, NO_PLAN, by="ada", reason="r")
    beat_engine(world, "bot@1", "bot@2")
    split = set_route(world, "bot", {2: 5_000, 1: 5_000}, CHANGE)  # all that the killed start did
    experiment, route = conduct.start(world, made.id, CHANGE)
    assert route == split
    assert experiment.first_revision == split.revision


def test_a_second_experiment_leaves_the_split_of_the_first(world: Registry, tmp_path: Path) -> None:
    first = started(world, tmp_path)
    settled = conduct.settled(world, declared(tmp_path, DECLARED.replace("{1: 5000, 2: 5000}", "{1: 9000, 2: 1000}")))
    second = world.experiments.new(settled, NO_PLAN, by="ada", reason="r")
    before = world.routes.current("bot")
    with pytest.raises(Refused, match=f"{first.id} of the same model is running"):
        conduct.start(world, second.id, CHANGE)
    assert world.routes.current("bot") == before


def test_an_arm_nobody_approved_gets_no_share(world: Registry, tmp_path: Path) -> None:
    world.gates.revoke("bot", 2, by="ada", reason="bad")
    made = world.experiments.new(conduct.settled(world, declared(tmp_path)), NO_PLAN, by="ada", reason="r")
    with pytest.raises(Refused, match="bot@2 is not approved"):
        conduct.start(world, made.id, CHANGE)
    assert world.experiments.get(made.id).state == "draft"
    with pytest.raises(NotFound, match="bot@9"):
        conduct.settled(world, declared(tmp_path, DECLARED.replace("2: 5000", "9: 5000")))


def test_the_verbs_lead_from_a_file_to_a_page(
    world: Registry, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through the front door, on the real clock."""
    home, path, page = world.settings.home, tmp_path / "experiment.yaml", tmp_path / "page.html"
    verb = verb_at(home, monkeypatch, capfd)
    path.write_text(DECLARED)
    code, out, _ = verb("experiment", "new", str(path), *WHO)
    assert code == 0
    experiment_id = out.split()[0]
    assert "how long it takes cannot be told: 0 units had thumbs-down in recent traffic" in out
    with Registry.open(RegistrySettings(home=home)) as now:
        beat_engine(now, "bot@1", "bot@2")
        code, _, err = verb("experiment", "report", experiment_id)
        assert (code, "has not started" in err) == (3, True)
        code, out, _ = verb("experiment", "start", experiment_id, *WHO)
        assert code == 0
        assert "runs under revision 2 of bot: 2=5000 1=5000" in out
        Users(now, Clock(now.clock()), {1: 0.4, 2: 0.1}, span_s=0.0).ask(range(500))
    code, out, _ = verb("experiment", "report", experiment_id, "--html", str(page))
    assert code == 0
    assert out.startswith("Version 2 gets fewer thumbs-down: ")
    assert re.search(r"VERSION +ARM +UNITS +EXPECTED +REQUESTS", out)
    code, out, _ = verb("experiment", "report", experiment_id, "--json")
    assert json.loads(out)["treatments"][0]["version"] == 2
    assert verb("experiment", "stop", experiment_id, *WHO)[0] == 0
    code, out, _ = verb("experiment", "list", "--model", "bot")
    assert re.search(rf"{experiment_id} +bot +stopped +1=5000 2=5000", out)
    code, out, _ = verb("experiment", "show", experiment_id)
    assert re.search(r"primary +thumbs-down: lower is better, least difference 10.0 points", out)
    assert re.search(r"experiment.new .*experiment.start .*experiment.stop ", out, re.S)
    code, _, err = verb("experiment", "step", experiment_id, *WHO)
    assert (code, "only a running bandit" in err) == (3, True)
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:,")', text)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        ["chromium", *options, "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == 2
