"""A promotion that is killed while engines load its version: the next controller takes that out of the route again."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests_support import beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.fleet import Fleet
from tuneloop.registry.nouns import utc_now
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.store import Routes
from tuneloop.registry.settings import RegistrySettings

CHANGE = Change("ada", "better")


class Killed(BaseException):
    """No code of the program handles it."""


def dies(*_: object, **__: object) -> None:
    raise Killed


class Clock:
    def __init__(self) -> None:
        self.later_s = 0.0

    def __call__(self) -> datetime:
        return utc_now() + timedelta(seconds=self.later_s)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_a_killed_promotion_has_staged_is_taken_out_once_nobody_can_wait_for_it_any_more(
    published_home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    clock = Clock()
    url = "" if database == "sqlite" else request.getfixturevalue("postgres").migrated_database()
    with Registry.open(RegistrySettings(home=published_home, database_url=url), clock=clock) as registry:
        for number in (1, 2):
            registry.gates.approve("bot", number, by="ada", reason="test")
        promote(registry, "bot", 1, CHANGE)
        write, wrote = Routes.write, list[int]()

        def once(routes: Routes, *args: object, **kwargs: object) -> object:
            if wrote:
                raise Killed
            wrote.append(1)
            return write(routes, *args, **kwargs)  # type: ignore[arg-type]

        # Right behind the staging, and right before the share's own write.
        for wait in (dies, lambda *_: None):
            beat_engine(registry, "bot@1")
            with monkeypatch.context() as patch:
                patch.setattr(Routes, "write", once)
                patch.setattr(Fleet, "wait_serving", wait)
                with pytest.raises(Killed):
                    promote(registry, "bot", 2, CHANGE)
            wrote.clear()
            assert registry.routes.current("bot").split == {2: 0, 1: 10_000}
            controller = Controller(registry)
            controller.turn()
            assert registry.routes.current("bot").split == {2: 0, 1: 10_000}, "it may be waiting still"
            clock.later_s += 3_600
            controller.turn()
            undone = registry.routes.current("bot")
            assert (undone.split, undone.by) == ({1: 10_000}, "controller")
            [entry] = registry.audit.entries("bot", limit=1)
            assert entry.action == "route.unstage"
            assert "ada staged it and did not go on: stage for: better" in entry.detail["reason"]
            Controller(registry).turn()
            assert registry.routes.current("bot") == undone
        set_route(registry, "bot", {1: 10_000, 2: 0}, CHANGE)
        clock.later_s += 3_600
        controller.turn()
        assert registry.routes.current("bot").split == {2: 0, 1: 10_000}, "what somebody wants there stays"
