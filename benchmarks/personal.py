"""How much personal data is found, and how much else is taken for it: precision and recall on texts that are made here.

    .venv/bin/python benchmarks/personal.py [--json FILE]

Values come from Faker (four countries), as people write them, sentences from the templates below; what detects is
Presidio with our thresholds, as guards and records use it, behind the same look at whether Presidio need be asked. So
nothing that detects has made what is to be found. Between them stand numbers that are nobody's: orders, versions,
dates, prices, ISBNs, digests, coordinates. A find counts where it overlaps what was put there and names its kind; what
was put there counts as found where every one of its letters and digits would be masked. Intervals are Wilson's, 95 %.
About 20 s. Exits 1 where precision is under 0.87 or recall under 0.85.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import sqrt
from pathlib import Path

from faker import Faker

from tuneloop.registry.redaction import Personal, find
from tuneloop.serve.guards.judge import may_be_personal

SEED, TEXTS, SHARE_WITHOUT = 2_026, 4_000, 0.5
PRECISION, RECALL = 0.87, 0.85  # promised
UNTIL = datetime(2026, 1, 1)  # noqa: DTZ001 (Faker takes times without a zone)
LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR")
AMERICAN = Faker("en_US")  # whoever writes, a social security number is of this country
Make = Callable[[Faker], str]
PERSONAL: dict[str, tuple[Make, ...]] = {
    "EMAIL_ADDRESS": (lambda f: f.email(), lambda f: f.company_email(), lambda f: f.ascii_free_email()),
    "PHONE_NUMBER": (lambda f: f.phone_number(),),
    "CREDIT_CARD": (lambda f: f.credit_card_number(), lambda f: _in_fours(f.credit_card_number("visa16"))),
    "IBAN_CODE": (lambda f: f.iban(), lambda f: _in_fours(f.iban())),
    "US_SSN": (lambda _: str(AMERICAN.ssn()),),
    "IP_ADDRESS": (lambda f: f.ipv4_public(), lambda f: f.ipv6()),
}
NOBODYS: tuple[Make, ...] = (
    lambda f: f"order {f.random_number(8, fix_len=True)}",
    lambda f: f"version {f.random_int(0, 20)}.{f.random_int(0, 40)}.{f.random_int(0, 9)}",
    lambda f: f.date(end_datetime=UNTIL),
    lambda f: f.date_time(end_datetime=UNTIL).isoformat(),
    lambda f: f"{f.random_int(1, 9_999)}.{f.random_int(10, 99)} EUR",
    lambda f: f"ISBN {f.isbn13()}",
    lambda f: f"EAN {f.ean13()}",
    lambda f: f.sha1(),
    lambda f: f.uuid4(),
    lambda f: f"{f.latitude()}, {f.longitude()}",
    lambda f: f"line {f.random_int(1, 9_999)} of {f.file_name()}",
    lambda f: f"{f.random_int(1, 255)} of {f.random_int(256, 99_999)} rows",
    lambda f: f.hex_color(),
    lambda f: f.postcode(),
)  # what is like personal data and is none
SENTENCES = (
    "Hello, my reference is {}, can you look it up?",
    "Please write {} into the form.",
    "{} is what I was given.",
    "I typed {} and nothing happened",
    "Why does it say {} here?",
    "contact: {}",
    "My colleague sent me {}, what do I do with it?",
    "The log shows {} again and again.",
    "Summarise: we met on Monday and agreed on {}.",
    '{{"value": "{}", "ok": true}}',
)


def _in_fours(text: str) -> str:
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


@dataclass(frozen=True)
class Planted:
    """A text, and what of whom stands in it."""

    text: str
    entity: str | None
    start: int = 0
    end: int = 0


def planted(texts: int, seed: int) -> list[Planted]:
    """Texts with one value each, personal or nobody's."""
    draw = random.Random(seed)
    fakers = [Faker(locale) for locale in LOCALES]
    for number, faker in enumerate([*fakers, AMERICAN]):
        faker.seed_instance(seed + number)
    made = []
    for _ in range(texts):
        faker, sentence, entity = draw.choice(fakers), draw.choice(SENTENCES), None
        if draw.random() < SHARE_WITHOUT:
            value = draw.choice(NOBODYS)(faker)
        else:
            entity = draw.choice(sorted(PERSONAL))
            value = draw.choice(PERSONAL[entity])(faker)
        start = sentence.replace("{{", "{").index("{}")
        made.append(Planted(sentence.format(value), entity, start, start + len(value)))
    return made


def looked_for(text: str) -> list[Personal]:
    """As a guard looks."""
    return find(text) if may_be_personal(text) else []


@dataclass(frozen=True)
class Share:
    """`of` some `total`."""

    of: int
    total: int

    def line(self) -> dict[str, float | int]:
        """The share and its interval."""
        z, n = 1.96, max(self.total, 1)
        p = self.of / n
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
        return {"of": self.of, "total": self.total, "share": round(p, 4), "low": round(low, 4), "high": round(high, 4)}


def measure(texts: Sequence[Planted]) -> dict[str, dict[str, dict[str, float | int]]]:
    """Precision of finds and recall of what was put there, by entity and of all."""
    right, finds, found, there = (Counter[str]() for _ in range(4))
    for one in texts:
        here = looked_for(one.text)
        for each in here:
            finds[each.entity] += 1
            right[each.entity] += each.entity == one.entity and each.start < one.end and one.start < each.end
        if one.entity is not None:
            there[one.entity] += 1
            masked = {at for each in here for at in range(each.start, each.end)}
            found[one.entity] += all(at in masked or not one.text[at].isalnum() for at in range(one.start, one.end))
    every = sorted(there | finds)
    precision = {name: Share(right[name], finds[name]).line() for name in every}
    recall = {name: Share(found[name], there[name]).line() for name in every}
    precision["all"] = Share(right.total(), finds.total()).line()
    recall["all"] = Share(found.total(), there.total()).line()
    return {"precision": precision, "recall": recall}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep the figures")
    options = parser.parse_args()
    result = measure(planted(TEXTS, SEED))
    print(f"{'':15} {'finds':>6} {'precision':>24} {'there':>6} {'recall':>24}")
    for name in result["recall"]:
        cells = []
        for kind in ("precision", "recall"):
            line = result[kind][name]
            cells.append(f"{line['total']:6} {line['share']:8.3f} ({line['low']:.3f} to {line['high']:.3f})")
        print(f"{name:15} {' '.join(cells)}")
    if options.json:
        options.json.write_text(json.dumps({"texts": TEXTS, **result}, indent=1) + "\n", encoding="utf-8")
    if result["precision"]["all"]["share"] < PRECISION or result["recall"]["all"]["share"] < RECALL:
        sys.exit(f"promised are a precision of {PRECISION} and a recall of {RECALL}")


if __name__ == "__main__":
    main()
