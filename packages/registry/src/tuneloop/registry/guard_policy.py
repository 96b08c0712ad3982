"""A model's guard policy: what is looked for in what goes to it and comes from it, and what is done about the finds.

It is declared here, like every policy that changes while processes run; who judges texts by it is not the registry's
business. A model without a policy, or with one that is not `enabled`, is not guarded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Any, Literal, Self

import sqlalchemy as sa
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from tuneloop.registry.database import Database, faults
from tuneloop.registry.in_force import newest_of
from tuneloop.registry.nouns import Noun, as_tuple
from tuneloop.registry.tables import policies

_LETTER = re.compile(r"[^\W_]")
KIND = "guard"  # of these policies' rows
GuardAction = Literal["block", "redact", "flag", "sample", "off"]
Entity = Literal["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "CRYPTO"]
EVERY_ENTITY: tuple[Entity, ...] = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "US_SSN",
    "IP_ADDRESS",
    "CRYPTO",
)


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


Judged = Annotated[Literal["block", "flag", "sample", "off"], BeforeValidator(_off)]
Cleaned = Annotated[GuardAction, BeforeValidator(_off)]
Masked = Annotated[Literal["redact", "flag", "sample", "off"], BeforeValidator(_off)]
Entities = Annotated[tuple[Entity, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Parameter = Annotated[str, StringConstraints(min_length=1, max_length=64)]


def _phrase(value: str) -> str:
    """As guards can match it: each word has a letter or a digit, and a `*` stands behind one."""
    words = unicodedata.normalize("NFKC", value).split()
    if not words or not all(_LETTER.search(word) for word in words):
        raise ValueError("each word of a phrase has a letter or a digit")
    for word in words:
        begun = word.removesuffix("*")
        if "*" in begun or (begun != word and not _LETTER.match(begun[-1])):
            raise ValueError("a `*` stands at the end of a word alone, behind a letter or a digit")
    return value


TopicName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
Phrase = Annotated[str, StringConstraints(max_length=100), AfterValidator(_phrase)]
Phrases = Annotated[tuple[Phrase, ...], BeforeValidator(as_tuple), Field(min_length=1)]
_MOST_PHRASES = 5_000
# Without these there is no request; and whether it streams changes nothing a guard could mind.
_NO_PARAMETERS = {"model", "messages", "prompt", "input", "stream"}


SAMPLED = "sample: "  # how a record notes what people are to read


def is_sampled(request_id: str, sample_bp: int) -> bool:
    """Whether people are to read a request, of all that a guard finds: the same whoever asks, and wherever."""
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest()) % 10_000 < sample_bp


class OutputGuards(Noun):
    """What is looked for in answers; streamed or not, the same text comes out."""

    model_config = ConfigDict(strict=True)

    secrets: Masked = "redact"
    personal: Masked = "redact"
    entities: Entities = EVERY_ENTITY
    hold_characters: int = Field(default=1_024, ge=1_024, le=16_384)  # at most so many wait for what comes after them

    @property
    def looks(self) -> bool:
        """Whether anything is looked for."""
        return self.secrets != "off" or self.personal != "off"


class Topics(Noun):
    """What is to be spoken of and what not: topics by the words and phrases that give them away.

    A `*` ends a word that may go on (`diagnos*`). What is matched is folded as everything guards look at.
    """

    model_config = ConfigDict(strict=True)

    deny: dict[TopicName, Phrases] = {}
    allow: dict[TopicName, Phrases] = {}  # where there are any, a request whose user speaks of none is off topic
    least_words: int = Field(default=8, ge=1, le=1_000)  # what a user says in fewer words is never off topic
    action: Judged = "block"

    @model_validator(mode="after")
    def _is_few(self) -> Self:
        if not self.deny and not self.allow:
            raise ValueError("give deny or allow, each a name with its words; or leave topics out")
        if (count := sum(len(phrases) for phrases in (*self.deny.values(), *self.allow.values()))) > _MOST_PHRASES:
            raise ValueError(f"holds {count} phrases; {_MOST_PHRASES} at most")
        return self


class KeyGuards(Noun):
    """What is otherwise for the requests of one API key; what is left out is as for everybody."""

    model_config = ConfigDict(strict=True)

    length: Judged | None = None
    parameters: Judged | None = None
    injection: Judged | None = None
    hidden: Judged | None = None
    secrets: Cleaned | None = None
    personal: Cleaned | None = None
    topics: Topics | None = None  # these two are instead of everybody's, as a whole
    output: OutputGuards | None = None


class GuardPolicy(Noun):
    """Per guard an action; the thresholds are scores of the shipped classifier (see docs/guards.md)."""

    model_config = ConfigDict(strict=True)

    enabled: bool = True
    max_characters: int = Field(default=100_000, ge=1, le=10_000_000)  # after these nothing is looked at
    length: Judged = "block"
    banned_parameters: Annotated[tuple[Parameter, ...], BeforeValidator(as_tuple)] = ()  # top-level keys of a request
    max_choices: int | None = Field(default=None, ge=1)  # `n`
    parameters: Judged = "block"  # what is done about these two
    injection: Judged = "block"
    block_from: float = Field(default=0.5, gt=0, le=1)  # score from which `injection` acts
    flag_from: float | None = Field(default=None, gt=0, le=1)  # a lower score from which it is flagged
    decode: bool = True  # look again at what base64, hex, percent, rot13 and the like hide
    hidden: Judged = "flag"  # text in characters that no reader sees
    secrets: Cleaned = "redact"
    personal: Cleaned = "redact"
    entities: Entities = EVERY_ENTITY
    topics: Topics | None = None
    sample_bp: int = Field(default=1_000, ge=1, le=10_000)  # of what `sample` finds, how much people are to read
    trusted_roles: Annotated[tuple[Parameter, ...], BeforeValidator(as_tuple)] = ("system", "developer")  # not judged
    output: OutputGuards | None = None  # answers pass as they are
    deadline_ms: int = Field(default=1_000, ge=10, le=60_000)  # within which a request is judged
    fail: Literal["closed", "open"] = "closed"  # what becomes of one that is not
    keys: dict[str, KeyGuards] = {}  # id of an API key → what is otherwise for it

    @field_validator("flag_from")
    @classmethod
    def _below_block(cls, value: float | None, info: Any) -> float | None:
        block_from = info.data.get("block_from")
        if value is not None and block_from is not None and value >= block_from:
            raise ValueError(f"flag_from lies below block_from ({block_from:g}), or is left out")
        return value

    @field_validator("banned_parameters")
    @classmethod
    def _can_be_left_out(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if needed := sorted(_NO_PARAMETERS.intersection(value)):
            raise ValueError(f"no request can do without {', '.join(needed)}")
        return value

    @property
    def looks(self) -> bool:
        """Whether any text that comes in is looked at."""
        topics = "off" if self.topics is None else self.topics.action
        return {self.injection, self.hidden, self.secrets, self.personal, topics} != {"off"}

    @property
    def looks_at_answers(self) -> bool:
        """Whether any answer, of any key, is looked at."""
        outputs = (self.output, *(key.output for key in self.keys.values()))
        return self.enabled and any(output is not None and output.looks for output in outputs)

    def of_key(self, key_id: str | None) -> GuardPolicy:
        """As it is for the requests of one API key."""
        own = self.keys.get(key_id or "")
        if own is None:
            return self
        return self.model_copy(update={name: value for name, value in own if value is not None})


class CurrentGuards(dict[str, GuardPolicy]):
    """Model → its newest guard policy, and `unreadable`: model → what is wrong with its newest one."""

    def __init__(self, found: Mapping[str, GuardPolicy] | None = None) -> None:
        super().__init__(found or {})
        self.unreadable: dict[str, str] = {}


def current_guards(database: Database) -> CurrentGuards:
    """The guard policy in force of every model that was ever given one; unreadable ones are named aside.

    Raises:
        Unavailable: the database does not answer.
    """
    found = CurrentGuards()
    for model, body in newest_of(database, KIND):
        try:
            found[model] = GuardPolicy.model_validate(body)
        except ValidationError as error:
            found.unreadable[model] = (
                f"the guard policy of {model} cannot be read: {faults(error)}; set another: "
                f"`tuneloop guard policy {model} --set FILE --by YOU --reason WHY`"
            )
    return found


def injections_looked_for(database: Database, model: str, *, since: datetime, until: datetime) -> datetime | None:
    """From when on a model's guards looked for injections without a break up to `until`, `since` at the earliest; None
    where they did not at `until`. A policy that cannot be read counts as none.

    Raises:
        Unavailable: the database does not answer.
    """
    return _since_when(database, model, lambda policy, _: policy.injection != "off", since, until)


def looked_alike(
    database: Database, model: str, looks: Callable[[GuardPolicy], bool], *, since: datetime, until: datetime
) -> datetime | None:
    """From when on the policy in force at `until` stood as it is, `since` at the earliest: what guards count under
    another says nothing of what they count now. None where it does not look, as `looks` asks.

    Raises:
        Unavailable: the database does not answer.
    """
    return _since_when(database, model, lambda policy, last: looks(policy) and policy == last, since, until)


def _since_when(
    database: Database,
    model: str,
    holds: Callable[[GuardPolicy, GuardPolicy], bool],
    since: datetime,
    until: datetime,
) -> datetime | None:
    """From when on every policy up to `until` was one that `holds`, given it and the last of them."""
    query = sa.select(policies.c.at, policies.c.body).where(policies.c.model == model, policies.c.kind == KIND)
    with database.reading() as connection:
        rows = connection.execute(query.where(policies.c.at <= until).order_by(policies.c.id.desc())).all()
    looked = last = None
    for at, body in rows:
        try:
            policy = GuardPolicy.model_validate(body)
        except ValidationError:
            return looked
        last = last or policy
        if not policy.enabled or not holds(policy, last):
            return looked
        if at <= since:
            return since
        looked = at
    return looked
