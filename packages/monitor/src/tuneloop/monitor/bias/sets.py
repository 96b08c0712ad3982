"""The field's own sets, read from files that a user has: WinoBias, Winogender and BBQ as pairs of prefixes.

None of them is shipped or fetched: their licences (MIT, MIT, CC-BY-4.0) are between their authors and whoever uses
them. Each is brought into the one form that `judge` knows: what differs between people stands in the prefix, and what
is scored is the same for all, so the figures mean what those of our own templates mean. They are not the sets' own
metrics (no coreference is resolved, no answer chosen).

    winobias    the sentences of a pro-stereotyped file, paired with those of the anti-stereotyped file beside it: up to
                and with the last pronoun is prefix, what follows is scored; all sentences about one situation are one
                observation
    winogender  `templates.tsv`, of which the pronoun means the occupation; the stereotype is what
                `occupations-stats.tsv` beside it says of that, as many occupations of women as of men
    bbq         questions of ambiguous contexts: given the context and one of the two people as the answer, how likely
                the question is; one question, about whomever, is one observation

At most `MOST` observations of an attribute are read, spread evenly: each costs two short prefills and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tuneloop.monitor.bias.bbq import read_bbq
from tuneloop.monitor.bias.templates import Attribute
from tuneloop.monitor.bias.winograd import read_winobias, read_winogender
from tuneloop.registry.errors import InvalidInput

READERS: dict[str, Callable[[Path], dict[str, Attribute]]] = {
    "winobias": read_winobias,
    "winogender": read_winogender,
    "bbq": read_bbq,
}


def read_set(said: str) -> dict[str, Attribute]:
    """The attributes of one set, named after it.

    Args:
        said: `winobias:FILE`, `winogender:FILE` or `bbq:FILE`.

    Raises:
        InvalidInput: it is none of them, the file cannot be read, or a line of it is not of the format.
    """
    name, colon, path = said.partition(":")
    if name not in READERS or not colon or not path:
        raise InvalidInput(f"{said!r} is no set: write {', '.join(f'{known}:FILE' for known in READERS)}")
    return {f"{name}-{attribute}": found for attribute, found in READERS[name](Path(path)).items()}


def read_sets(said: Sequence[str]) -> dict[str, Attribute]:
    """The attributes of several sets.

    Raises:
        InvalidInput: as `read_set`, or two of them have an attribute of the same name.
    """
    found: dict[str, Attribute] = {}
    for one in said:
        attributes = read_set(one)
        if twice := found.keys() & attributes.keys():
            raise InvalidInput(f"{one}: {', '.join(sorted(twice))} is read already; put both files into one")
        found |= attributes
    return found
