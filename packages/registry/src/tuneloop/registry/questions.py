"""Which requests have their question on record, asked of the database: where texts are not kept, a reader that looks
for them itself would read everything to find none.

The same rule as `RequestRecord.question`: the last turn of a user, or a completion's prompt. What is damaged has none.
"""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables import requests

ASKS = ("user", "prompt")


def has_question(*, is_sqlite: bool) -> sa.ColumnElement[bool]:
    """Whether a row of `requests` says what was asked, for a query's `where`."""
    return (_last_on_sqlite() if is_sqlite else _last_on_postgresql()) != ""


def _last_on_sqlite() -> sa.ScalarSelect[str]:
    text = sa.cast(requests.c.messages, sa.Text)
    turns = sa.case((sa.func.json_valid(text) == 1, text), else_="[]")
    turn = sa.func.json_each(turns).table_valued("key", "fullkey")
    role, content = (sa.func.json_extract(turns, turn.c.fullkey + name) for name in (".role", ".content"))
    last = sa.select(content).where(role.in_(ASKS)).order_by(turn.c.key.desc()).limit(1)
    return last.correlate(requests).scalar_subquery()


def _last_on_postgresql() -> sa.ScalarSelect[str]:
    turns = sa.case((sa.func.jsonb_typeof(requests.c.messages) == "array", requests.c.messages))
    turn = sa.func.jsonb_array_elements(turns).table_valued("value", with_ordinality="place").render_derived()
    role, content = (sa.func.jsonb_extract_path_text(turn.c.value, name) for name in ("role", "content"))
    last = sa.select(content).where(role.in_(ASKS)).order_by(turn.c.place.desc()).limit(1)
    return last.correlate(requests).scalar_subquery()
