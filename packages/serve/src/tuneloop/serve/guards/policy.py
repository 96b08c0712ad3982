"""What the guards look at, and what is done about what they find; read from YAML with every error at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Noun, as_tuple
from tuneloop.registry.plain_yaml import PlainYaml

GuardAction = Literal["block", "redact", "flag", "off"]
Entity = Literal["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "CRYPTO"]
_Judged = Literal["block", "flag", "off"]


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


class GuardPolicy(Noun):
    """Per guard an action; the thresholds are scores of the shipped classifier (see docs/guards.md)."""

    model_config = ConfigDict(strict=True)

    max_characters: int = Field(default=100_000, ge=1, le=10_000_000)  # after these nothing is looked at
    length: Annotated[_Judged, BeforeValidator(_off)] = "block"
    injection: Annotated[_Judged, BeforeValidator(_off)] = "block"
    block_from: float = Field(default=0.5, gt=0, le=1)  # score from which `injection` acts
    flag_from: float | None = Field(default=None, gt=0, le=1)  # a lower score from which it is flagged
    decode: bool = True  # look again at what base64, hex, percent, rot13 and the like hide
    hidden: Annotated[_Judged, BeforeValidator(_off)] = "flag"  # text in characters that no reader sees
    secrets: Annotated[GuardAction, BeforeValidator(_off)] = "redact"
    personal: Annotated[GuardAction, BeforeValidator(_off)] = "redact"
    entities: Annotated[tuple[Entity, ...], BeforeValidator(as_tuple)] = Field(
        default=("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "CRYPTO"),
        min_length=1,
    )

    @field_validator("flag_from")
    @classmethod
    def _below_block(cls, value: float | None, info: Any) -> float | None:
        block_from = info.data.get("block_from")
        if value is not None and block_from is not None and value >= block_from:
            raise ValueError(f"flag_from lies below block_from ({block_from:g}), or is left out")
        return value


def read_policy(path: Path) -> GuardPolicy:
    """The policy of a YAML file.

    Raises:
        InvalidInput: it cannot be read, or is no such policy; every error at once, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as a policy: {error}") from None
    document = PlainYaml(str(path), text, "a policy: a mapping of keys (injection, secrets, …) to values")
    policy: GuardPolicy | None = None
    try:
        policy = GuardPolicy.model_validate(document.values)
    except ValidationError as error:
        for one in error.errors():
            document.add(one, GuardPolicy)
    if policy is None or document.errors:
        raise InvalidInput("\n".join(document.errors))
    return policy
