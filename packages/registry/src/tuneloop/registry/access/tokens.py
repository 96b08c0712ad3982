"""Tokens of the control plane: a person's or a program's, with a role; kept only as SHA-256 digests, like API keys.

A token's name is its own for ever, revoked or not: the audit log knows who did something by it, as `token:NAME`.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from pydantic import AwareDatetime, Field

from tuneloop.registry import audit
from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.access.roles import ACTOR_PREFIX, Role
from tuneloop.registry.database import Database, noun_of, row_of
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound
from tuneloop.registry.expiry import expires_at
from tuneloop.registry.nouns import Noun
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import tokens

NAME_PATTERN = r"^[a-z0-9][a-z0-9._@-]{0,62}$"
_SECRET = re.compile(r"tlt-[A-Za-z0-9_-]{43}")


class Token(Noun):
    """Who may use the control plane, and for what; never the secret."""

    name: str = Field(pattern=NAME_PATTERN)
    role: Role
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    @property
    def actor(self) -> str:
        """How the audit log names it."""
        return f"{ACTOR_PREFIX}{self.name}"

    def usable(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Tokens:
    """Making, finding, listing and revoking tokens."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def new(self, name: str, role: Role, *, by: str, reason: str, ttl_s: float | None = None) -> tuple[str, Token]:
        """Make a token; returns the secret, which is not kept, and its record. `by` is who makes it.

        Raises:
            InvalidInput: the name is none, or it would expire before it could be used or after all of us.
            Conflict: a token had that name already.
        """
        if not re.fullmatch(NAME_PATTERN[1:-1], name):
            raise InvalidInput(
                f"{name!r} is no name for a token: up to 63 of a-z, 0-9 and ._@-, a letter or digit first, for example "
                "ada or deploy-bot"
            )
        now = self._clock()
        until = expires_at(now, ttl_s, "a token")
        secret = f"tlt-{secrets.token_urlsafe(32)}"
        token = Token(name=name, role=role, created_at=now, expires_at=until)
        detail = {"role": role, "reason": reason} | ({"expires_at": until.isoformat()} if until else {})
        try:
            with self._db.writing() as connection:
                connection.execute(sa.insert(tokens).values(**row_of(token, tokens), digest=key_digest(secret)))
                audit.record(connection, at=now, actor=by, action="token.new", subject=token.actor, detail=detail)
        except sa.exc.IntegrityError:
            raise Conflict(
                f"there is a token {name!r} already, or was: a name is one token's for ever, since the audit log names "
                f"it by that; choose another, for example {name}-2"
            ) from None
        return secret, token

    def holder(self, secret: str) -> Token | None:
        """The usable token of a secret; None for every other, whatever is wrong with it, and as quickly.

        Raises:
            Unreadable: its row is damaged.
        """
        if not _SECRET.fullmatch(secret):
            return None
        digest = key_digest(secret)
        query = sa.select(tokens).where(tokens.c.digest == digest)
        with self._db.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None or not hmac.compare_digest(str(row["digest"]), digest):
            return None
        token = noun_of(Token, row)
        return token if token.usable(self._clock()) else None

    def page(self, ask: Ask) -> Page[Token]:
        """Tokens by name, revoked and expired ones too."""
        return page(self._db, Token, sa.select(tokens), (tokens.c.name,), ask, newest_first=False)

    def revoke(self, name: str, *, by: str, reason: str) -> Token:
        """Make a token unusable at once; one revoked before stays as it was.

        Raises:
            NotFound: there is no such token.
        """
        now = self._clock()
        here = tokens.c.name == name
        with self._db.writing() as connection:
            row = connection.execute(sa.select(tokens).where(here).with_for_update()).mappings().first()
            if row is None:
                raise NotFound(f"no token {name!r}; `tuneloop token list` shows them")
            token = noun_of(Token, row)
            if token.revoked_at is not None:
                return token
            connection.execute(sa.update(tokens).where(here).values(revoked_at=now))
            detail = {"reason": reason}
            audit.record(connection, at=now, actor=by, action="token.revoke", subject=token.actor, detail=detail)
        return token.model_copy(update={"revoked_at": now})
