"""What receivers get: each in its form, signed, redacted, and at no other address than the one that was set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitor.delivery.post import EVIDENCE, acknowledge, deliverer, end, open_episode, rounds, tell, worsen
from monitor.delivery.servers import HttpReceiver, MailReceiver, http_receiver, mail_receiver
from tests_support import ODD_EVIDENCE, Clock
from tuneloop.monitor.delivery.deciding import LONGEST_WAIT_S
from tuneloop.monitor.delivery.redacting import NOT_SHOWN, Redactor
from tuneloop.monitor.delivery.signature import REPLAY_WINDOW_S, is_signed
from tuneloop.registry import Registry


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[MailReceiver]:
    with mail_receiver(tmp_path) as running:
        yield running


def secret(tmp_path: Path, text: str = "open sesame") -> str:
    path = tmp_path / "secret"
    path.write_text(text + "\n")
    return str(path)


def webhook(hook: HttpReceiver, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "webhook", "name": "ops", "url": hook.url, "secret_file": secret(tmp_path)} | changes


def email(mail: MailReceiver, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": "email", "name": "mail", "host": "localhost", "port": mail.port}
    fields |= {"ca_file": mail.ca_file, "sender": "tuneloop@example.com", "to": ["ada@example.com"]}
    return fields | {"username": "u", "password_file": secret(tmp_path)} | changes


def test_a_webhook_is_told_every_change_once_in_order_and_signed(
    ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path
) -> None:
    tell(ours, webhook(hook, tmp_path))
    episode = open_episode(ours)
    rounds(ours, clock)
    for change in (worsen, acknowledge, end):
        clock.advance(60)
        episode = change(ours, episode)
    rounds(ours, clock, 3)
    bodies = [json.loads(told.body) for told in hook.told]
    assert [body["transition"] for body in bodies] == ["opened", "worse", "acknowledged", "resolved"]
    assert [body["sequence"] for body in bodies] == [0, 1, 2, 3]
    assert [body["delivery"] for body in bodies] == hook.ids()
    assert {row.state for row in ours.outbox.all()} == {"sent"}
    told = hook.told[0]
    header, now = told.headers["tuneloop-signature"], clock.now
    assert is_signed("open sesame", told.body, header, now)
    assert not is_signed("another key", told.body, header, now)
    assert not is_signed("open sesame", told.body + b" ", header, now)
    assert not is_signed("open sesame", told.body, header, now + timedelta(seconds=REPLAY_WINDOW_S + 1)), "a replay"
    assert not is_signed("open sesame", told.body, header.replace("t=", "t=1"), now), "the time is signed too"
    assert not is_signed("open sesame", told.body, "v1=" + "0" * 64, now)


def test_a_page_says_what_since_when_how_sure_why_and_what_to_do(
    ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path
) -> None:
    tell(ours, webhook(hook, tmp_path, examples=5))
    open_episode(ours)
    rounds(ours, clock, runbook_base="https://wiki.example.com/")
    (told,) = hook.told
    body = json.loads(told.body)
    assert body["what"] == "bot@1 is asked other questions than before"
    assert body["title"] == f"[ticket] {body['what']}"
    assert body["since"] == "2026-11-01T11:58:00+00:00"
    assert "one false alarm in 10000 records" in body["sure"]
    assert body["causes"] == ["drift: users ask other questions"]
    assert body["changes"] == ["11:00 policy.gate of bot by ada"]
    assert body["runbook"] == "https://wiki.example.com/docs/runbooks/prompt_drift.md"
    assert body["next"] == ["tuneloop alert show ep1", "tuneloop retraining list", "tuneloop alert ack ep1 --by YOU"]
    assert len(body["examples"]) == 5, "of seven"


def test_a_page_asks_nobody_to_take_what_somebody_has_taken_and_leads_bias_to_its_check(
    ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path
) -> None:
    tell(ours, webhook(hook, tmp_path))
    bias = [{"kind": "bias", "why": "it refuses one group more", "explains": ["refusals"]}]
    taken = acknowledge(ours, open_episode(ours, evidence=EVIDENCE | {"causes": bias}))
    worsen(ours, taken)
    rounds(ours, clock)
    assert json.loads(hook.told[-1].body)["next"] == ["tuneloop alert show ep1", "tuneloop bias check bot@1"]


def test_an_episode_of_which_nothing_can_be_understood_is_told_all_the_same(
    ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path
) -> None:
    tell(ours, webhook(hook, tmp_path, examples=5))
    for number, evidence in enumerate(ODD_EVIDENCE):
        open_episode(ours, id=f"odd{number}", version=number + 1, evidence=evidence)
    rounds(ours, clock)
    told = [json.loads(told.body) for told in hook.told]
    assert sorted(body["episode"] for body in told) == [f"odd{number}" for number in range(len(ODD_EVIDENCE))]
    assert all(body["causes"] == body["changes"] == [] for body in told)


def test_examples_leave_redacted_or_not_at_all(
    ours: Registry, hook: HttpReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(ours, webhook(hook, tmp_path, examples=2), webhook(hook, tmp_path, name="mum", examples=0))
    open_episode(ours)
    with deliverer(ours) as made:
        made._redact = Redactor()  # the real one, in its own process
        made.round(to_the_end=True)
    examples = {body["delivery"]: body["examples"] for body in (json.loads(told.body) for told in hook.told)}
    assert sorted(examples.values()) == [[], ["Who is <!channel>? Write to <EMAIL_ADDRESS>", "question 2"]]
    assert not any(b"ada@example.com" in told.body for told in hook.told)
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-such-python"))
    assert Redactor()(["ada@example.com"]) == [NOT_SHOWN]


def test_slack_is_told_in_its_form_and_calls_nobody(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    tell(ours, {"kind": "slack", "name": "chat", "url": hook.url})
    end(ours, open_episode(ours))
    rounds(ours, clock)
    opened, over = [json.loads(told.body) for told in hook.told]
    assert opened["text"] == "[ticket] bot@1 is asked other questions than before"
    assert over["text"].startswith("[ticket] resolved: ")
    assert over["attachments"][0]["color"] == "#2da44e"
    said = opened["attachments"][0]["blocks"][1]["text"]
    assert said["type"] == "mrkdwn"
    assert "&lt;!channel&gt;" in said["text"]
    assert "<!channel>" not in said["text"]


def test_a_mail_goes_out_encrypted_with_an_id_that_tells_a_repetition(
    ours: Registry, clock: Clock, mail: MailReceiver, tmp_path: Path
) -> None:
    tell(ours, email(mail, tmp_path))
    end(ours, open_episode(ours, evidence={"summary": "two\r\nBcc: eve@example.com lines"}))
    rounds(ours, clock)
    assert mail.logins == [("u", "open sesame", True)] * 2
    opened, over = mail.mails
    assert opened["Subject"] == "[ticket] two\\u000d\\nBcc: eve@example.com lines"
    assert opened["Bcc"] is None
    rows = {row.transition: row.id for row in ours.outbox.all()}
    assert opened["Message-ID"] == f"<{rows['opened']}@example.com>"
    assert over["Message-ID"] == f"<{rows['resolved']}@example.com>"
    assert opened["References"] == over["References"] == "<ep1@example.com>"
    assert "runbook    docs/runbooks/prompt_drift.md" in opened.get_content()


def test_a_mail_server_that_is_not_who_it_says_gets_no_password(
    ours: Registry, clock: Clock, mail: MailReceiver, tmp_path: Path
) -> None:
    tell(ours, email(mail, tmp_path, ca_file=None))
    open_episode(ours)
    rounds(ours, clock)
    assert (mail.logins, mail.mails) == ([], [])
    (row,) = ours.outbox.all()
    assert "CERTIFICATE_VERIFY_FAILED" in row.error


def test_an_address_that_is_refused_is_named_and_the_others_get_one_mail(
    ours: Registry, clock: Clock, mail: MailReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tell(ours, email(mail, tmp_path, to=["ada@example.com", "bob@example.com"]))
    mail.refuses = {"bob@example.com"}
    open_episode(ours)
    rounds(ours, clock)
    (row,) = ours.outbox.all()
    assert (row.state, len(mail.mails)) == ("sent", 1)
    assert "it refuses bob@example.com; the others have it" in caplog.text


def test_a_secret_that_no_header_can_hold_is_a_failure_like_any_other(
    ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path
) -> None:
    odd = secret(tmp_path, "schlüssel")
    tell(ours, {"kind": "alertmanager", "name": "am", "url": hook.url, "bearer_file": odd})
    open_episode(ours)
    rounds(ours, clock)
    (row,) = ours.outbox.all()
    assert (row.state, row.attempts) == ("waiting", 1)
    assert row.error == "a defect of the monitor: UnicodeEncodeError"


def test_a_redirect_is_not_followed(ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path) -> None:
    with http_receiver() as elsewhere:
        hook.status, hook.answer_headers = 307, {"Location": elsewhere.url}
        tell(ours, webhook(hook, tmp_path))
        open_episode(ours)
        rounds(ours, clock)
        assert elsewhere.told == []
    (row,) = ours.outbox.all()
    assert (row.state, row.attempts) == ("waiting", 1)
    assert "it answers 307; redirects are not followed" in row.error


def test_a_secret_is_read_at_each_attempt_and_its_absence_is_said(
    ours: Registry, clock: Clock, hook: HttpReceiver, tmp_path: Path
) -> None:
    address = tmp_path / "address"
    tell(ours, webhook(hook, tmp_path, url=None, url_file=str(address)))
    open_episode(ours)
    rounds(ours, clock, 1, every_s=10)
    (row,) = ours.outbox.all()
    assert f"{address} cannot be read" in row.error
    address.write_text(hook.url)
    rounds(ours, clock)
    assert hook.ids() == [row.id]


def test_a_long_page_loses_examples_in_slack_and_never_what_to_do(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, {"kind": "slack", "name": "chat", "url": hook.url})
    texts = [{"request_id": f"r{n}", "question": f"{n}" + "<>" * 99} for n in range(5)]
    changes = [{"what": f"change {n} " + "&" * 60} for n in range(10)]
    evidence = EVIDENCE | {"changes": changes, "signals": {"prompt_drift": {"examples": texts}}}
    open_episode(ours, evidence=evidence)
    rounds(ours, clock)
    (told,) = hook.told
    said = json.loads(told.body)["attachments"][0]["blocks"][1]["text"]["text"]
    assert len(said) <= 3_000
    assert said.endswith("\nnext       tuneloop alert ack ep1 --by YOU```")
    assert "\nrunbook    docs/runbooks/prompt_drift.md\n" in said
    assert "\ncause      drift: users ask other questions\n" in said
    assert "more lines; `tuneloop alert show ep1` has them" in said
    kept = said.count("\nexample ") + said.count("\nbefore ")
    assert f"\nleft out   {15 - kept} more lines" in said
    assert kept > 5, "no more is left out than must be"


def test_an_address_refused_for_a_while_is_tried_again_alone_under_the_same_id(
    ours: Registry, clock: Clock, mail: MailReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    everybody = ["ada@example.com", "bob@example.com", "eve@example.com"]
    tell(ours, email(mail, tmp_path, to=everybody))
    mail.refuses, mail.puts_off = {"eve@example.com"}, {"bob@example.com"}
    open_episode(ours)
    with deliverer(ours) as made:
        made.round(to_the_end=True)
        (row,) = ours.outbox.all()
        assert (row.state, row.error) == ("waiting", "it refuses bob@example.com for a while; the others have it")
        open_episode(ours, id="ep2", signal="latency")
        made.round(to_the_end=True)
        assert len(mail.mails) == 2, "another episode waits for nobody"
        mail.puts_off = set()
        clock.advance(LONGEST_WAIT_S)
        made.round(to_the_end=True)
    assert {row.state for row in ours.outbox.all()} == {"sent"}
    id_of_first = f"<{row.id}@example.com>"
    reached = [to for to, one in zip(mail.reached, mail.mails, strict=True) if one["Message-ID"] == id_of_first]
    assert reached == [["ada@example.com"], ["bob@example.com"]]
    assert caplog.text.count("it refuses eve@example.com; the others have it") == 2, "of either episode, for good"


def test_who_has_a_mail_does_not_wait_for_who_is_refused_to_hear_that_it_got_worse(
    ours: Registry, clock: Clock, mail: MailReceiver, tmp_path: Path
) -> None:
    tell(ours, email(mail, tmp_path, to=["ada@example.com", "bob@example.com"]))
    mail.puts_off = {"bob@example.com"}
    episode = open_episode(ours)
    with deliverer(ours) as made:
        made.round(to_the_end=True)
        worsen(ours, episode)
        made.round(to_the_end=True)
        assert [one["Subject"].partition(":")[0] for one in mail.mails][1:] == ["[page] got worse"]
        mail.puts_off = set()
        clock.advance(LONGEST_WAIT_S)
        made.round(to_the_end=True)
    assert mail.reached == [["ada@example.com"], ["ada@example.com"], ["bob@example.com"]]
    assert [row.state for row in ours.outbox.all()] == ["sent", "sent"]
