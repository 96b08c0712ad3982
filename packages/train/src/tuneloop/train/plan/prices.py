"""Devices and offers: a YAML table that users may replace, read as strictly as a recipe. Money is Decimal."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.files import cannot_read
from tuneloop.registry.plain_yaml import PlainYaml
from tuneloop.train.recipe.part import Part

TABLE = Path(__file__).with_name("prices.yaml")


def _decimal(value: Any) -> Any:
    return Decimal(str(value)) if type(value) in {int, float} else value


Money = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0)]


class Device(Part):
    """What one device has and can do at most; dense operations, no sparsity."""

    memory_gib: float = Field(gt=0)
    tflops_bf16: float = Field(gt=0)
    tflops_fp32: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    watts: float = Field(gt=0)


class Offer(Part):
    """What an instance with such devices costs an hour."""

    provider: str
    device: str
    devices: int = Field(ge=1)
    instance: str
    usd: Money
    spot_usd: Money | None = None
    as_of: date = Field(strict=False)  # written "2026-01-31", in quotes

    def hourly_usd(self, *, spot: bool) -> Decimal | None:
        """For the whole instance; None where it is not sold so."""
        return self.spot_usd if spot else self.usd


class PriceTable(Part):
    """All of it."""

    devices: dict[str, Device]
    offers: tuple[Offer, ...]

    def device(self, name: str) -> tuple[str, Device]:
        """A device by its name in any case.

        Raises:
            NotFound: the table does not list it.
        """
        for known, device in self.devices.items():
            if known.lower() == name.lower():
                return known, device
        raise NotFound(
            f"the table lists no device {name!r}; it has {', '.join(self.devices)}, and `this` is this machine; "
            "--prices FILE names a table of your own"
        )


def load_prices(path: Path = TABLE) -> PriceTable:
    """Read a table.

    Raises:
        InvalidInput: it cannot be read, or is wrong somewhere; every error with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, "give --prices a table of devices and prices") from None
    document = PlainYaml(str(path), text)
    values = dict(document.values)
    if isinstance(values.get("offers"), list):
        values["offers"] = tuple(values["offers"])
    try:
        found = PriceTable.model_validate(values)
    except ValidationError as error:
        for one in error.errors():
            document.add(one, PriceTable)
        raise InvalidInput("\n".join(document.errors)) from None
    for number, offer in enumerate(found.offers):
        if offer.device not in found.devices:
            document.complain(("offers", number, "device"), f"no device {offer.device!r} stands under devices")
    if document.errors:
        raise InvalidInput("\n".join(document.errors))
    return found
