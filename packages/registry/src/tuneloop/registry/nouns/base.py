"""What every noun is made of: its base, names of models and versions, and intervals."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints

from tuneloop.registry.errors import InvalidInput

FULL_SHARE_BP = 10_000
Verdict = Literal["pass", "fail", "inconclusive"]  # of a check, and of a report of checks
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_VERSION_NAME = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})@([1-9][0-9]{0,8})")


def utc_now() -> datetime:
    """The wall clock; pass another callable wherever a `clock` is asked for."""
    return datetime.now(UTC)


def version_name(model: str, version: int) -> str:
    """`support-bot`, 7 → `support-bot@7`: the name engines load it under, for ever."""
    return f"{model}@{version}"


def parse_version_name(text: str) -> tuple[str, int]:
    """`support-bot@7` → (`support-bot`, 7).

    Raises:
        InvalidInput: the text is not of that form.
    """
    match = _VERSION_NAME.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is not a version; write MODEL@NUMBER, for example support-bot@7")
    return match[1], int(match[2])


FRESH = "fresh"  # the evaluation set that a retraining makes from users' corrections


def as_tuple(value: Any) -> Any:
    """A list as a tuple, which is what strict nouns hold: YAML and JSON know lists only."""
    return tuple(value) if isinstance(value, list) else value


class Noun(BaseModel):
    """Base of every noun: frozen, strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """One made of all its fields, by code of ours that has them right: nothing is checked or filled in.

        For records of requests, which a gateway makes in thousands a second: checking takes ten times as long, and what
        is read from a database is checked anyway. `model_construct` looks at every field for what may be missing, which
        takes longer than checking.
        """
        made, put = cls.__new__(cls), object.__setattr__
        put(made, "__dict__", fields)
        put(made, "__pydantic_fields_set__", set(fields))
        put(made, "__pydantic_extra__", None)
        put(made, "__pydantic_private__", None)
        return made


def kept(noun: BaseModel) -> dict[str, Any]:
    """A noun as the plain JSON that is kept of it: without the keys of which nothing is said (None, as by default).

    While processes are upgraded one after the other, those that know less keys read it too.
    """
    found: dict[str, Any] = said_of(noun, noun.model_dump(mode="json"))
    return found


def said_of(value: Any, plain: Any) -> Any:
    """`plain`, the JSON of a value, without the keys of nouns in it of which nothing is said."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: said_of(getattr(value, name), below)
            for name, below in plain.items()
            if not (below is None and fields[name].default is None)
        }
    if isinstance(value, list | tuple):
        return [said_of(one, below) for one, below in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {name: said_of(one, below) for one, (name, below) in zip(value.values(), plain.items(), strict=True)}
    return plain


class Interval(Noun):
    """An estimate with its interval at `level` (0.95 unless said otherwise)."""

    estimate: float
    low: float
    high: float
    level: float = 0.95
