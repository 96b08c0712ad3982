"""What somebody new to the verbs meets: the wrong folder, names of nothing, and things that are not so yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.verbs import Verb, verb_at
from tuneloop.registry import Registry


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
