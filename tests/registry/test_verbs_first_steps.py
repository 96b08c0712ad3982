"""What somebody new to the verbs meets: the wrong folder, names of nothing, and things that are not so yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.verbs import WHO, Verb, verb_at
from tests_support import alert_episode
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Check
from tuneloop.registry.rollouts.steering import SAY_EVERY_S, _Told
from tuneloop.registry.routes.promotion import Change, set_route


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("alerts",), ("alert", "receivers"), ("models",), ("key", "list"), ("trace", "req-1"), ("audit",)],
    ids=" ".join,
)
def test_reading_where_no_state_is_begins_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    verb = verb_at(tmp_path, monkeypatch, capfd)
    monkeypatch.delenv("TUNELOOP_HOME")
    code, out, err = verb(*arguments)
    assert (code, out) == (2, "")
    assert f"no state in {tmp_path / '.tuneloop'}: cd to where it was begun, or set TUNELOOP_HOME" in err
    assert list(tmp_path.iterdir()) == []


def test_a_new_key_says_where_it_was_written_and_warns_of_a_model_that_nobody_made(
    shared: Registry, verb_there: Verb
) -> None:
    code, out, err = verb_there("key", "new", "--owner", "a", "--model", "bot")
    assert (code, out[:3]) == (0, "tl-")
    assert err == f"written to {shared.database.shown}: gateways on that database take it within 2 s\n"
    code, out, err = verb_there("key", "new", "--owner", "a", "--model", "bott")
    assert (code, out[:3]) == (0, "tl-")
    assert "warning: no model named 'bott'; did you mean bot?" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "bott"),
        ("rollback", "bott", *WHO),
        ("route", "show", "bott"),
        ("route", "diff", "bott", "1"),
        ("route", "holdout", "bott", "--share", "0", *WHO),
        ("rollout", "start", "bott@1", *WHO),
        ("rollout", "status", "bott"),
        ("rollout", "abort", "bott", *WHO),
    ],
    ids=" ".join,
)
def test_a_misspelt_model_is_told_from_one_without_a_route(verb_there: Verb, arguments: tuple[str, ...]) -> None:
    code, out, err = verb_there(*arguments)
    assert (code, out) == (2, "")
    assert "no model named 'bott'; did you mean bot? `tuneloop models` lists them" in err


def test_aborting_where_no_rollout_is_open_leaves_a_share_that_a_person_gave(lived_in: Registry, verb: Verb) -> None:
    lived_in.fleet.forget_gateway("g1")
    assert verb("rollout", "abort", "bot", *WHO)[0] == 0
    given = set_route(lived_in, "bot", {2: 500, 1: 9_500}, Change("ada", "by hand"))
    code, out, err = verb("rollout", "abort", "bot", *WHO)
    assert (code, out) == (2, "")
    assert "no rollout of bot is open; `tuneloop rollback bot` takes a canary's share away" in err
    assert lived_in.routes.current("bot") == given
    lived_in.fleet.forget_engine("e1")
    assert verb("rollback", "bot", *WHO)[0] == 0
    code, out, err = verb("promote", "bot@1", *WHO)
    assert (code, err) == (0, "bot@1 has everything already: nothing was written\n")
    assert out == f"bot revision {given.revision + 1}: 2=0 1=10000 (by ada: test)\n"


def test_a_rollout_in_the_foreground_says_every_half_minute_what_it_waits_for(shared: Registry) -> None:
    lines: list[str] = []
    at_s = [100.0]
    told = _Told(lines.append, clock=lambda: at_s[0])
    [declared] = shared.rollouts.all("bot")
    few = Check(name="samples", verdict="inconclusive", detail="0 of 30 answered")
    for _ in range(8):
        told.wait(declared.model_copy(update={"checks": (few,)}), lambda: False)
        at_s[0] += SAY_EVERY_S / 4
    assert lines == [
        "  waiting for samples: 0 of 30 answered; no engine is live: start one with `tuneloop engine` or `tuneloop up`"
    ]


def test_an_episode_that_says_no_more_than_its_summary_is_shown(shared: Registry, verb_there: Verb) -> None:
    bare = {"summary": "bot@1 is asked other questions"}
    shared.episodes.open(alert_episode(shared.clock(), id="ep_bare", version=3, signal="quality", evidence=bare))
    code, out, err = verb_there("alert", "show", "ep_bare")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == bare["summary"]
    assert "tuneloop alert ack ep_bare --by YOU" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "lora"), "'lora' is a ready recipe; `tuneloop recipe new my.yaml --like lora`, then train that"),
        (
            ("train", "my.yaml"),
            "cannot read my.yaml: No such file or directory; `tuneloop recipe new my.yaml` writes one",
        ),
        (
            ("data", "check", "recipe.yaml"),
            "recipe.yaml: this is a recipe, no rows; give the files",
        ),
        (("data", "check", "none.jsonl"), "cannot read none.jsonl: No such file or directory; give a file of rows"),
        (
            ("experiment", "new", "none.yaml", *WHO),
            "cannot read none.yaml: No such file or directory; give a",
        ),
        (("gate", "bot", "--set", "none.yaml", *WHO), "cannot read none.yaml: No such file or directory; give --set"),
        (("drift", "check", "--reference", "none.jsonl", "--window", "none.jsonl"), "cannot read none.jsonl: No such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_file_that_cannot_be_read_is_named_with_what_to_do_next(
    verb_there: Verb, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = verb_there(*arguments)
    assert (code, out) == (2, "")
    assert message in err
