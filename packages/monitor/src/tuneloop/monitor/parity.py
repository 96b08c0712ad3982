"""Whether what is worse about answers falls on one group of people. Pure.

A question speaks of a group where its words do (English, and few: a sister, an old man). What it says of the one who
asks is unknown, and race is left out: nobody says it in a question, and a name is no evidence. This names a cause where
an alarm has been raised; `parity_gaps` raises one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {
        "women": (
            "she", "her", "hers", "woman", "women", "girl", "girls", "lady", "mother", "mom", "mum", "sister",
            "daughter", "wife", "aunt", "niece", "grandmother", "girlfriend", "mrs", "ms", "female",
        ),
        "men": (
            "he", "him", "his", "man", "men", "boy", "boys", "gentleman", "father", "dad", "brother", "son", "husband",
            "uncle", "nephew", "grandfather", "boyfriend", "mr", "male",
        ),
    },
    "age": {
        "old people": ("elderly", "pensioner", "pensioners", "retired", "grandmother", "grandfather", "grandparents"),
        "young people": ("teenager", "teenagers", "child", "children", "kid", "kids", "toddler"),
    },
}  # fmt: skip
ONE_GROUP_ALPHA = 0.001
_WORD = re.compile(r"[^\W\d_]+")
_READ_CHARS = 4_000


def groups_of(text: str) -> dict[str, str]:
    """Attribute → the one group of it that a text speaks of; a text that speaks of two of them speaks of neither."""
    words = set(_WORD.findall(text[:_READ_CHARS].lower()))
    found = {
        attribute: [group for group, said in groups.items() if words.intersection(said)]
        for attribute, groups in GROUPS.items()
    }
    return {attribute: groups[0] for attribute, groups in found.items() if len(groups) == 1}


def by_group(texts: Sequence[str], hits: Sequence[bool]) -> dict[str, list[int]]:
    """Group → how many of its texts were hit, and how many there were; `all` is everybody."""
    found = {"all": [sum(hits), len(hits)]}
    for text, hit in zip(texts, hits, strict=True):
        for group in groups_of(text).values():
            of_group = found.setdefault(group, [0, 0])
            of_group[0] += hit
            of_group[1] += 1
    return found


def unequal_group(counts: Mapping[str, Sequence[int]]) -> str | None:
    """The group that is hit more than everybody else, with the figures; `counts` as `by_group` gives them.

    Fisher's exact test, one-sided, of each group against the rest, at `ONE_GROUP_ALPHA` over all of them.
    """
    from scipy.stats import hypergeom  # noqa: PLC0415 (slow to import)

    if not counts:
        return None
    groups = {name: (hit, n) for name, (hit, n) in counts.items() if name != "all"}
    if not groups:
        return None
    hits, total = counts["all"]
    p_values = {name: float(hypergeom.sf(hit - 1, total, hits, n)) for name, (hit, n) in groups.items()}
    name = min(p_values, key=lambda one: (p_values[one], one))
    if p_values[name] * len(groups) >= ONE_GROUP_ALPHA:
        return None
    hit, n = groups[name]
    return f"{hit} of {n} that speak of {name}, {hits - hit} of {total - n} others"
