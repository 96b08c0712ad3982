"""What a request may say: names by pattern, numbers within bounds, text that both databases keep, nothing unknown."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from pydantic import Field, StringConstraints, model_validator

from tuneloop.registry.access.owners import MOST_LETTERS
from tuneloop.registry.access.roles import ROLES, Permission, holders
from tuneloop.registry.access.tokens import NAME_PATTERN, Token
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Noun
from tuneloop.registry.paging import MOST_PER_PAGE, Ask
from tuneloop.registry.routes.promotion import Change

MOST_NUMBER = 999_999_999
MOST_DAYS = 36_525.0
_MODEL = r"^[a-z0-9][a-z0-9._-]{0,62}$"
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
_SUBJECT = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"
SAID = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"

ModelPath = Annotated[str, Path(pattern=_MODEL, description="The model's name.", examples=["bot"])]
VersionPath = Annotated[int, Path(ge=1, le=MOST_NUMBER, description="The version's number.", examples=[2])]
RequestPath = Annotated[str, Path(pattern=ID_PATTERN, description="The request's id.", examples=["req-1"])]
RetrainingPath = Annotated[str, Path(pattern=ID_PATTERN, description="The retraining request's id.", examples=["rt_1"])]
KeyPath = Annotated[str, Path(pattern=ID_PATTERN, description="The key's id.", examples=["key_0123456789ab"])]
EpisodePath = Annotated[str, Path(pattern=ID_PATTERN, description="The episode's id.", examples=["ep1"])]
SilencePath = Annotated[str, Path(pattern=ID_PATTERN, description="The silence's id.", examples=["sl_0123456789ab"])]
TokenPath = Annotated[str, Path(pattern=NAME_PATTERN, description="The token's name.", examples=["ada"])]
ModelName = Annotated[str, Field(pattern=_MODEL, examples=["bot"])]
ModelQuery = Annotated[str | None, Query(pattern=_MODEL, description="Only of this model.")]
KeyQuery = Annotated[str | None, Query(pattern=ID_PATTERN, description="Only of this key.")]
MonthQuery = Annotated[
    str | None,
    Query(
        pattern=r"^[1-9][0-9]{3}-(0[1-9]|1[0-2])$",
        description="The month, of UTC; not said: this one.",
        examples=["2026-11"],
    ),
]
SubjectQuery = Annotated[
    str | None,
    Query(pattern=_SUBJECT, description="Only of this model, version, request, episode, experiment, key or token."),
]
ActionQuery = Annotated[
    str | None, Query(pattern=r"^[a-z_]+\.[a-z_]+$", max_length=64, description="Only this action.")
]
VersionQuery = Annotated[int, Query(ge=1, le=MOST_NUMBER, description="A version's number.")]
Reason = Annotated[
    str,
    StringConstraints(max_length=2_000, pattern=SAID),
    Field(description="Why; kept for ever.", examples=["answers the drift"]),
]
Name = Annotated[str, StringConstraints(max_length=200, pattern=SAID)]
OwnerName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MOST_LETTERS, pattern=SAID)]
VersionNumber = Annotated[int, Field(ge=1, le=MOST_NUMBER, examples=[2])]
RevisionQuery = Annotated[int, Query(ge=1, le=MOST_NUMBER, description="A revision of the route.", examples=[1])]
Revision = Annotated[int, Field(ge=0, le=MOST_NUMBER, examples=[2])]
WeightBp = Annotated[int, Field(ge=0, le=FULL_SHARE_BP, examples=[1_000], description="Basis points; 10,000 are all.")]
Days = Annotated[float, Field(gt=0, le=MOST_DAYS, allow_inf_nan=False, examples=[30])]


class Body(Noun):
    """Base of every body: strict about unknown fields, and about text that cannot be kept."""

    reason: Reason

    @model_validator(mode="before")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        for text in _texts(value):
            if any(c == "\x00" or unicodedata.category(c) == "Cs" for c in text):
                raise ValueError("it holds a NUL character or half of a surrogate pair, which no database keeps")
        return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


@dataclass(frozen=True)
class Caller:
    """Who asks, and what for."""

    registry: Registry
    token: Token

    @property
    def actor(self) -> str:
        """How the audit log names the caller."""
        return self.token.actor

    def change(self, reason: str, *, force: bool = False) -> Change:
        """A change of a route in the caller's name.

        Raises:
            Forbidden: it is forced, and the role may not.
        """
        if force:
            check_permission(self.token, Permission.FORCE)
        return Change(self.actor, reason, force)


class Forbidden(Exception):
    """The token's role lacks a permission."""


def check_permission(token: Token, permission: Permission) -> None:
    """See that a token's role holds a permission.

    Raises:
        Forbidden: it does not; the message says which do.
    """
    if permission not in ROLES[token.role]:
        those = holders(permission)
        raise Forbidden(
            f"{token.name} is {'an' if token.role[0] in 'aeiou' else 'a'} {token.role}, and this needs the permission "
            f"`{permission}`, which {' and '.join(those)} {'has' if len(those) == 1 else 'have'}"
        )


class Needs:
    """A dependency that lets only tokens with one permission on."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    def __call__(self, request: Request) -> None:
        """See that the request's token has it."""
        check_permission(request.state.token, self.permission)


def _caller(request: Request) -> Caller:
    return Caller(request.app.state.registry, request.state.token)


def _ask(
    limit: Annotated[int, Query(ge=1, le=MOST_PER_PAGE, description="At most so many.")] = 50,
    cursor: Annotated[
        str | None,
        Query(pattern=r"^[A-Za-z0-9_=-]+$", max_length=600, description="`next` of the page before, as it was."),
    ] = None,
) -> Ask:
    return Ask(limit, cursor)


def known_query(request: Request) -> None:
    """Refuse a parameter that nothing reads: a misspelt filter would otherwise answer another question.

    Raises:
        InvalidInput: names it, and what was perhaps meant.
    """
    known = request.app.state.parameters[request.scope["endpoint"].__name__]
    for name in request.query_params:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
            raise InvalidInput(f"query: there is no parameter {name!r}; {hint}")


def needs(permission: Permission) -> list[Any]:
    """The dependencies of an operation."""
    checks: tuple[Callable[..., None], ...] = (Needs(permission), known_query)
    return [Depends(check) for check in checks]


Here = Annotated[Caller, Depends(_caller)]
Asked = Annotated[Ask, Depends(_ask)]
