"""MLflow's aliases under watch, in the real MLflow: what somebody moves is seen once, and dealt with by policy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient

from registry.world import CHANGE, bot_route, set_up
from tests_support import Clock, free_port, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.aliases.accounting import (
    Aliases,
)
from tuneloop.registry.aliases.watch import ASK_TIMEOUT_S, LATE_MIRROR_S, AliasWatch
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import Arm, AuditEntry, Route
from tuneloop.registry.policies import RolloutPolicy
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.settings import ControllerSettings, RegistrySettings

NOTICED_S = 10.0


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def watched(registries: Registry, clock: Clock) -> Registry:
    """`bot@1` serves, the aliases say so and were looked at, and that is a while ago."""
    set_up(registries)
    AliasWatch(registries).turn()
    clock.advance(LATE_MIRROR_S + 1)
    return registries


def move(registry: Registry, version: int, alias: str = "champion") -> None:
    """What somebody does by hand, in MLflow's own page or client."""
    MlflowClient(registry.settings.mlflow, registry.settings.mlflow).set_registered_model_alias(
        "bot", alias, str(version)
    )


def about_aliases(registry: Registry) -> list[AuditEntry]:
    return [e for e in reversed(registry.audit.entries("bot", limit=1_000)) if e.action.startswith("alias.")]


def set_policy(registry: Registry, **fields: object) -> None:
    registry.policies.set("bot", RolloutPolicy.model_validate(fields), by="ada", reason="test")


def test_a_foreign_move_is_audited_and_moved_back(watched: Registry) -> None:
    move(watched, 2)
    AliasWatch(watched).turn()
    assert watched.versions.aliases("bot") == {"champion": 1}
    moved, reverted = about_aliases(watched)
    assert (moved.actor, moved.action, moved.detail["policy"]) == ("unknown", "alias.moved", "revert")
    assert moved.detail["moved"] == {"champion": {"was": 1, "is": 2}}
    assert moved.detail["reason"] == "champion was moved from bot@1 to bot@2 in MLflow"
    assert (reverted.actor, reverted.action, reverted.detail["reason"]) == (
        "controller",
        "alias.reverted",
        "moved back, by policy",
    )
    AliasWatch(watched).turn()
    assert len(about_aliases(watched)) == 2
    assert watched.routes.current("bot").revision == 1, "the routes decide"


def test_a_deleted_alias_and_a_challenger_of_somebodys_are_put_right_others_are_left(watched: Registry) -> None:
    client = MlflowClient(watched.settings.mlflow, watched.settings.mlflow)
    client.delete_registered_model_alias("bot", "champion")
    move(watched, 2, "challenger")
    move(watched, 2, "theirs")
    AliasWatch(watched).turn()
    assert watched.versions.aliases("bot") == {"champion": 1}
    assert int(client.get_model_version_by_alias("bot", "theirs").version) == 2
    assert about_aliases(watched)[0].detail["moved"] == {
        "champion": {"was": 1, "is": None},
        "challenger": {"was": None, "is": 2},
    }


def test_a_move_is_adopted_through_the_gates(watched: Registry) -> None:
    set_policy(watched, aliases="adopt")
    move(watched, 2)
    watch = AliasWatch(watched)
    watch.turn()
    route = watched.routes.current("bot")
    assert (route.split, route.by) == ({1: 0, 2: 10_000}, "controller")
    assert route.reason == "somebody moved the alias champion to bot@2 in MLflow"
    watch.turn()
    assert [entry.action for entry in about_aliases(watched)] == ["alias.moved"]
    assert watched.versions.aliases("bot") == {"champion": 2}


def test_what_the_gates_refuse_to_adopt_is_moved_back_and_says_why(watched: Registry, tmp_path: Path) -> None:
    set_policy(watched, aliases="adopt")
    publish_version(watched, tmp_path / "v3")
    move(watched, 3)
    AliasWatch(watched).turn()
    assert watched.routes.current("bot").split == {1: 10_000}
    assert watched.versions.aliases("bot") == {"champion": 1}
    assert "bot@3 is not approved (no gate has judged it)" in about_aliases(watched)[1].detail["reason"]
    move(watched, 2, "challenger")
    AliasWatch(watched).turn()
    assert "only a champion can be adopted" in about_aliases(watched)[3].detail["reason"]
    assert watched.versions.aliases("bot") == {"champion": 1}


