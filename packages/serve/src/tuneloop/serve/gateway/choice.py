"""Which of the engines that can serve a version gets a request; pure.

An engine that has seen the beginning of a prompt has it in its prefix cache: the same beginning goes to the same
engine, found by rendezvous hashing, so that an engine that leaves moves its own beginnings alone (D. Thaler, C.
Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 1998). It is passed over while clearly more
waits for it than for the others (V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads",
SODA 2018). Then, and where none is preferred, the less loaded of two engines drawn at random is taken: gateways that do
not know of each other's requests would else all send them to the one that each takes for the idlest (M. Mitzenmacher,
"The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

from tuneloop.serve.gateway.snapshot import Target

BEGINNING_CHARS = 512  # of a message
_MOST_MESSAGES = 4
_INSTRUCTIONS = frozenset({"system", "developer"})
_GOLDEN, _64_BITS = 0x9E37_79B9_7F4A_7C15, (1 << 64) - 1  # 2^64 over the golden ratio: multiplicative hashing (Knuth)
BUSIER_PERCENT = 125  # of the mean load: what a preferred engine may have, and its allowance on top


def beginning(messages: Sequence[tuple[str, str]]) -> int:
    """A number that stands for what a conversation begins with: its instructions and the first that somebody says.

    It is the same for each of its turns, and differs between conversations that share their instructions.
    """
    found = 0
    for role, text in messages[:_MOST_MESSAGES]:
        found = crc32(text[:BEGINNING_CHARS].encode("utf-8", "surrogatepass"), found)
        if role not in _INSTRUCTIONS:
            break
    return found


def choose(
    able: Sequence[Target],
    load: Callable[[str], int],
    draw: Callable[[], float],
    messages: Sequence[tuple[str, str]] = (),
    allowance: int = 0,
) -> Target:
    """One of the engines, of which there is at least one.

    `load` gives what is under way on an engine, `draw` a number from 0 to below 1. `allowance` is how much more than
    `BUSIER_PERCENT` of the mean load, in the same unit, the engine that `messages` prefer may have and still be taken;
    0: none is preferred.
    """
    count = len(able)
    if count == 1:
        return able[0]
    if not (allowance and messages):
        return _drawn(able, load, draw)
    preferred = _preferred(able, beginning(messages))
    under_way = load(preferred.engine)
    if under_way <= allowance:  # as a rule
        return preferred
    loads = [load(target.engine) for target in able]
    most = allowance + BUSIER_PERCENT * sum(loads) // (100 * count)
    if under_way <= most:
        return preferred
    drawn = _drawn(able, load, draw)
    return drawn if load(drawn.engine) <= most else able[loads.index(min(loads))]


def _drawn(able: Sequence[Target], load: Callable[[str], int], draw: Callable[[], float]) -> Target:
    """The less loaded of two."""
    count = len(able)
    first, second = int(draw() * count), int(draw() * (count - 1))
    if second >= first:
        second += 1
    one, other = able[first], able[second]
    return other if load(other.engine) < load(one.engine) else one


def _preferred(able: Sequence[Target], number: int) -> Target:
    best, most = able[0], -1
    for target in able:
        # Not the hash of a tuple, which only shifts by the number: then an engine's beginnings would all move to one.
        if (drawn := (number ^ target.seed) * _GOLDEN & _64_BITS) > most:
            best, most = target, drawn
    return best
