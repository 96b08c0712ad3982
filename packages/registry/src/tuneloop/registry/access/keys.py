"""API keys: the secret is shown once; only its SHA-256 digest is kept (256 random bits need no slow hash)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256

import sqlalchemy as sa
from pydantic import ValidationError

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, faults, noun_of, readable, row_of
from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.expiry import expires_at
from tuneloop.registry.nouns import ApiKey
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import api_keys


def key_digest(secret: str) -> str:
    """What a gateway compares: the hex SHA-256 of the whole key."""
    return sha256(secret.encode()).hexdigest()


class Keys:
    """Making, listing and revoking API keys."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def new(
        self,
        owner: str,
        *,
        by: str,
        models: Sequence[str] = (),
        may_pin: bool = False,
        ttl_s: float | None = None,
        reason: str | None = None,
    ) -> tuple[str, ApiKey]:
        """Make a key for `owner`; returns the secret, which is not kept, and its record. `by` is who makes it, and
        `reason` why, where one is given.

        Raises:
            InvalidInput: it has no owner, would expire before it could be used or after all of us, or is for a model
                whose name is none.
        """
        if not owner.strip():
            raise InvalidInput("a key needs an owner: whose it is is what `tuneloop key list` shows")
        now = self._clock()
        until = expires_at(now, ttl_s, "a key")
        secret = f"tl-{secrets.token_urlsafe(32)}"
        try:
            key = ApiKey(
                id=f"key_{secrets.token_hex(6)}",
                digest=key_digest(secret),
                owner=owner,
                models=tuple(models),
                may_pin=may_pin,
                created_at=now,
                expires_at=until,
            )
        except ValidationError as error:
            raise InvalidInput(f"no such key can be made: {faults(error)}") from None
        with self._db.writing() as connection:
            connection.execute(sa.insert(api_keys).values(**row_of(key, api_keys)))
            audit.record(
                connection,
                at=now,
                actor=by,
                action="key.new",
                subject=key.id,
                detail={"owner": owner, "models": list(models), "may_pin": may_pin} | _why(reason),
            )
        return secret, key

    def all(self) -> Rows[ApiKey]:
        """Every key, the newest first."""
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at.desc())).mappings().all()
        return readable(ApiKey, rows)

    def page(self, ask: Ask) -> Page[ApiKey]:
        """Every key, the newest first, page by page."""
        return page(self._db, ApiKey, sa.select(api_keys), (api_keys.c.created_at, api_keys.c.id), ask)

    def revoke(self, key_id: str, *, by: str, reason: str | None = None) -> ApiKey:
        """Make a key unusable; gateways follow within 2 s.

        Raises:
            NotFound: there is no such key.
        """
        now = self._clock()
        with self._db.writing() as connection:
            here = api_keys.c.id == key_id
            if connection.execute(sa.update(api_keys).where(here).values(revoked_at=now)).rowcount == 0:
                raise NotFound(f"no API key {key_id!r}; `tuneloop key list` shows them")
            audit.record(connection, at=now, actor=by, action="key.revoke", subject=key_id, detail=_why(reason))
            return noun_of(ApiKey, connection.execute(sa.select(api_keys).where(here)).mappings().one())


def _why(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"reason": reason}
