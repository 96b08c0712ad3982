"""Where alert episodes are delivered: one policy for the whole registry, read as strictly as a recipe.

No secret stands in it: URLs that are secrets, keys and passwords are named by the file that holds them, which the
monitor reads at each attempt, so that they can be changed while it runs.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from tuneloop.registry.nouns import Noun, as_tuple

EVERY_MODEL = "*"  # what the policy is filed under
MOST_EXAMPLES = 5
Severity = Literal["page", "ticket"]


def _is_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write http://HOST/… or https://HOST/…")
    if parts.username or parts.password:
        raise ValueError("a password has no place in a URL that is kept for ever; name a file with it")
    return value


Url = Annotated[str, AfterValidator(_is_url)]
File = Annotated[str, Field(min_length=1, max_length=1_000)]
Address = Annotated[str, Field(pattern=r"^[^\s<>@,;]+@[^\s<>@,;]+$", max_length=254)]


class _Receiver(Noun):
    model_config = ConfigDict(strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    severity: Severity = "ticket"  # the least that is delivered
    models: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()  # none: of every model
    examples: int = Field(default=MOST_EXAMPLES, ge=0, le=MOST_EXAMPLES)  # redacted questions a page may carry

    def takes(self, model: str, severity: str) -> bool:
        """Whether it is to hear of an episode like this."""
        return (not self.models or model in self.models) and (severity == "page" or self.severity == "ticket")


class _ByUrl(_Receiver):
    url: Url | None = None
    url_file: File | None = None  # holds the URL, where knowing it is enough to write there

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("give url or url_file, one of them")
        return self


class Webhook(_ByUrl):
    """JSON, signed with a key both sides know."""

    kind: Literal["webhook"]
    secret_file: File


class Slack(_ByUrl):
    """JSON as Slack's incoming webhooks take it, and what speaks their language."""

    kind: Literal["slack"]


class Alertmanager(_ByUrl):
    """Prometheus' Alertmanager, by its API v2; the URL is that of its root."""

    kind: Literal["alertmanager"]
    bearer_file: File | None = None


class Email(_Receiver):
    """A mail to each address, through one server."""

    kind: Literal["email"]
    host: str = Field(min_length=1)
    port: int = Field(default=587, ge=1, le=65_535)
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    ca_file: File | None = None  # trusted instead of the system's authorities
    username: str | None = None
    password_file: File | None = None
    sender: Address
    to: Annotated[tuple[Address, ...], BeforeValidator(as_tuple)] = Field(min_length=1)

    @model_validator(mode="after")
    def _password_is_not_sent_in_the_clear(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together")
        if self.username is not None and self.tls == "none":
            raise ValueError("a password is not sent in the clear: set tls to starttls or implicit")
        return self


Receiver = Annotated[Webhook | Slack | Alertmanager | Email, Field(discriminator="kind")]


class ReceiversPolicy(Noun):
    """Everyone who hears of episodes; none at first."""

    model_config = ConfigDict(strict=True)

    receivers: Annotated[tuple[Receiver, ...], BeforeValidator(as_tuple)] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = [name for name, n in Counter(one.name for one in self.receivers).items() if n > 1]
        if twice:
            raise ValueError(f"{twice[0]} names two receivers; deliveries are told apart by it")
        return self