def test_a_move_is_only_reported_where_the_policy_says_so_and_the_next_change_moves_it(watched: Registry) -> None:
    set_policy(watched, aliases="report")
    move(watched, 2)
    for _ in range(3):
        AliasWatch(watched).turn()
    assert watched.versions.aliases("bot") == {"champion": 2}
    assert [entry.action for entry in about_aliases(watched)] == ["alias.moved"]
    set_route(watched, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    AliasWatch(watched).turn()
    assert watched.versions.aliases("bot") == {"champion": 1, "challenger": 2}
    assert len(about_aliases(watched)) == 1


def test_our_own_changes_accuse_nobody(watched: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a watch looks before, between or after: also where MLflow was away when the route changed."""
    watch, mirror = AliasWatch(watched), watched.versions.mirror
    set_route(watched, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    watch.turn()
    monkeypatch.setattr(watched.versions, "mirror", lambda _route: None)
    promote(watched, "bot", 2, CHANGE)
    rollback(watched, "bot", CHANGE)
    promote(watched, "bot", 2, CHANGE)
    monkeypatch.setattr(watched.versions, "mirror", mirror)
    watch.turn()
    assert watched.versions.aliases("bot") == {"champion": 2}
    watch.turn()  # accounts for it
    mirror(watched.routes.at("bot", 4))  # by somebody's thread that was late: revision 5 is seconds old
    watch.turn()
    assert watched.versions.aliases("bot") == {"champion": 2}
    assert about_aliases(watched) == []
    clock.advance(LATE_MIRROR_S + 1)
    mirror(watched.routes.at("bot", 4))  # nobody is as late as that
    watch.turn()
    assert [entry.action for entry in about_aliases(watched)] == ["alias.moved", "alias.reverted"]


def test_a_watch_killed_after_it_saw_a_move_is_followed_by_one_that_deals_with_it(
    watched: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As by SIGKILL: nothing after it runs."""

    def kill(*_arguments: object) -> None:
        raise Killed

    move(watched, 2)
    with monkeypatch.context() as until_killed:
        until_killed.setattr(AliasWatch, "_deal_with", kill)
        with pytest.raises(Killed):
            AliasWatch(watched).turn()
    assert watched.versions.aliases("bot") == {"champion": 2}
    AliasWatch(watched).turn()
    assert watched.versions.aliases("bot") == {"champion": 1}
    assert [entry.action for entry in about_aliases(watched)] == ["alias.moved", "alias.reverted"]


def test_what_was_moved_back_is_put_on_record_also_where_the_watch_was_killed_or_overtaken_before_it_wrote_that(
    watched: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(watched, 2)
    mirror, other = watched.versions.mirror, AliasWatch(watched)

    def overtaken(route: Route) -> None:
        mirror(route)
        monkeypatch.setattr(watched.versions, "mirror", mirror)
        other.turn()

    monkeypatch.setattr(watched.versions, "mirror", overtaken)
    AliasWatch(watched).turn()
    moved, reverted = about_aliases(watched)
    assert (moved.action, reverted.action) == ("alias.moved", "alias.reverted")
    assert reverted.detail["reason"] == "moved back, by policy or by whoever moved it"
    assert reverted.detail["moved"] == {"champion": {"was": 1, "is": 2}}


def test_five_watches_at_once_put_a_move_on_record_once(watched: Registry) -> None:
    move(watched, 2)
    opened = [Registry.open(watched.settings, clock=watched.clock) for _ in range(5)]
    threads = [threading.Thread(target=AliasWatch(registry).turn) for registry in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.action for entry in about_aliases(watched)] == ["alias.moved", "alias.reverted"]
    assert watched.versions.aliases("bot") == {"champion": 1}
    for registry in opened:
        registry.close()


def test_a_watch_that_saw_a_move_before_another_dealt_with_it_does_not_put_it_on_record_again(
    watched: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(watched, 2)
    look = watched.versions.aliases_of
    with Registry.open(watched.settings, clock=watched.clock) as other:

        def overtaken(routes: Sequence[Route]) -> dict[str, Aliases]:
            seen = look(routes)
            AliasWatch(other).turn()
            return seen

        monkeypatch.setattr(watched.versions, "aliases_of", overtaken)
        AliasWatch(watched).turn()
    assert [entry.action for entry in about_aliases(watched)] == ["alias.moved", "alias.reverted"]


def test_of_two_watches_that_see_a_move_before_anybody_has_ever_looked_one_puts_it_on_record(
    registries: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(registries)
    move(registries, 2)
    policy_of = registries.policies.get
    with Registry.open(registries.settings, clock=registries.clock) as other:

        def overtaken(*asked: object) -> object:
            monkeypatch.undo()
            AliasWatch(other).turn()
            return policy_of(*asked)  # type: ignore[arg-type]

        monkeypatch.setattr(registries.policies, "get", overtaken)
        AliasWatch(registries).turn()
    assert [entry.action for entry in about_aliases(registries)] == ["alias.moved", "alias.reverted"]


def test_a_move_to_the_version_that_is_rolled_out_ends_its_rollout(watched: Registry) -> None:
    set_policy(watched, aliases="adopt")
    declared = declare(watched, "bot", 2, RolloutPolicy().plan, CHANGE)
    controller = Controller(watched)
    controller.turn()
    move(watched, 2)
    controller.turn()
    controller.turn()
    assert watched.rollouts.get(declared.id).state == "shipped"


def test_mlflow_that_hangs_is_said_and_asked_less_often_and_holds_no_rollout_up(
    watched: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declare(watched, "bot", 2, RolloutPolicy().plan, CHANGE)
    answers = threading.Event()
    monkeypatch.setattr("tuneloop.registry.aliases.watch.ASK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(watched.versions, "aliases_of", lambda _routes: answers.wait(30))
    controller, watch = Controller(watched), AliasWatch(watched)
    controller.turn()
    controller.turn()
    assert [r.levelname for r in caplog.records if "did not answer within" in r.message] == ["WARNING"], "said once"
    assert watched.routes.current("bot").split == {2: 1_000, 1: 9_000}
    assert watch.pause_s(3.0) == 3.0
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"did not answer within 0.1 s"):
            watch.turn()
    assert watch.pause_s(3.0) == 24.0
    answers.set()
    monkeypatch.undo()
    watch.turn()
    assert watch.pause_s(3.0) == 3.0


def test_of_many_models_those_that_a_look_has_no_time_for_are_seen_by_the_next(
    watched: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        arms = [Arm(version=1, weight_bp=10_000)]
        watched.routes.write(f"a{number:02}", arms, by="ada", reason="r", expected_revision=0)
    look, asked = watched.versions.aliases_of, list[str]()

    def slow(routes: Sequence[Route]) -> dict[str, Aliases]:
        asked.extend(route.model for route in routes)
        time.sleep(0.05)
        return look(routes)

    monkeypatch.setattr("tuneloop.registry.aliases.watch.ASK_TIMEOUT_S", 0.3)
    monkeypatch.setattr("tuneloop.registry.aliases.watch.TOGETHER", 1)
    monkeypatch.setattr(watched.versions, "aliases_of", slow)
    move(watched, 2)
    watch, looks = AliasWatch(watched), 0
    while not about_aliases(watched) and looks < 40:
        with suppress(Unavailable):  # a busy machine may need the whole time for the first of them
            watch.turn()
        looks += 1
    assert looks > 1, "one look has no time for all"
    assert "bot" in asked
    assert [entry.action for entry in about_aliases(watched)][:1] == ["alias.moved"]


def test_models_that_together_take_longer_than_a_look_hide_no_other(
    watched: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a server, which reads every version of those it is asked for."""
    for number in range(12):
        arms = [Arm(version=1, weight_bp=10_000)]
        watched.routes.write(f"a{number:02}", arms, by="ada", reason="r", expected_revision=0)
    look, asked = watched.versions.aliases_of, list[int]()

    def slow(routes: Sequence[Route]) -> dict[str, Aliases]:
        asked.append(len(routes))
        time.sleep(0.1 * sum(route.model != "bot" for route in routes))
        return look(routes)

    monkeypatch.setattr("tuneloop.registry.aliases.watch.ASK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(watched.versions, "aliases_of", slow)
    move(watched, 2)
    watch, looks = AliasWatch(watched), 0
    while not about_aliases(watched) and looks < 40:
        with suppress(Unavailable):
            watch.turn()
        looks += 1
    assert asked[0] == 13
    assert min(asked) < 3
    assert [entry.action for entry in about_aliases(watched)][:1] == ["alias.moved"]


def test_the_usual_pause_and_the_longest_answer_are_within_what_is_promised() -> None:
    longest_s = ControllerSettings.model_fields["aliases_every_s"].metadata
    assert any(getattr(bound, "le", None) == 5 for bound in longest_s)
    assert 5 + ASK_TIMEOUT_S <= NOTICED_S


@pytest.fixture
def server(published_home: Path) -> Iterator[str]:
    """An MLflow server in front of the same versions."""
    port = free_port()
    store = f"sqlite:///{published_home / 'mlflow.db'}"
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PATH": "/usr/bin:/bin", "HOME": str(published_home)}
    program = [str(Path(sys.executable).parent / "mlflow"), *command]
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/health", trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url
        process.terminate()


def test_a_running_controller_notices_a_move_on_an_mlflow_server_within_10_s(
    server: str, published_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Registry.open(RegistrySettings(home=published_home, mlflow_uri=server)) as registry:
        set_up(registry)
        monkeypatch.setattr("tuneloop.registry.aliases.watch.LATE_MIRROR_S", 0.0)
        stop = threading.Event()
        running = threading.Thread(target=Controller(registry).run, args=(stop,))  # as often as it looks by default
        running.start()
        time.sleep(1.0)
        move(registry, 2)
        began = time.monotonic()
        while len(about_aliases(registry)) < 2 and time.monotonic() - began < NOTICED_S:
            time.sleep(0.05)
        took_s = time.monotonic() - began
        stop.set()
        running.join()
        assert [entry.action for entry in about_aliases(registry)] == ["alias.moved", "alias.reverted"]
        assert took_s < NOTICED_S
        assert registry.versions.aliases("bot") == {"champion": 1}
        many, none = bot_route(1, 1_000), bot_route(1, 1).model_copy(update={"model": "gone"})
        for route in (bot_route(1, 1), many):  # asked together with others, and alone
            assert registry.versions.aliases_of([route, none]) == {"bot": Aliases(1, None)}
        assert registry.versions.models() == ["bot"]
