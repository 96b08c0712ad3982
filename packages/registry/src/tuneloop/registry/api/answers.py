"""What the control plane answers where no noun of the registry says it already."""

from __future__ import annotations

from typing import Generic, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.access.roles import Permission
from tuneloop.registry.access.tokens import Token
from tuneloop.registry.episodes import ShownState
from tuneloop.registry.nouns import AlertEpisode, ApiKey, Approval, Noun
from tuneloop.registry.overview import Status
from tuneloop.registry.paging import MOST_PER_PAGE, Page
from tuneloop.registry.retraining.history import Outcomes, RequestTook
from tuneloop.registry.versions.lineage import ComparedVersion

T = TypeVar("T")


class PageOf(BaseModel, Generic[T]):
    """One page of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[T, ...]
    next: str | None = Field(description="Give it as `cursor` to get the next page; null: this is the last.")
    unreadable: tuple[str, ...] = Field((), description="What is wrong with rows that cannot be read and are left out.")

    @classmethod
    def of(cls, page: Page[T]) -> Self:
        """A page of a store."""
        return cls(items=tuple(page.items), next=page.next, unreadable=page.unreadable)


class RetrainingHistory(Outcomes):
    """One page of requests with what they took, the newest first, and what became of all of them."""

    items: tuple[RequestTook, ...]
    next: str | None = Field(description="Give it as `cursor` to get the next page; null: this is the last.")
    unreadable: tuple[str, ...] = Field((), description="What is wrong with rows that cannot be read and are left out.")


class Episode(AlertEpisode):
    """An alert episode, and its state as people read it: whether it goes on, and whether it is silenced."""

    shown_as: ShownState


class Comparison(Noun):
    """Two versions of a model, side by side."""

    before: ComparedVersion
    after: ComparedVersion


class Revocation(Noun):
    """A revoked approval, and what serves on nonetheless."""

    approval: Approval
    notes: tuple[str, ...]


class StatusNow(Status):
    """The state of everything; of each list the first so many."""

    counts: dict[str, int] = Field(description="How many of each list there are; of more than 200 the first are shown.")

    @classmethod
    def of(cls, status: Status) -> Self:
        """At most a page of each list."""
        lists = {name: getattr(status, name) for name in Status.model_fields}
        counts = {name: len(found) for name, found in lists.items()}
        return cls(**{name: found[:MOST_PER_PAGE] for name, found in lists.items()}, counts=counts)


class KeyAnswer(Noun):
    """An API key of the gateway, without anything of its secret."""

    id: str
    owner: str
    models: tuple[str, ...]
    may_pin: bool
    scopes: tuple[str, ...]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    limits: KeyLimits
    old_until: AwareDatetime | None = Field(description="Until when the secret before the last rotation opens.")

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """What may be shown of a key."""
        return cls(**key.model_dump(exclude={"digest", "old_digest", "owner_limits"}))


class NewKey(Noun):
    """A key just made; the secret is shown here, once, and not kept."""

    secret: str
    key: KeyAnswer


class NewToken(Noun):
    """A token just made; the secret is shown here, once, and not kept."""

    secret: str
    token: Token


class Verified(Noun):
    """What a look at the whole audit log found."""

    entries: int
    newest: int = Field(description="The newest entry's id; 0 in an empty log.")
    hash: str = Field(description="Of the newest entry: note it where nobody who writes the database can write.")
    noted: int | None = Field(description="The entry whose hash had been noted.")
    faults: tuple[str, ...] = Field(description="None: every entry is as it was written, and none is missing.")


class WhoAmI(Noun):
    """Whose token this is, and what it may do."""

    token: Token
    permissions: tuple[Permission, ...]


class Ready(Noun):
    """Whether requests can be answered."""

    ready: bool
