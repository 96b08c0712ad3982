"""What a look at MLflow's aliases makes of them: whose doing they are, from what routes said. Pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.world import bot_route
from tuneloop.registry.aliases.accounting import (
    Accounted,
    Aliases,
    LateMirror,
    Move,
    Moved,
    Reported,
    Settled,
    Unfinished,
    compare,
)
from tuneloop.registry.nouns import Route

ONE, CANARY, TWO = bot_route(1, 1), bot_route(2, 1, 2), bot_route(3, 2)
SETTLED_ONE = Accounted(Aliases(1, None), 1, "", 1)


def test_what_some_revision_since_the_last_accounting_said_is_our_own_mirror() -> None:
    assert compare(Aliases(2, None), TWO, (TWO,), SETTLED_ONE) == Settled()
    assert compare(Aliases(1, None), TWO, (ONE, CANARY, TWO), SETTLED_ONE) == LateMirror()
    assert compare(Aliases(1, 2), TWO, (ONE, CANARY, TWO), SETTLED_ONE) == LateMirror()
    assert compare(Aliases(2, 2), TWO, (ONE, CANARY, TWO), SETTLED_ONE) == LateMirror(), "half done"
    assert compare(Aliases(None, None), ONE, (ONE,), None) == LateMirror(), "nobody has mirrored yet"


def test_what_was_moved_back_is_known_until_it_is_on_record() -> None:
    moved = Accounted(Aliases(1, None), 3, "revert", 5)
    assert compare(Aliases.of(TWO), TWO, (TWO,), moved) == Settled((Move("champion", 2, 1),))
    adopted = bot_route(4, 1)
    assert compare(Aliases.of(adopted), adopted, (TWO, adopted), moved) == Settled(), "a newer route says so"
    reported = Accounted(Aliases(1, None), 3, "report", 5)
    assert compare(Aliases.of(TWO), TWO, (TWO,), reported) == Settled(), "whoever moved it moved it back"


def test_anything_else_was_moved_by_somebody() -> None:
    settled = Accounted(Aliases(2, None), 3, "", 2)
    back = compare(Aliases(1, None), TWO, (TWO,), settled)
    assert back == Moved((Move("champion", 2, 1),)), "also back to who was champion once"
    assert compare(Aliases(None, None), TWO, (TWO,), settled) == Moved((Move("champion", 2, None),))
    assert compare(Aliases(3, 4), TWO, (TWO,), settled) == Moved((Move("champion", 2, 3), Move("challenger", None, 4)))
    assert compare(Aliases(7, None), ONE, (ONE,), None) == Moved((Move("champion", 1, 7),)), "before the first look too"


def test_what_was_seen_is_finished_or_left_and_not_seen_again() -> None:
    moved = Aliases(7, None)
    for pending in ("revert", "adopt"):
        seen = Accounted(moved, 3, pending, 5)
        assert compare(moved, TWO, (TWO,), seen) == Unfinished((Move("champion", 2, 7),))
    reported = Accounted(moved, 3, "report", 5)
    assert compare(moved, TWO, (TWO,), reported) == Reported()
    assert compare(moved, bot_route(4, 1), (TWO, bot_route(4, 1)), reported) == LateMirror(), "the next change moves it"
    assert compare(Aliases(8, None), TWO, (TWO,), reported) == Moved((Move("champion", 2, 8),)), "moved again"


versions = st.none() | st.integers(1, 4)


@given(champion=versions, challenger=versions, known=st.lists(st.sampled_from([ONE, CANARY, TWO]), max_size=3))
def test_nobody_is_accused_of_what_a_route_said_and_nothing_else_is_overlooked(
    champion: int | None, challenger: int | None, known: list[Route]
) -> None:
    seen, ours = Aliases(champion, challenger), [Aliases.of(route) for route in (*known, TWO)]
    found = compare(seen, TWO, known, Accounted(Aliases.of(TWO), 3, "", 1))
    assert (found == Settled()) == (seen == Aliases.of(TWO))
    strange = [
        alias
        for alias, value, said in (
            ("champion", champion, {one.champion for one in ours}),
            ("challenger", challenger, {one.challenger for one in ours}),
        )
        if value not in said
    ]
    assert ([move.alias for move in found.moves] if isinstance(found, Moved) else []) == strange
