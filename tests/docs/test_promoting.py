"""docs/promoting.md is one run, and stays true: the same commands are run anew and print what it shows.

Left out: what a run measures, when it was and what it is called (`promoting.held` names each such kind of field).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from docs.documents import Command, consoles
from docs.promoting.held import bare, row
from docs.promoting.story import PAGE, Story, told

SHOWN = [command for console in consoles(PAGE) for command in console.commands]
RENEW = "once it is meant: PYTHONPATH=tests .venv/bin/python -m docs.promoting"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Story:
    """The run, once for all that is held against it."""
    return told(Path(shutil.copytree(empty_state, tmp_path_factory.mktemp("promoting") / "home")))


def test_the_page_shows_the_commands_of_the_run_in_their_order(story: Story) -> None:
    assert [command.line for command in SHOWN] == [printed.line for printed in story.printed]


@pytest.mark.parametrize("number", range(len(SHOWN)), ids=[command.place for command in SHOWN])
def test_a_command_prints_what_the_page_shows(story: Story, number: int) -> None:
    shown: Command = SHOWN[number]
    assert bare(story.printed[number].output) == bare(shown.output), f"{shown.place}: {shown.line}; {RENEW}"


def test_the_page_says_who_was_answered_by_what(story: Story) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(story.asked) == 2
    assert all(row(asked) in lines for asked in story.asked), RENEW


def test_the_runbook_takes_a_bad_champion_and_a_bad_canary_away(story: Story) -> None:
    champion, canary = story.followed
    for followed in story.followed:
        said = {" ".join(printed.line.split()[1:3]): printed.output for printed in followed.printed}
        assert "2=0 1=10000" in said["rollback python-helper"]
        assert "gets no new share until somebody approves it" in said["approve python-helper@2"]
        assert "python-helper@2" in said[next(name for name in said if name.startswith("trace "))]
        assert followed.answered_by == "python-helper@1"
        assert "python-helper@2 is not approved (its approval was revoked by you: it lies)" in followed.promoting
        assert "shipped" in followed.retraining, "it had served everything"
    assert "no canary is running" in champion.rollout
    assert "is paused: you wrote revision" in canary.rollout
    assert "errors 0.02, latency" in canary.rollout
