"""The registry's verbs as people and scripts meet them: exit codes, messages, and JSON from every verb that reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from registry.verbs import WHO, Verb
from tests_support import (
    beat_gateway,
    request_record,
    window_score,
)
from tuneloop.registry import Registry, overview
from tuneloop.registry.nouns import Arm


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("models",),
        ("versions", "bot"),
        ("show", "bot@1"),
        ("show", "bot@3"),
        ("compare", "bot@1", "bot@2"),
        ("gate", "bot@3"),
        ("route", "show", "bot"),
        ("route", "history", "bot"),
        ("rollout", "status", "bot"),
        ("rollout", "list"),
        ("rollout", "list", "--model", "bot"),
        ("rollout", "policy", "bot"),
        ("retraining", "list"),
        ("retraining", "list", "--model", "bot"),
        ("retraining", "show", "rt_1"),
        ("retraining", "policy", "bot"),
        ("trace", "req-1"),
        ("requests", "bot", "--newest", "5"),
        ("feedback", "bot"),
        ("feedback", "bot", "--newest", "1"),
        ("audit",),
        ("audit", "bot"),
        ("key", "list"),
        ("config",),
    ],
    ids=" ".join,
)
def test_every_verb_that_reads_speaks_to_people_and_to_programs(verb_there: Verb, arguments: tuple[str, ...]) -> None:
    code, text, _ = verb_there(*arguments)
    assert code == 0
    assert text.strip()
    code, said, _ = verb_there(*arguments, "--json")
    assert code == 0
    assert json.loads(said)


def test_what_json_says_is_what_there_is(lived_in: Registry, verb: Verb) -> None:
    def read(*arguments: str) -> Any:
        return json.loads(verb(*arguments, "--json")[1])

    assert [found["version"] for found in read("versions", "bot")] == [3, 2, 1]
    assert [found["version"] for found in read("versions", "bot", "--newest", "2")] == [3, 2]
    assert read("models") == [{"model": "bot", "newest_version": 3, "split_bp": "2=1000 1=9000", "revision": 2}]
    beat_gateway(lived_in, {"bot": 2})  # that it lives is as old as this test
    assert read("route", "show", "bot")["gateways"] == {"g1": 2}
    assert read("gate", "bot@3")["verdict"] == "inconclusive"
    unjudged = read("gate", "bot@1")
    assert (unjudged["verdict"], unjudged["checks"], unjudged["approver"]) == (None, [], "ada")
    assert [decided["reason"] for decided in unjudged["decisions"]] == ["test"]
    assert read("rollout", "status", "bot")["verdict"] == "inconclusive"
    assert [entry["action"] for entry in read("retraining", "show", "rt_1")["history"]] == ["retraining.file"]
    assert "digest" not in read("key", "list")[0]
    assert "messages" not in read("requests", "bot")[0]


def test_a_list_is_as_long_as_it_was_asked_for_and_says_that_there_is_more(
    verb_there: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there are earlier entries" not in verb_there("retraining", "show", "rt_1")[1]
    monkeypatch.setattr(overview, "MOST_ENTRIES", 0)
    said = verb_there("retraining", "show", "rt_1")[1]
    assert "there are earlier entries: `tuneloop audit rt_1 --limit 1000`" in said
    for arguments in (("versions", "bot"), ("route", "history", "bot")):
        _, said, told = verb_there(*arguments, "--json", "--newest", "1")
        assert len(json.loads(said)) == 1
        assert told == "these are the newest 1; --newest shows more\n"
        _, said, told = verb_there(*arguments, "--json")
        assert len(json.loads(said)) > 1
        assert told == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("versions", "nobody"), 2, "no model named 'nobody'; `tuneloop models` lists them"),
        (("route", "show", "nobody"), 2, "no model named 'nobody'; `tuneloop models` lists them"),
        (("route", "history", "nobody"), 2, "no model named 'nobody'; `tuneloop models` lists them"),
        (("gate", "bot@"), 2, "'bot@' is not a version; write MODEL@NUMBER"),
        (("compare", "bot@1", "bot@8"), 2, "bot@8 does not exist; known: bot@3, bot@2, bot@1"),
        (("trace", "req-9"), 2, "no request 'req-9' is on record"),
        (("retraining", "show", "rt_9"), 2, "no retraining request 'rt_9'"),
        (("promote", "bot@9", *WHO), 2, "bot@9 does not exist"),
        (("promote", "bot@3", *WHO), 3, "bot@3 is not approved (its gate says inconclusive)"),
        (("promote", "bot@2"), 2, "Missing option '--by'"),
        (("route", "set", "bot", "1=9000", "2=500", *WHO), 2, "weights sum to 9500, not 10000"),
        (("route", "set", "bot", "1=9000", "1=1000", *WHO), 2, "each version once"),
        (("route", "set", "bot", "1=90%", "2=10%", *WHO), 2, "'1=90%' is not VERSION=BASIS_POINTS"),
        (("route", "set", "bot", "²=10000", *WHO), 2, "'²=10000' is not VERSION=BASIS_POINTS"),
        (("route", "set", "bot", "0=10000", *WHO), 2, "versions are numbered from 1"),
        (("route", "set", "bot", "1=10000", "--expect", "1", *WHO), 1, "ada wrote revision 2"),
        (("rollback", "bot", "--to", "9", *WHO), 2, "bot has no revision 9"),
        (("rollback", "nobody", *WHO), 2, "no model named 'nobody'; `tuneloop models` lists them"),
        (("rollout", "start", "bot@2", "--steps", "a,b", *WHO), 2, "is not a list of basis points"),
        (("rollout", "start", "bot@2", "--steps", "10000", *WHO), 2, "needs a step below 10000"),
        (("rollout", "start", "bot@2", "--steps", "1000,5000", *WHO), 2, "must rise and end at 10000"),
        (("rollout", "start", "bot@2", "--steps", "5000,1000,10000", *WHO), 2, "must rise and end at 10000"),
        (("rollout", "start", "bot@2", "--steps", "0,10000", *WHO), 2, "weight_bp: Input should be greater than 0"),
        (("rollout", "start", "bot@2", "--give-up-s", "59", *WHO), 2, "give_up_s 59 is under hold_s 60"),
        (("rollout", "start", "bot@3", *WHO), 3, "bot@2 has a share of bot's traffic; one rollout at a time"),
        (("rollout", "resume", "bot", *WHO), 3, "of bot@2 is running; only a paused one can be resumed"),
        (("rollout", "list", "--model", "bott"), 2, "no model named 'bott'"),
        (("rollout", "policy", "bott"), 2, "no model named 'bott'"),
        (("rollout", "start", "bot@2", "--margin", "0", *WHO), 2, "feedback_margin: Input should be greater than 0"),
        (("rollout", "start", "bot@1", *WHO), 3, "bot@1 is the champion already"),
        (("key", "new", "--owner", "a", "--days", "0"), 2, "can never be used"),
        (("key", "new", "--owner", "a", "--days", "nan"), 2, "nan days are no time to expire after; give up to 36525"),
        (("key", "new", "--owner", "a", "--days", "1e12"), 2, "1e+12 days are no time to expire after"),
        (("requests", "bot", "--newest", "-1"), 2, "Invalid value for '--newest'"),
        (("requests", "bot", "--newest", "9" * 23), 2, "is not in the range 1<=x<=1000000000"),
        (("audit", "--limit", "-1"), 2, "Invalid value for '--limit'"),
        (("audit", "--limit", "9" * 23), 2, "is not in the range 1<=x<=1000000000"),
        (("key", "new", "--owner", "a", "--model", "A B"), 2, "no such key can be made: models.0: String should match"),
        (("approve", "bot@3\n", *WHO), 2, "'bot@3\\n' is not a version"),
        (("key", "revoke", "key_9", "--by", "ada"), 2, "no API key 'key_9'"),
        (("approve", "bot@9", *WHO), 2, "bot@9 does not exist"),
        (("approve", "bot@3", "--by", " ", "--reason", "x"), 2, "Invalid value for '--by': it is blank"),
        (("retraining", "approve", "rt_1", "--by", " ", "--reason", "x"), 2, "Invalid value for '--by': it is blank"),
        (("retraining", "cancel", "rt_1", "--by", "ada", "--reason", ""), 2, "Invalid value for '--reason'"),
        (("key", "revoke", "key_9", "--by", "\t"), 2, "Invalid value for '--by': it is blank"),
        (("key", "new", "--owner", " "), 2, "an owner's name has 1 to 200 letters"),
        (("feedback", "bott"), 2, "no model named 'bott'; did you mean bot? `tuneloop models` lists them"),
        (("requests", "bott"), 2, "no model named 'bott'; did you mean bot? `tuneloop models` lists them"),
        (("retraining", "list", "--model", "bott"), 2, "no model named 'bott'"),
        (("retraining", "policy", "bott"), 2, "no model named 'bott'"),
        (("rollout", "start", "bot@2", "--hold-s", "nan", *WHO), 2, "steps.0.hold_s: Input should be a finite number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_names_what_is_wrong_and_changes_nothing(
    shared: Registry, verb_there: Verb, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = shared.audit.entries(limit=1_000)
    got, out, err = verb_there(*arguments)
    assert message in err
    assert got == code
    assert out == ""
    assert shared.audit.entries(limit=1_000) == before


def test_the_life_of_a_version_in_verbs(lived_in: Registry, verb: Verb) -> None:
    lived_in.fleet.forget_gateway("g1")  # nobody applies anything here
    assert verb("approve", "bot@3", *WHO) == (0, "bot@3 is approved by ada\n", "")
    code, out, _ = verb("promote", "bot@3", *WHO, "--json")
    assert (code, json.loads(out)["arms"]) == (
        0,
        [{"version": 1, "weight_bp": 0, "places": None}, {"version": 3, "weight_bp": 10_000, "places": None}],
    )
    assert verb("rollback", "bot", *WHO)[1] == "bot revision 4: 3=0 1=10000 (by ada: test)\n"
    assert verb("route", "set", "bot", "3=2500", "1=7500", *WHO)[0] == 0
    [declared] = lived_in.rollouts.all("bot")
    aborted = f"{declared.id} of bot@2 is aborted\nbot revision 5: 3=2500 1=7500 (by ada: test)\n"
    assert verb("rollout", "abort", "bot", *WHO)[1] == aborted
    assert "(by the policy's limits; no rollout set this share)" in verb("rollout", "status", "bot")[1]


def test_a_retraining_request_is_approved_and_cancelled_once(lived_in: Registry, verb: Verb) -> None:
    assert verb("retraining", "approve", "rt_1", *WHO)[1] == "rt_1 is queued\n"
    code, _, err = verb("retraining", "approve", "rt_1", *WHO)
    assert (code, "is queued; it cannot become approved" in err) == (3, True)
    assert verb("retraining", "cancel", "rt_1", *WHO)[1] == "rt_1 is cancelled\n"


def test_what_guards_marked_for_people_to_read_is_shown_with_what_was_said(verb: Verb, registry: Registry) -> None:
    registry.traffic.add_requests([request_record(3, registry.clock())])
    registry.routes.write("bot", [Arm(version=1, weight_bp=10_000)], by="t", reason="t", expected_revision=0)
    assert verb("requests", "bot", "--sampled")[1] == "nothing is marked for people to read\n"
    marked = request_record(1, registry.clock(), guards={"topics": "sample: off topic"})
    registry.traffic.add_requests([marked, request_record(2, registry.clock(), guards={"topics": "pass: off topic"})])
    code, out, _ = verb("requests", "bot", "--sampled")
    assert (code, out.splitlines()[1:]) == (0, ["  user: What does f1 do?", "  answer: It does."])
    assert out.startswith("req-1 ")
    assert "topics sample: off topic" in out
    [shown] = json.loads(verb("requests", "bot", "--sampled", "--json")[1])
    assert (shown["id"], shown["answer"]) == ("req-1", "It does.")


def test_a_keys_secret_is_printed_once(lived_in: Registry, verb: Verb) -> None:
    secret = verb("key", "new", "--owner", "team-b", "--days", "30")[1].strip()
    assert secret.startswith("tl-")
    assert secret not in verb("key", "list", "--json")[1]
    [made] = [key for key in lived_in.keys.all() if key.owner == "team-b"]
    assert made.expires_at is not None
    assert verb("key", "revoke", made.id, "--by", "ada")[1] == f"{made.id} is revoked\n"


def test_who_made_and_revoked_a_key_is_on_record_with_the_user_as_default(
    lived_in: Registry, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    verb("key", "new", "--owner", "team-c", "--by", "ada")
    verb("key", "new", "--owner", "team-d")
    made = lived_in.audit.entries(limit=2, action="key.new")
    assert [(e.actor, e.detail["owner"]) for e in made] == [("grace", "team-d"), ("ada", "team-c")]
    verb("key", "revoke", made[0].subject, "--reason", "it leaked")
    assert [(e.actor, e.detail) for e in lived_in.audit.entries(limit=1)] == [("grace", {"reason": "it leaked"})]
    verb("key", "new", "--owner", "team-e", "--reason", "their pilot")
    assert lived_in.audit.entries(limit=1)[0].detail["reason"] == "their pilot"
    assert verb("key", "revoke", made[0].subject, "--reason", " ")[0] == 2
    assert "the operating system's user" in " ".join(verb("key", "new", "--help")[1].split())


def test_the_audit_table_says_why(lived_in: Registry, verb: Verb) -> None:
    header, *rows = verb("audit", "bot")[1].splitlines()
    assert header.endswith("REASON")
    assert any(row.endswith("canary") for row in rows)


def test_status_names_a_row_that_cannot_be_read_and_shows_the_rest(lived_in: Registry, verb: Verb) -> None:
    with lived_in.database.writing() as connection:
        connection.execute(sa.text("UPDATE episodes SET severity = 'odd'"))
        connection.execute(sa.text("UPDATE retraining SET state = 'odd'"))
    code, out, _ = verb("status")
    assert code == 0
    assert "bot@1" in out
    assert "cannot be read: the database's AlertEpisode" in out
    assert "cannot be read: the database's RetrainingRequest" in out
    for arguments in (("alerts",), ("retraining", "list", "--model", "bot")):
        code, _, err = verb(*arguments)
        assert (code, "cannot be read: the database's" in err) == (0, True)


def test_one_bad_entry_leaves_the_rest_of_the_audit_log_readable(lived_in: Registry, verb: Verb) -> None:
    verb("key", "new", "--owner", "newest")
    with lived_in.database.writing() as connection:
        bad = connection.execute(sa.text("SELECT max(id) - 1 FROM audit")).scalar_one()
        connection.execute(sa.text("DROP TRIGGER audit_no_update"))
        connection.execute(sa.text("UPDATE audit SET detail = '[1' WHERE id = :bad"), {"bad": bad})
    code, out, err = verb("audit")
    assert (code, f"cannot be read: the database's AuditEntry {bad} cannot be read" in err) == (0, True)
    assert "key.new" in out.splitlines()[1]
    assert len(out.splitlines()) > 3


def test_the_audit_log_is_verified_and_what_was_altered_is_named(lived_in: Registry, verb: Verb) -> None:
    code, out, err = verb("audit", "--verify")
    assert (code, err) == (0, "")
    noted = out.splitlines()[1]
    assert "the noted hash is that of entry" in verb("audit", "--verify", "--noted", noted)[1]
    code, out, _ = verb("audit", "--verify", "--noted", "1" * 64)
    assert (code, "no entry has the noted hash" in out) == (1, True)
    with lived_in.database.writing() as connection:
        connection.execute(sa.text("DROP TRIGGER audit_no_update"))
        connection.execute(sa.text("UPDATE audit SET actor = 'eve' WHERE id = 2"))
    code, out, err = verb("audit", "--verify", "--json")
    assert (code, len(json.loads(out)["faults"])) == (1, 2), "the row, and the trigger that was to keep it"
    assert "does not verify, in 2 places" in err
    assert verb("audit", "--noted", noted)[0] == verb("audit", "bot", "--verify")[0] == 2
    assert verb("audit", "--verify", "--noted", noted[:12])[0] == 2


def test_the_schema_is_brought_up_to_date_by_its_verb(verb: Verb, registry_home: Path) -> None:
    code, out, _ = verb("db", "upgrade")
    assert (code, out) == (0, f"sqlite:///{registry_home}/tuneloop.db is at the newest schema\n")


def test_a_database_that_is_away_ends_with_1(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/none")
    code, _, err = verb("status")
    assert (code, "secret" in err) == (1, False)
    assert "`tuneloop config` shows where database_url comes from" in err
    assert "secret" not in verb("config")[1]


def test_what_people_wrote_gives_a_terminal_no_commands(lived_in: Registry, verb: Verb) -> None:
    reason = "red \x1b[31m, csi \x9b31m, turned \u202e, two\nlines"
    lived_in.gates.approve("bot", 3, by="ada", reason="test")
    lived_in.fleet.forget_gateway("g1")
    lived_in.routes.write("bot", lived_in.routes.current("bot").arms, by="ada", reason=reason, expected_revision=2)
    for arguments in (("route", "history", "bot"), ("route", "show", "bot"), ("route", "show", "bot", "--json")):
        _, out, _ = verb(*arguments)
        assert not {"\x1b", "\x9b", "\u202e"} & set(out)
        assert "\\u001b[31m" in out
    assert json.loads(verb("route", "show", "bot", "--json")[1])["reason"] == reason
    assert len(verb("route", "history", "bot")[1].splitlines()) == 4


def test_json_holds_no_nan(lived_in: Registry, verb: Verb) -> None:
    score = window_score(lived_in.clock(), id="w2", detail={"nats": float("nan")})
    lived_in.episodes.add_score(score)
    code, out, _ = verb("drift", "windows", "bot", "--json")
    assert (code, "NaN" in out) == (0, False)
    assert json.loads(out)[1]["detail"] == {"nats": None}


def test_config_names_a_table_that_nothing_reads(verb: Verb, registry_home: Path) -> None:
    (registry_home / "tuneloop.toml").write_text("[gatway]\nport = 1\n")
    code, _, err = verb("config")
    assert (code, "nothing reads [gatway]; did you mean [gateway]?" in err) == (2, True)
