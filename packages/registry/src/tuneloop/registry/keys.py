"""API keys: the secret is shown once; only its SHA-256 digest is kept (256 random bits need no slow hash)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256

import sqlalchemy as sa
from pydantic import ValidationError

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, faults, readable, row_of
from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.expiry import expires_at
from tuneloop.registry.nouns import ApiKey
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
        self, owner: str, *, by: str, models: Sequence[str] = (), may_pin: bool = False, ttl_s: float | None = None
    ) -> tuple[str, ApiKey]:
        """Make a key for `owner`; returns the secret, which is not kept, and its record. `by` is who makes it.

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
                detail={"owner": owner, "models": list(models), "may_pin": may_pin},
            )
        return secret, key

    def all(self) -> Rows[ApiKey]:
        """Every key, the newest first."""
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at.desc())).mappings().all()
        return readable(ApiKey, rows)

    def revoke(self, key_id: str, *, by: str) -> None:
        """Make a key unusable; gateways follow within 2 s.

        Raises:
            NotFound: there is no such key.
        """
        now = self._clock()
        with self._db.writing() as connection:
            if (
                connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now)).rowcount
                == 0
            ):
                raise NotFound(f"no API key {key_id!r}; `tuneloop key list` shows them")
            audit.record(connection, at=now, actor=by, action="key.revoke", subject=key_id, detail={})
