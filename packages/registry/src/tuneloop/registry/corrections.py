"""What users say an answer should have read: which feedback counts as a correction, and the requests that have one.

Found by joins, one row at a time: a window holds as many requests as there was traffic, texts included, and the
corrected ones are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tuneloop.registry.database import Database, noun_of
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.nouns import Feedback, RequestRecord
from tuneloop.registry.tables import BLANK, feedback, requests

# What came with another API key than the request's does not count: nobody speaks for other people's users. The request
# may not be on record yet.
THEIRS = sa.or_(feedback.c.api_key.is_(None), requests.c.id.is_(None), feedback.c.api_key == requests.c.api_key)
CORRECTS = sa.func.length(sa.func.trim(sa.func.coalesce(feedback.c.correction, ""), " \t\n\r\f\v")) > 0
# A correction whose text has gone by its age counts as one, but can be neither learned nor scored.
READS = sa.and_(CORRECTS, feedback.c.correction != BLANK)
CLOCKS_APART = timedelta(days=1)  # feedback may be stamped so long before the answer that it is of


def corrects(item: Feedback) -> bool:
    """Whether a user says that the answer should have read otherwise, also where the text has gone by its age."""
    return bool(item.correction and item.correction.strip())


def wording(item: Feedback) -> str | None:
    """What a user says the answer should have read, where that is on record."""
    return item.correction if corrects(item) and item.correction != BLANK else None


@dataclass(frozen=True)
class LeftOut:
    """How many corrected requests do not count, each once, by what comes nearest to counting; and how many do."""

    unjudged: int = 0  # asked, or corrected, too late
    used: int = 0  # corrected too early: something has learned from that
    spoilt: int = 0  # asked too early
    without_text: int = 0  # the question, or the correction, is not on record
    counted: int = 0


def left_out(
    database: Database,
    model: str,
    *,
    begun: datetime,
    since: datetime,
    until: datetime,
    after: datetime | None,
    by: datetime | None,
) -> LeftOut:
    """As `Traffic.left_out`."""
    early, late = [requests.c.at <= since, feedback.c.at <= since - CLOCKS_APART], [requests.c.at > until]
    late += [] if by is None else [feedback.c.at > by]
    used = sa.false() if after is None else feedback.c.at <= after
    reads = sa.and_(READS, sa.literal_column("requests.messages <> '[]'", sa.Boolean))
    why = sa.case((~reads, 4), (sa.or_(*early), 3), (used, 2), (sa.or_(*late), 1), else_=0)
    said = sa.select(sa.func.min(why).label("why")).join(requests, requests.c.id == feedback.c.request_id)
    here = (requests.c.model == model, requests.c.at > begun, feedback.c.at > begun - CLOCKS_APART)
    each = said.where(*here, THEIRS, CORRECTS).group_by(feedback.c.request_id).subquery()
    with database.reading() as connection:
        rows = connection.execute(sa.select(each.c.why, sa.func.count()).group_by(each.c.why)).all()
    found = {int(kind): int(count) for kind, count in rows}
    return LeftOut(*(found.get(kind, 0) for kind in (1, 2, 3, 4, 0)))


def taught(
    database: Database, model: str, *, since: datetime, until: datetime, by: datetime, liked: bool
) -> Iterator[tuple[RequestRecord, str | None]]:
    """As `Traffic.corrections`."""
    here = (requests.c.model == model, requests.c.at > since, requests.c.at <= until)

    def last(said: sa.ColumnElement[Any], where: sa.ColumnElement[bool]) -> sa.Subquery:
        newest = (feedback.c.at.desc(), feedback.c.id.desc())
        place = sa.func.row_number().over(partition_by=feedback.c.request_id, order_by=newest)
        given = (feedback.c.at > since - CLOCKS_APART, feedback.c.at <= by, THEIRS, where)
        mine = sa.select(feedback.c.request_id, said.label("said"), place.label("place"))
        ranked = mine.join(requests, requests.c.id == feedback.c.request_id).where(*here, *given).subquery()
        return sa.select(ranked).where(ranked.c.place == 1).subquery()

    correction = last(feedback.c.correction, CORRECTS)
    query = sa.select(requests, correction.c.said.label("correction")).where(*here)
    if liked:
        thumb = last(feedback.c.thumb, feedback.c.thumb.is_not(None))
        query = (
            query.outerjoin(correction, correction.c.request_id == requests.c.id)
            .outerjoin(thumb, thumb.c.request_id == requests.c.id)
            .where(sa.or_(correction.c.said.is_not(None), thumb.c.said == "up"))
        )
    else:
        query = query.join(correction, correction.c.request_id == requests.c.id)
    query = query.where(sa.func.coalesce(correction.c.said, "") != BLANK)  # nor was what it was answered right
    for row in database.rows(query.order_by(requests.c.at, requests.c.id)):
        try:
            record = noun_of(RequestRecord, row)
        except Unreadable as error:
            database.tell([str(error)])
            continue
        yield record, row["correction"]
