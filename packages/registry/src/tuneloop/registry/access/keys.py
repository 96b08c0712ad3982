"""API keys: the secret is shown once; only its SHA-256 digest is kept (256 random bits need no slow hash)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.access.owners import owner_name
from tuneloop.registry.database import Database, Rows, faults, noun_of, readable, row_of
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.expiry import expires_at
from tuneloop.registry.nouns import ApiKey, kept
from tuneloop.registry.nouns.access import Scope
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import api_keys, owner_limits

NO_LIMITS = KeyLimits()
MOST_GRACE_S = 90 * 86_400.0


def key_digest(secret: str) -> str:
    """What a gateway compares: the hex SHA-256 of the whole key."""
    return sha256(secret.encode()).hexdigest()


class Keys:
    """Making, limiting, rotating, listing and revoking API keys."""

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
        scopes: Sequence[Scope] = (),
        ttl_s: float | None = None,
        limits: KeyLimits = NO_LIMITS,
        reason: str | None = None,
    ) -> tuple[str, ApiKey]:
        """Make a key for `owner`; returns the secret, which is not kept, and its record. `by` is who makes it, and
        `reason` why, where one is given.

        Raises:
            InvalidInput: its owner's name is none, it would expire before it could be used or after all of us, or it is
                for a model whose name is none, or for a scope that there is not.
        """
        owner = owner_name(owner)
        now = self._clock()
        until = expires_at(now, ttl_s, "a key")
        secret = _new_secret()
        try:
            key = ApiKey(
                id=f"key_{secrets.token_hex(6)}",
                digest=key_digest(secret),
                owner=owner,
                models=tuple(models),
                may_pin=may_pin,
                scopes=tuple(dict.fromkeys(scopes)),
                created_at=now,
                expires_at=until,
                limits=limits,
            )
        except ValidationError as error:
            raise InvalidInput(f"no such key can be made: {faults(error)}") from None
        only = {"scopes": list(key.scopes)} if key.scopes else {}
        with self._db.writing() as connection:
            connection.execute(sa.insert(api_keys).values(**row_of(key, api_keys)))
            audit.record(
                connection,
                at=now,
                actor=by,
                action="key.new",
                subject=key.id,
                detail={"owner": owner, "models": list(models), "may_pin": may_pin}
                | only
                | _set(limits)
                | _why(reason),
            )
        return secret, key

    def all(self) -> Rows[ApiKey]:
        """Every key with its owner's limits, the newest first."""
        joined = api_keys.outerjoin(owner_limits, owner_limits.c.name == api_keys.c.owner)
        query = sa.select(api_keys, owner_limits.c.limits.label("owner_limits")).select_from(joined)
        with self._db.reading() as connection:
            rows = connection.execute(query.order_by(api_keys.c.created_at.desc())).mappings().all()
        return readable(ApiKey, rows)

    def page(self, ask: Ask) -> Page[ApiKey]:
        """Every key, the newest first, page by page."""
        return page(self._db, ApiKey, sa.select(api_keys), (api_keys.c.created_at, api_keys.c.id), ask)

    def limit(
        self, key_id: str, change: Callable[[KeyLimits], KeyLimits], *, by: str, reason: str | None = None
    ) -> ApiKey:
        """Give a key the limits that `change` makes of those it has; gateways follow within 2 s.

        Raises:
            NotFound: there is no such key.
        """
        with self._changing(key_id) as (connection, key):
            limits = change(key.limits)
            self._update(connection, key_id, limits=kept(limits))
            detail = {"limits": _given(limits), "before": _given(key.limits)} | _why(reason)
            audit.record(connection, at=self._clock(), actor=by, action="key.limit", subject=key_id, detail=detail)
            return key.model_copy(update={"limits": limits})

    def rotate(self, key_id: str, *, by: str, grace_s: float = 0.0, reason: str | None = None) -> tuple[str, ApiKey]:
        """Give a key a new secret; the one before opens for `grace_s` more, one from before that no longer.

        Raises:
            NotFound: there is no such key.
            InvalidInput: the time of grace is no time, or longer than `MOST_GRACE_S`.
            Refused: the key is revoked or has expired.
        """
        if not 0.0 <= grace_s <= MOST_GRACE_S:
            raise InvalidInput(f"a time of grace is between 0 and {MOST_GRACE_S / 86_400:g} days")
        now, secret = self._clock(), _new_secret()
        with self._changing(key_id) as (connection, key):
            if not key.usable(now):
                raise Refused(f"{key_id} is revoked or has expired; make a new key: `tuneloop key new`")
            until = now + timedelta(seconds=grace_s) if grace_s else None
            values = {
                "digest": key_digest(secret),
                "old_digest": key.digest if until else None,
                "old_until": until,
            }
            self._update(connection, key_id, **values)
            detail = {"grace_s": grace_s} | _why(reason)
            audit.record(connection, at=now, actor=by, action="key.rotate", subject=key_id, detail=detail)
            return secret, key.model_copy(update=values)

    def revoke(self, key_id: str, *, by: str, reason: str | None = None) -> ApiKey:
        """Make a key unusable; gateways follow within 2 s. One revoked before stays as it was.

        Raises:
            NotFound: there is no such key.
        """
        now = self._clock()
        with self._changing(key_id) as (connection, key):
            if key.revoked_at is not None:
                return key
            self._update(connection, key_id, revoked_at=now)
            audit.record(connection, at=now, actor=by, action="key.revoke", subject=key_id, detail=_why(reason))
            return key.model_copy(update={"revoked_at": now})

    @contextmanager
    def _changing(self, key_id: str) -> Iterator[tuple[Connection, ApiKey]]:
        """A writing transaction on one key, which nobody else changes meanwhile."""
        with self._db.writing() as connection:
            query = sa.select(api_keys).where(api_keys.c.id == key_id).with_for_update()
            row = connection.execute(query).mappings().first()
            if row is None:
                raise NotFound(f"no API key {key_id!r}; `tuneloop key list` shows them")
            yield connection, noun_of(ApiKey, row)

    @staticmethod
    def _update(connection: Connection, key_id: str, **values: Any) -> None:
        connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(**values))


def _new_secret() -> str:
    return f"tl-{secrets.token_urlsafe(32)}"


def _given(limits: KeyLimits) -> dict[str, Any]:
    return limits.model_dump(mode="json", exclude_defaults=True)


def _set(limits: KeyLimits) -> dict[str, Any]:
    given = _given(limits)
    return {"limits": given} if given else {}


def _why(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"reason": reason}
