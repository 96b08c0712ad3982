"""The way out: one attempt at one receiver, over HTTP or SMTP. Every failure is a `NotTaken` with its reason.

Redirects are not followed: a page goes to the address that somebody set, and nowhere else. Proxies and passwords of
the environment (`HTTP_PROXY`, `.netrc`) are not used for the same reason.
"""

from __future__ import annotations

import logging
import smtplib
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from email.message import EmailMessage
from functools import cache
from pathlib import Path

import httpx

from tuneloop.monitor.delivery import bodies, signature
from tuneloop.monitor.delivery.page import Page
from tuneloop.registry.deliveries.receivers import Alertmanager, Email, Slack, Webhook
from tuneloop.registry.errors import Unavailable

log = logging.getLogger("tuneloop.monitor.delivery")
ALERTS_PATH = "/api/v2/alerts"
AnyReceiver = Webhook | Slack | Alertmanager | Email
_TAKEN = range(200, 300)
_FOR_A_WHILE = range(400, 500)  # of what a mail server answers


class NotTaken(Unavailable):
    """A receiver did not take a page; `retry_s` is what it asked for, or 0."""

    def __init__(self, reason: str, retry_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class PartlyTaken(NotTaken):
    """Some addresses of a mail have it, others were refused for a while (a full mailbox, greylisting)."""


class Sending:
    """Attempts at receivers; `lasts` is how long an alert stands in Alertmanager when nobody repeats it.

    Which addresses a mail has not reached is known to this process alone: the next one sends it to all of them again,
    under the same id.
    """

    def __init__(self, timeout_s: float, lasts: timedelta, clock: Callable[[], datetime]) -> None:
        self._timeout_s = timeout_s
        self._lasts = lasts
        self._clock = clock
        self._unreached: dict[str, list[str]] = {}  # delivery that others have → addresses

    def some_have(self, delivery: str) -> bool:
        """Whether a mail waits for some of its addresses only."""
        return delivery in self._unreached

    def forget(self, delivery: str) -> None:
        """No more is to be tried of it."""
        self._unreached.pop(delivery, None)

    def send(self, receiver: AnyReceiver, page: Page) -> None:
        """Have the receiver take one page.

        Raises:
            PartlyTaken: some addresses of a mail are to be tried again; another attempt is at those alone.
            NotTaken: it did not, or it is not known whether it did.
        """
        now = self._clock()
        key = {signature.DELIVERY_HEADER: page.delivery}
        if isinstance(receiver, Email):
            self._mail(receiver, page.delivery, bodies.email(page, receiver, now))
        elif isinstance(receiver, Alertmanager):
            self._to_alertmanager(receiver, bodies.alertmanager(page, now, self._lasts))
        elif isinstance(receiver, Slack):
            self._post(_address(receiver), bodies.slack(page), key)
        else:
            body = bodies.webhook(page)
            signed = {signature.HEADER: signature.sign(_secret(receiver.secret_file), body, now)}
            self._post(_address(receiver), body, key | signed)

    def renew(self, receiver: Alertmanager, pages: Sequence[Page]) -> None:
        """Tell Alertmanager that these stand.

        Raises:
            NotTaken: it did not answer.
        """
        self._to_alertmanager(receiver, bodies.renewal(pages, self._clock(), self._lasts))

    def _to_alertmanager(self, receiver: Alertmanager, body: bytes) -> None:
        headers = {"Authorization": f"Bearer {_secret(receiver.bearer_file)}"} if receiver.bearer_file else {}
        self._post(_address(receiver).rstrip("/") + ALERTS_PATH, body, headers)

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "tuneloop", **headers}
        try:
            with (
                httpx.Client(
                    timeout=self._timeout_s, trust_env=False, follow_redirects=False, verify=trusted()
                ) as client,
                client.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status, retry = answer.status_code, answer.headers.get("retry-after", "")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise NotTaken(f"{type(error).__name__}: {_without(url, str(error))}") from None
        if status in _TAKEN:
            return
        moved = "; redirects are not followed, set the address it names" if status in range(300, 400) else ""
        raise NotTaken(f"it answers {status}{moved}", float(retry) if retry.isdigit() and len(retry) < 6 else 0.0)

    def _mail(self, receiver: Email, delivery: str, message: EmailMessage) -> None:
        to = self._unreached.get(delivery, list(receiver.to))
        try:
            context = ssl.create_default_context(cafile=receiver.ca_file)
            if receiver.tls == "implicit":
                server: smtplib.SMTP = smtplib.SMTP_SSL(
                    receiver.host, receiver.port, timeout=self._timeout_s, context=context
                )
            else:
                server = smtplib.SMTP(receiver.host, receiver.port, timeout=self._timeout_s)
            with server:
                if receiver.tls == "starttls":
                    server.starttls(context=context)
                if receiver.username is not None and receiver.password_file is not None:
                    server.login(receiver.username, _secret(receiver.password_file))
                refused = server.send_message(message, receiver.sender, to)
        except smtplib.SMTPRecipientsRefused as error:
            broke_off = set(error.recipients) != set(to)
            if broke_off or delivery not in self._unreached:  # nobody has it
                raise NotTaken(f"{type(error).__name__}: {error}") from None
            refused = error.recipients
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise NotTaken(f"{type(error).__name__}: {error}") from None
        later = [address for address in to if address in refused and refused[address][0] in _FOR_A_WHILE]
        if for_good := sorted(set(refused) - set(later)):
            log.error("%s: it refuses %s; the others have it", receiver.name, ", ".join(for_good))
        if later:
            self._unreached[delivery] = later
            raise PartlyTaken(f"it refuses {', '.join(later)} for a while; the others have it")
        self.forget(delivery)


@cache
def trusted() -> ssl.SSLContext:
    """The authorities trusted over HTTPS; reading them takes a while, so it is done once."""
    return httpx.create_ssl_context()


def _address(receiver: Webhook | Slack | Alertmanager) -> str:
    return receiver.url if receiver.url is not None else _secret(str(receiver.url_file))


def _secret(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotTaken(f"{path} cannot be read: {error}") from None
    if not text:
        raise NotTaken(f"{path} is empty")
    return text


def _without(url: str, said: str) -> str:
    return said.replace(url, "its address")
