"""The one run that docs/promoting.md shows, from a judged version to all of the traffic and back, and what it printed.

Verbs run as the console script runs them, in this process, each with what it wrote to both streams. What a verb judges
is stored before it is run; a rollout is held on a step by the one request that it still waits for.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from docs.documents import ROOT, tuneloop_lines
from docs.promoting.scene import scene
from docs.promoting.users import MODEL, Asked, Users
from serve.gateway.world import until
from tuneloop.cli.main import main
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.steering import abort
from tuneloop.registry.routes.promotion import Change

PAGE = ROOT / "docs" / "promoting.md"
RUNBOOK = ROOT / "docs" / "runbooks" / "bad_version.md"
REFUSED = 3


@dataclass(frozen=True)
class Printed:
    """A command and all that it wrote."""

    line: str
    output: str


@dataclass(frozen=True)
class Followed:
    """The runbook's commands with what they printed, and what held once they were done."""

    printed: tuple[Printed, ...]
    answered_by: str  # who had been answered by the bad version
    promoting: str  # what whoever promotes it again is told
    rollout: str
    retraining: str


@dataclass
class Story:
    """A run under way, or done."""

    users: Users
    printed: list[Printed] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)  # by a tester with a version of their own, and a user
    followed: list[Followed] = field(default_factory=list)  # the runbook: a bad champion, then a bad canary

    def tell(self, line: str, *, code: int = 0) -> str:
        """Run a command and keep it with what it printed."""
        output = run(line, code=code)
        self.printed.append(Printed(line, output))
        return output

    def tell_all(self) -> None:
        """The page from top to bottom."""
        self.look_at_it()
        self.let_testers_have_it()
        self.let_it_shadow()
        self.raise_its_share()
        self.raise_it_by_policy()
        self.go_back_and_forward()
        self.see_who_did_what()

    def look_at_it(self) -> None:
        self.tell("tuneloop gate python-helper@2")
        self.tell("tuneloop compare python-helper@1 python-helper@2")

    def let_testers_have_it(self) -> None:
        self.tell('tuneloop route set python-helper 2=0 1=10000 --by you --reason "for the testers"')
        self.tell('tuneloop route override python-helper tester-7=2 --by you --reason "tries it first"')
        self.tell("tuneloop route show python-helper")
        self.asked = [self.users.ask_as(unit) for unit in ("tester-7", "user-1")]
        self.tell('tuneloop route holdout python-helper --share 500 --by you --reason "never tried on first"')
        self.tell('tuneloop route holdout python-helper --share 0 --by you --reason "everybody again"')

    def let_it_shadow(self) -> None:
        self.tell('tuneloop route shadow python-helper 2=1000 --by you --reason "before anybody gets it"')
        self.users.ask_beside_a_shadow(copied=48, others=12)
        self.tell("tuneloop route shadow python-helper")
        self.tell('tuneloop route shadow python-helper 2=0 --by you --reason "seen enough"')

    def raise_its_share(self) -> None:
        flags = "--hold-s 1 --min-samples 30 --margin 0.2 --error-margin 0.1 --latency-ratio 2"
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(self._ask_step_by_step)
            try:
                self.tell(f'tuneloop rollout start python-helper@2 {flags} --by you --reason "answers the drift"')
            finally:
                asking.result()

    def _ask_step_by_step(self) -> None:
        try:
            for split, champion in (({2: 1_000, 1: 9_000}, 60), ({2: 5_000, 1: 5_000}, 30)):
                self.users.wait_for(split)
                self.users.ask({1: champion, 2: 29})
                self.users.ask({2: 1}, rate=False)  # and with the thirtieth the step may be left
        except BaseException:  # nobody would wait for the rollout's end
            abort(self.users.registry, MODEL, Change("test", "its users failed"))
            raise

    def raise_it_by_policy(self) -> None:
        (self.users.registry.settings.home / "rollout.yaml").write_text(yaml_blocks()[0])
        self.tell('tuneloop rollout policy python-helper --set rollout.yaml --by you --reason "our steps"')
        self.tell('tuneloop rollback python-helper --by you --reason "once more, by our steps"')
        self.tell('tuneloop rollout start python-helper@2 --detach --by you --reason "answers the drift"')
        self.users.wait_for({2: 1_000, 1: 9_000})
        self.users.ask({1: 60, 2: 29})
        self.users.ask({2: 1}, rate=False)
        self.users.wait_for({2: 5_000, 1: 5_000})
        self.users.ask({1: 40, 2: 40})
        self.tell("tuneloop rollout status python-helper")
        self.users.ask({1: 20, 2: 19})
        self.users.ask({2: 1}, rate=False)
        rollouts = self.users.registry.rollouts
        until(lambda: rollouts.all(MODEL)[0].state is RolloutState.SHIPPED, 120, "the controller has shipped it")
        self.users.wait_for({1: 0, 2: 10_000})
        self.tell("tuneloop rollout list")

    def go_back_and_forward(self) -> None:
        self.tell('tuneloop rollback python-helper --by you --reason "it answers in riddles"')
        self.tell('tuneloop approve python-helper@2 --revoke --by you --reason "it answers in riddles"')
        self.tell('tuneloop promote python-helper@2 --by somebody --reason "looks fine to me"', code=REFUSED)
        self.tell('tuneloop approve python-helper@2 --days 30 --by you --reason "the riddles were the prompt\'s"')
        self.tell('tuneloop promote python-helper@2 --by you --reason "the riddles were the prompt\'s"')
        self.tell("tuneloop route diff python-helper 15")

    def see_who_did_what(self) -> None:
        self.tell("tuneloop audit --limit 5")
        self.tell("tuneloop audit --verify")

    def follow_the_runbook_twice(self) -> None:
        """While the second version serves everything, and while a rollout by the page's other policy raises it."""
        spoilt = self.users.ask_as("user-1")
        self.followed.append(self._follow(spoilt))
        run('tuneloop approve python-helper@2 --by you --reason "mended"')
        (self.users.registry.settings.home / "careful.yaml").write_text(yaml_blocks()[1])
        run('tuneloop rollout policy python-helper --set careful.yaml --by you --reason "from now on"')
        run('tuneloop rollout start python-helper@2 --detach --by you --reason "once more"')
        self.users.wait_for({2: 100, 1: 9_900})
        self.followed.append(self._follow(spoilt))

    def _follow(self, spoilt: Asked) -> Followed:
        words = {"MODEL": MODEL, "BAD": "2", "GOOD": "1", "YOU": "you", "WHY": "'it lies'", "REQUEST": spoilt.id}
        names = re.compile(rf"\b({'|'.join(words)})\b")
        lines = [
            names.sub(lambda name: words[name[0]], line.split(" #")[0].rstrip()) for _, line in tuneloop_lines(RUNBOOK)
        ]
        printed = tuple(Printed(line, run(line)) for line in lines)
        rollouts = self.users.registry.rollouts
        until(lambda: rollouts.all(MODEL)[0].state is not RolloutState.RUNNING, 120, "the controller has seen it")
        return Followed(
            printed,
            self.users.ask_as(spoilt.unit).version,
            run("tuneloop promote python-helper@2 --by somebody --reason again", code=REFUSED),
            run("tuneloop rollout status python-helper"),
            run("tuneloop retraining list --model python-helper"),
        )


def told(home: Path) -> Story:
    """The whole run, the runbook after it, in a state folder that is empty but for an empty registry."""
    with scene(home) as users:
        story = Story(users)
        story.tell_all()
        story.follow_the_runbook_twice()
    return story


def run(line: str, *, code: int = 0) -> str:
    """What `tuneloop …` writes to both streams; fails when it ends with another code."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", shlex.split(line, comments=True))
        try:
            main()
        except SystemExit as stop:
            ended = stop.code
    assert ended == code, f"{line}\nended with {ended}:\n{said.getvalue()}"
    return said.getvalue()


def yaml_blocks() -> list[str]:
    """The policies that the page shows, to be used as files."""
    return re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
