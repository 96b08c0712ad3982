"""What a gateway knows: routes, live engines, usable keys and guard policies, read together, immutable, looked up
without waiting.

It is swapped whole, so one request never sees two revisions; it is written to disk whenever it changes
(last-known-good), so a gateway can start while the database is away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec
from pydantic import ValidationError

from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import OWNER_ONLY, write_atomically
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import AdapterState, ApiKey, EngineState, Noun, Route, version_name

LAST_KNOWN_GOOD = "last-known-good.json"


class Target(msgspec.Struct, frozen=True):
    """One version on one engine."""

    version: int
    name: str
    engine: str
    url: str
    slot: str = ""  # the key of `GatewayState.in_flight`
    seed: int = 0  # of the draws for beginnings of prompts (`choice`)

    def __post_init__(self) -> None:
        """Write out its slot, which every request asks for twice, and its seed."""
        slot = f"{self.engine}|{self.name}"
        msgspec.structs.force_setattr(self, "slot", slot)
        seed = int.from_bytes(hashlib.blake2b(slot.encode(), digest_size=7).digest())
        msgspec.structs.force_setattr(self, "seed", seed)


class Snapshot(Noun):
    """One consistent view of the registry."""

    taken_at: datetime
    routes: Mapping[str, Route]
    engines: tuple[EngineState, ...]
    keys: tuple[ApiKey, ...]
    guards: Mapping[str, GuardPolicy] = {}  # model → its policy; a model without one is not guarded

    @classmethod
    def of(
        cls,
        taken_at: datetime,
        routes: Mapping[str, Route],
        engines: Iterable[EngineState],
        keys: Iterable[ApiKey],
        guards: Mapping[str, GuardPolicy] | None = None,
    ) -> Self:
        """A view at `taken_at`; keys that cannot be used any more are left out."""
        usable = tuple(key for key in keys if key.usable(taken_at))
        return cls(
            taken_at=taken_at, routes=dict(routes), engines=tuple(engines), keys=usable, guards=dict(guards or {})
        )

    def build(self) -> None:
        """Make what requests look up; otherwise the first one waits for it, and all that are under way with it."""
        _ = self.key_by_digest, self.targets, self.orders

    @cached_property
    def key_by_digest(self) -> dict[str, ApiKey]:
        """Digest → key; also by the secret before a rotation."""
        old = {key.old_digest: key for key in self.keys if key.old_digest is not None}
        return old | {key.digest: key for key in self.keys}

    @cached_property
    def orders(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """Model → the version that is preferred → those that may answer: it, the champion, whoever carries traffic."""
        return {
            model: {arm.version: tuple(dict.fromkeys((arm.version, route.champion, *carrying))) for arm in route.arms}
            for model, route in self.routes.items()
            for carrying in [[arm.version for arm in route.arms if arm.weight_bp]]
        }

    @cached_property
    def targets(self) -> dict[tuple[str, int], tuple[Target, ...]]:
        """Model and version → that version on the engines that can serve it now; on those about to unload it only when
        no other can."""
        named = {
            version_name(route.model, arm.version): (route.model, arm.version)
            for route in self.routes.values()
            for arm in route.arms
        }
        able: dict[str, list[EngineState]] = {name: [] for name in named}
        for engine in self.engines:
            for name in engine.adapters.keys() & named.keys():
                if engine.serves(name):
                    able[name].append(engine)
        staying = {
            name: [engine for engine in engines if engine.adapters[name] is AdapterState.READY]
            for name, engines in able.items()
        }
        return {
            which: tuple(Target(which[1], name, engine.id, engine.url) for engine in staying[name] or able[name])
            for name, which in named.items()
        }

    @property
    def applied(self) -> dict[str, int]:
        """Model → the route revision this view applies."""
        return {model: route.revision for model, route in self.routes.items()}

    def key(self, secret: str, now: datetime) -> ApiKey | None:
        """The key of that secret, if it may still be used."""
        digest = key_digest(secret)
        key = self.key_by_digest.get(digest)
        return key if key is not None and key.opened_by(digest, now) else None

    def same_as(self, other: Snapshot) -> bool:
        """Whether anything but times has changed."""
        mine, theirs = (
            {engine.id: engine.model_copy(update={"at": self.taken_at}) for engine in view.engines}
            for view in (self, other)
        )
        return (self.routes, self.keys, self.guards, mine) == (other.routes, other.keys, other.guards, theirs)

    def save(self, folder: Path) -> None:
        """Write it as the last known good view, whole or not at all."""
        write_atomically(folder / LAST_KNOWN_GOOD, self.model_dump_json().encode(), mode=OWNER_ONLY)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The last known good view, or None when there is none.

        Raises:
            InvalidInput: the file cannot be read as one.
        """
        path = folder / LAST_KNOWN_GOOD
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read ({error.strerror}); give it to this gateway's user") from None
        except ValidationError as error:
            raise InvalidInput(
                f"{path} cannot be read ({error.error_count()} errors); delete it, the gateway writes a new one "
                "once the database answers"
            ) from None
