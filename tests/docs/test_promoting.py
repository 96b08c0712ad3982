"""docs/promoting.md is one run, and stays true: the same commands are run anew and print what it shows.

Left out: what a run measures, when it was and what it is called (`promoting.held` names each such kind of field).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from docs.documents import Command, consoles
from docs.promoting.held import NUMBERED, VARIES, bare, renewed, row
from docs.promoting.story import PAGE, Printed, Story, told

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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("latency: pass (total time 1.01 × the champion's", "latency: fail (total time 1.01 × the champion's"),
        ("0 of 60 failed, champion 0 of 90", "0 of 60 failed, champion 0 of 91"),
        ("score +0.050 [-0.056, +0.156], margin 0.2", "score +0.050 [-0.056, +0.156], margin 0.3"),
        ("revision 12: 2=1000 1=9000 (by you: drift)", "revision 12: 2=2000 1=8000 (by you: drift)"),
        ("revision 12: 2=1000 1=9000 (by you: drift)", "revision 13: 2=1000 1=9000 (by you: drift)"),
        ("over 40 rows: below the margin of 0.02", "over 40 rows: below the margin of 0.2"),
        ("NLL difference -0.7 nats/token", "NLL difference +0.7 nats/token"),
        ("nll.fresh  -  3.785", "nll.fresh  3.1  3.785"),
        ("nll.fresh  -  3.785", "nll.stdlib  -  3.785"),
        ("ro_c24055777656  shipped  2 of 2", "ro_c24055777656  shipped  1 of 2"),
        ("rank  4  4", "rank  4  8"),
        ("33 entries, each as it was written", "34 entries, each as it was written"),
        (
            "base_digest  sha256:5b092985d850…  sha256:5b092985d850…",
            "base_digest  sha256:5b092985d850…  sha256:474dd5cc9725…",
        ),
        (f"code_commit  {'1' * 40}  {'1' * 40}", f"code_commit  {'1' * 40}  {'2' * 40}"),
        ("signed_by  b0811648efd5  b0811648efd5", "signed_by  b0811648efd5  c0811648efd5"),
        ("ro_d24cdf9db538 is\nro_d24cdf9db538 was", "ro_d24cdf9db538 is\nro_c2788a5a8251 was"),
        ("tokens of an answer  1.33 × [1.27, 1.40]", "tokens of an answer  1.43 × [1.27, 1.40]"),
    ],
)
def test_what_a_run_decides_is_never_masked(one: str, other: str) -> None:
    assert bare(one) != bare(other)


MASKED = [*VARIES, *((line, name) for line, _, name in NUMBERED)]


@pytest.mark.parametrize("kind", MASKED, ids=[instead for _, instead in MASKED])
def test_every_kind_of_field_that_is_masked_stands_on_the_page(kind: tuple[re.Pattern[str], str]) -> None:
    assert any(kind[0].search(command.output) for command in SHOWN)


def test_of_what_is_masked_it_is_the_same_whatever_it_is_called() -> None:
    assert bare("signed_by  b0811648efd5  c0811648efd5") == bare("signed_by  111111111111  222222222222")
    assert bare("ro_d24cdf9db538 is declared") == bare("ro_c2788a5a8251 is declared")


def test_the_page_names_no_machine() -> None:
    page = PAGE.read_text(encoding="utf-8")
    elsewhere = [Printed(shown.line, shown.output.replace(" by host-", " by build-7.example-")) for shown in SHOWN]
    assert any("build-7.example" in printed.output for printed in elsewhere)
    assert renewed(page, elsewhere, []) == page


def test_a_page_whose_commands_are_not_those_of_the_run_is_not_renewed() -> None:
    page, printed = PAGE.read_text(encoding="utf-8"), [Printed(shown.line, shown.output) for shown in SHOWN]
    assert renewed(page, printed, []) == page
    with pytest.raises(ValueError, match=r"the run goes on and the page does not: write `\$ tuneloop status` where"):
        renewed(page, [*printed, Printed("tuneloop status", "")], [])
    with pytest.raises(ValueError, match=r"the page shows `tuneloop audit --verify` where the run has ended"):
        renewed(page, printed[:-1], [])


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
