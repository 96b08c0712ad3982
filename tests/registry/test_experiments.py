"""An experiment from its file to its verdict, on real stores: what counts, what does not, what nobody can change."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import pytest
import sqlalchemy as sa

from registry.experiment_traffic import CHANGE, DECLARED, Users, bring_up
from registry.verbs import WHO, verb_at
from tests_support import Clock, beat_engine, request_record
from tuneloop.registry import Registry
from tuneloop.registry.assignment import key_hash
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Refused, Unreadable
from tuneloop.registry.experiments import conduct, words
from tuneloop.registry.experiments.analysis import parts_at
from tuneloop.registry.experiments.declaration import Declaration, Experiment, Plan, read_declaration
from tuneloop.registry.experiments.effect import difference
from tuneloop.registry.experiments.gather import gather
from tuneloop.registry.experiments.measures import contributions
from tuneloop.registry.experiments.page import write_page
from tuneloop.registry.nouns import Arm, Feedback
from tuneloop.registry.promotion import Change, override, set_route
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import experiments
from tuneloop.registry.traffic import Opinion, Outcome

NO_PLAN = Plan(days_seen=0.0, units_seen=0)
SHIP = "ship it: `tuneloop promote bot@2 --by YOU --reason WHY`"
GUARDED = "guardrail mean total time is fine; guardrail failed requests per request is fine"


def declared(folder: Path, text: str = DECLARED) -> Declaration:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return read_declaration(path)


@pytest.fixture(scope="module")
def brought_up(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A home to copy: publishing takes seconds."""
    home = tmp_path_factory.mktemp("brought-up")
    shutil.copy(empty_mlflow, home)
    with Registry.open(RegistrySettings(home=home), clock=Clock()) as registry:
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
        (("per: asked, ", ""), "a ratio needs per"),
        (("goal: lower\n  min", "goal: lower\n  per: rated\n  min"), "a ratio needs per, and nothing else has it"),
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


def test_the_covariate_is_what_was_known_before_the_start(world: Registry, tmp_path: Path, clock: Clock) -> None:
    users = Users(world, clock, {1: 0.3, 2: 0.3})
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
    assert left[0] < left[1]


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
        "import sys, tuneloop.registry, tuneloop.registry.verbs, tuneloop.registry.rollout\n"
        "print(sorted({'numpy', 'scipy', 'matplotlib', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
