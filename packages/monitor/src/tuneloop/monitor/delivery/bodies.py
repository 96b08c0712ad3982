"""A page in the form each kind of receiver reads. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from tuneloop.monitor.delivery.page import Page, most_left_out, text_lines
from tuneloop.registry.deliveries.receivers import Email
from tuneloop.registry.printing import plain

FORM = 1  # of the webhook's JSON; a field that is added does not change it
ALERT = "TuneloopEpisode"
_SLACK_CHARS = 2_900  # a section takes 3,000
_COLOURS = {"page": "#d73a49", "ticket": "#dbab09", "resolved": "#2da44e"}


def webhook(page: Page) -> bytes:
    """Every field by its name."""
    values = {name: _json(value) for name, value in asdict(page).items()}
    return json.dumps({"form": FORM, **values}, ensure_ascii=False, sort_keys=True).encode()


def slack(page: Page) -> bytes:
    """As incoming webhooks take it: the line for the notification, the page as blocks."""
    for left_out in range(most_left_out(page) + 1):
        lines = [_slack_text(line) for line in text_lines(page, left_out)]
        rest = "\n".join(lines[2:]).replace("```", "'''")
        if len(rest) <= _SLACK_CHARS:
            break
    blocks: list[dict[str, Any]] = [
        {"type": "section", "text": {"type": "mrkdwn", "text": f"*{lines[0][:_SLACK_CHARS]}*"}}
    ]
    blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": f"```{rest[:_SLACK_CHARS]}```"}})
    colour = _COLOURS["resolved" if page.state == "resolved" else page.severity]
    said = {"text": _slack_text(page.title), "attachments": [{"color": colour, "blocks": blocks}]}
    return json.dumps(said, ensure_ascii=False).encode()


def email(page: Page, receiver: Email, at: datetime) -> EmailMessage:
    """A mail whose id is the delivery's, so that a repetition is one; an episode's mails are one thread."""
    message = EmailMessage()
    domain = receiver.sender.rpartition("@")[2]
    message["Subject"] = page.title
    message["From"], message["To"] = receiver.sender, ", ".join(receiver.to)
    message["Date"] = format_datetime(at)
    message["Message-ID"] = f"<{page.delivery}@{domain}>"
    message["References"] = f"<{page.episode}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(text_lines(page)) + "\n")
    return message


def alertmanager(page: Page, now: datetime, lasts: timedelta) -> bytes:
    """What API v2 takes; the alert of the ticket ends where it has become a page."""
    alerts = _alerts(page, now, lasts)
    if page.transition == "worse" and page.severity == "page":  # a ticket told despite a silence has replaced none
        labels = {**_labels(page, page.signal), "severity": "ticket"}
        labels.pop("despite", None)
        alerts.append({"labels": labels, "startsAt": _stamp(page.opened_at), "endsAt": _stamp(now)})
    return json.dumps(alerts, ensure_ascii=False).encode()


def renewal(pages: Sequence[Page], now: datetime, lasts: timedelta) -> bytes:
    """Alertmanager forgets what nobody repeats, and everything when it restarts."""
    alerts = [alert for page in pages for alert in _alerts(page, now, lasts)]
    return json.dumps(alerts, ensure_ascii=False).encode()


def _alerts(page: Page, now: datetime, lasts: timedelta) -> list[dict[str, Any]]:
    """One, and one of each signal that joined a page: Alertmanager notifies of labels, not of what they say."""
    return [_alert(page, _labels(page, signal), now, lasts) for signal in (page.signal, *page.pages_too)]


def _alert(page: Page, labels: dict[str, str], now: datetime, lasts: timedelta) -> dict[str, Any]:
    ends = page.resolved_at or now + lasts
    annotations = {
        "summary": page.what,
        "description": "\n".join(text_lines(page)),
        "runbook": page.runbook,
        "next": "; ".join(page.next),
        "state": page.state,
    }
    return {
        "labels": {**labels, "severity": page.severity},
        "annotations": annotations,
        "startsAt": _stamp(page.opened_at),
        "endsAt": _stamp(max(ends, page.opened_at + timedelta(milliseconds=1))),
    }


def _labels(page: Page, signal: str) -> dict[str, str]:
    of_episode = {"episode": page.episode, "model": page.model, "version": str(page.version)}
    despite = {"despite": ",".join(page.despite)} if page.despite else {}  # it notifies of labels it has not seen
    return {"alertname": ALERT, **of_episode, "signal": signal, **despite}


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def _slack_text(text: str) -> str:
    """Slack's three special characters as entities: `<!channel>` in a user's question calls nobody."""
    return re.sub("[&<>]", lambda found: {"&": "&amp;", "<": "&lt;", ">": "&gt;"}[found[0]], text)


def _json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else plain(value)
