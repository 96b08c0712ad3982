"""Requests and feedback: written in batches by gateways, read in windows by the monitor and the worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import AwareDatetime, FiniteFloat
from sqlalchemy.engine import Connection

from tuneloop.registry import client_ids, forgetting
from tuneloop.registry.access.usage import Booking
from tuneloop.registry.corrections import CLOCKS_APART, CORRECTS, READS, THEIRS, LeftOut, left_out, taught, wording
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import NotFound
from tuneloop.registry.forgetting import Forgotten
from tuneloop.registry.guard_policy import SAMPLED
from tuneloop.registry.inserting import Inserting
from tuneloop.registry.nouns import Feedback, Noun, RequestLine, RequestRecord
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.questions import has_question
from tuneloop.registry.tables import feedback, requests, shadow_requests

ANSWERED = 200
CLIENT_FAULT = 400
SERVER_FAULT = 500
FOUND = ("block", "flag", "sample", "pass")  # how a verdict that tells of a find begins; `pass`: sampled, not drawn
_IDS_AT_ONCE = 500  # in one query; databases bound how many they take


class Opinion(Noun):
    """One feedback without its text."""

    request_id: str
    at: AwareDatetime
    score: float | None
    thumb: Literal["up", "down"] | None
    corrected: bool

    @property
    def liking(self) -> float | None:
        """The score, or what a thumb says as one, in [0, 1]; None: it says neither."""
        if self.score is not None:
            return self.score
        return None if self.thumb is None else float(self.thumb == "up")


class Outcome(Noun):
    """What became of one request, without its text; `traffic.window` has everything."""

    id: str
    at: AwareDatetime
    revision: int | None
    assigned_version: int | None
    served_version: int | None
    key_hash: str
    key_source: str
    status: int
    error: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    queue_ms: FiniteFloat | None
    ttft_ms: FiniteFloat | None
    total_ms: FiniteFloat

    @property
    def is_spoilt(self) -> bool:
        """Whether the client spoilt the request or left it: neither a success nor a failure of a version."""
        return CLIENT_FAULT <= self.status < SERVER_FAULT

    @property
    def is_answered(self) -> bool:
        """Whether the version that the split gave the request answered it to the end."""
        return self.status < CLIENT_FAULT and self.error is None and self.served_version == self.assigned_version


class Pair(Noun):
    """What became of one request, and of the copy that a shadow answered; without their texts."""

    status: int
    error: str | None
    queue_ms: FiniteFloat | None
    ttft_ms: FiniteFloat | None
    total_ms: FiniteFloat
    completion_tokens: int | None
    answer_chars: int | None  # None: no text is kept
    shadow_status: int
    shadow_error: str | None
    shadow_queue_ms: FiniteFloat | None
    shadow_ttft_ms: FiniteFloat | None
    shadow_total_ms: FiniteFloat
    shadow_completion_tokens: int | None
    shadow_answer_chars: int | None


class Traffic:
    """What was asked and answered. Writing the same id twice keeps the first: spools may be replayed."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._booking = Booking(database)
        self._forgotten = forgetting.Memory()
        self._inserting = {table: Inserting(database, table) for table in (requests, shadow_requests, feedback)}

    def add_requests(self, records: Sequence[RequestRecord]) -> set[str]:
        """Store a batch in one transaction, and count what is new in it as its keys' usage.

        What a shadow answered goes to a table of its own and is nobody's usage. What is of a user who was forgotten
        since then is neither stored nor counted; the ids of that are returned.
        """
        with self._db.writing() as connection:
            forgetting.hold(connection, self._db)
            late = self._forgotten.late(connection, records)
            kept_out = {record.id for record, _ in late}
            if late:
                forgetting.keep_out(connection, self._db, late)
                records = [record for record in records if record.id not in kept_out]
            asked = [record for record in records if record.shadow_of is None]
            stored = self._insert(connection, requests, asked)
            first = {record.id: record for record in reversed(asked)}
            self._booking.book(connection, (first[record_id] for record_id in stored))
            client_ids.adopt(connection, (first[record_id] for record_id in stored))
            self._insert(connection, shadow_requests, [record for record in records if record.shadow_of is not None])
        return kept_out

    def add_feedback(self, items: Sequence[Feedback]) -> set[str]:
        """Store feedback in one transaction; once this returns it survives kill -9.

        Returns the ids of that which is not stored, because its request was deleted with its user. Of a request that
        only its client's own id names, which others may have too, that is what was said until the deletion.
        """
        if client_ids.waits(items):
            with self._db.reading() as connection:
                items = client_ids.named(connection, items)
        with self._db.writing() as connection:
            # Alone: sharing, feedback and its request could be stored at once, neither seeing the other, and it would
            # wait for ever. It costs this feedback, and batches behind it, the batches that are being stored now; what
            # found its request above, the rule, shares.
            forgetting.hold(connection, self._db, alone=(waits := client_ids.waits(items)))
            if waits:
                items = client_ids.named(connection, items)
            gone = forgetting.gone(connection, items)
            self._insert(connection, feedback, [item for item in items if item.id not in gone])
        return gone

    def forget(
        self, user: str, *, by: str, reason: str, at: datetime, model: str | None = None, hashed: bool = False
    ) -> Forgotten:
        """Delete what is on record of a user, known by the sticky key its requests came with: requests, the copies that
        shadows answered, and feedback; of what monitors show, the questions. Requests that are brought in later are not
        stored, and neither is the feedback that came before them.

        `hashed` says that `user` is the hash that records keep.

        Raises:
            InvalidInput: it is no such key, or nobody is named.
        """
        known = forgetting.hash_of(user, hashed=hashed)
        return forgetting.forget(self._db, known, model, at=at, by=by, reason=reason)

    def request(self, request_id: str) -> RequestRecord:
        """One request.

        Raises:
            NotFound: no such request has been recorded.
        """
        with self._db.reading() as connection:
            row = connection.execute(sa.select(requests).where(requests.c.id == request_id)).mappings().first()
        if row is None:
            raise NotFound(
                f"no request {request_id!r} is on record; gateways write records about a second after they answer"
            )
        return noun_of(RequestRecord, row)

    def held(self, request_ids: Sequence[str]) -> Rows[RequestRecord]:
        """Those of these requests that are on record still, in order of time; what cannot be read is logged."""
        found: Rows[RequestRecord] = Rows()
        with self._db.reading() as connection:
            for start in range(0, len(request_ids), _IDS_AT_ONCE):
                some = requests.c.id.in_(request_ids[start : start + _IDS_AT_ONCE])
                rows = readable(RequestRecord, connection.execute(sa.select(requests).where(some)).mappings())
                found += rows
                found.unreadable += rows.unreadable
        found.sort(key=lambda record: (record.at, record.id))
        self._db.tell(found.unreadable)
        return found

    def deleted_of(self, request_ids: Sequence[str]) -> set[str]:
        """Those of these requests that were deleted with their users."""
        with self._db.reading() as connection:
            return forgetting.deleted_of(connection, request_ids)

    def window(
        self,
        model: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        version: int | None = None,
        newest: int | None = None,
        oldest: int | None = None,
        sampled: bool = False,
        asked: bool = False,
    ) -> Rows[RequestRecord]:
        """Records of a model in order of time: `since` < at ≤ `until`, of one served version, at most so many; with
        `sampled` of those alone that a guard marked for people to read, with `asked` of those that were answered (200)
        and have the question on record.

        `newest` or `oldest` says from which end they are counted. Those that cannot be read are left out and logged.
        """
        query = sa.select(requests).where(requests.c.model == model)
        if since is not None:
            query = query.where(requests.c.at > since)
        if until is not None:
            query = query.where(requests.c.at <= until)
        if version is not None:
            query = query.where(requests.c.served_version == version)
        if sampled:
            query = query.where(sa.cast(requests.c.guards, sa.Text).like(f'%"{SAMPLED}%'))
        if asked:
            query = query.where(requests.c.status == ANSWERED, has_question(is_sqlite=self._db.is_sqlite))
        if newest is not None:
            query = query.order_by(requests.c.at.desc(), requests.c.id.desc()).limit(newest)
        else:
            query = query.order_by(requests.c.at, requests.c.id).limit(oldest)
        found = readable(RequestRecord, self._db.rows(query))
        if newest is not None:
            found.reverse()
        self._db.tell(found.unreadable)
        return found

    def newest(self, model: str, limit: int) -> Rows[RequestLine]:
        """The newest records of a model without their text, in order of time."""
        newest_first = (requests.c.at.desc(), requests.c.id.desc())
        with self._db.reading() as connection:
            rows = connection.execute(_lines(model).order_by(*newest_first).limit(limit)).mappings().all()
        found = readable(RequestLine, rows)
        found.reverse()
        return found

    def page(self, model: str, ask: Ask) -> Page[RequestLine]:
        """Records of a model without their text, the newest first, page by page."""
        return page(self._db, RequestLine, _lines(model), (requests.c.at, requests.c.id), ask)

    def feedback_page(self, request_id: str, ask: Ask) -> Page[Feedback]:
        """All feedback that came for one request, in order of time, also what does not count, page by page."""
        query = sa.select(feedback).where(feedback.c.request_id == request_id)
        return page(self._db, Feedback, query, (feedback.c.at, feedback.c.id), ask, newest_first=False)

    def feedback_of(self, model: str, ask: Ask) -> Page[Feedback]:
        """What users said of a model's answers, the newest first, page by page; not what names no request on record."""
        mine = sa.and_(requests.c.id == feedback.c.request_id, requests.c.model == model)
        query = sa.select(feedback).join(requests, mine)
        return page(self._db, Feedback, query, (feedback.c.at, feedback.c.id), ask)

    def answered_ms(self, model: str, version: int, *, newest: int) -> list[float]:
        """Total times of the newest answers that a version gave, whoever asked and however it was chosen."""
        gave = sa.and_(
            requests.c.model == model,
            requests.c.served_version == version,
            requests.c.status < CLIENT_FAULT,
            requests.c.error.is_(None),
        )
        query = sa.select(requests.c.total_ms).where(gave).order_by(requests.c.at.desc()).limit(newest)
        with self._db.reading() as connection:
            return [float(time_ms) for time_ms in connection.execute(query).scalars()]

    def feedback_for(self, request_ids: Sequence[str]) -> dict[str, list[Feedback]]:
        """Request id → its feedback in order of time; requests without any are absent, what cannot be read is logged.

        Feedback that came with another API key than the request's does not count (`THEIRS`).
        """
        found: dict[str, list[Feedback]] = {}
        with self._db.reading() as connection:
            for start in range(0, len(request_ids), _IDS_AT_ONCE):
                query = (
                    sa.select(feedback)
                    .outerjoin(requests, requests.c.id == feedback.c.request_id)
                    .where(feedback.c.request_id.in_(request_ids[start : start + _IDS_AT_ONCE]), THEIRS)
                    .order_by(feedback.c.at)
                )
                items = readable(Feedback, connection.execute(query).mappings())
                self._db.tell(items.unreadable)
                for item in items:
                    found.setdefault(item.request_id, []).append(item)
        return found

    def outcomes(
        self, model: str, *, since: datetime, until: datetime
    ) -> tuple[Rows[Outcome], dict[str, list[Opinion]]]:
        """Outcomes of a model's requests in order of time, `since` < at ≤ `until`; and by request id what users
        thought of them by then, in order of time."""
        here = sa.and_(requests.c.model == model, requests.c.at > since, requests.c.at <= until)
        asked = sa.select(*(requests.c[name] for name in Outcome.model_fields)).where(here)
        said = (
            sa.select(
                *(feedback.c[name] for name in ("id", "request_id", "at", "score", "thumb")),
                CORRECTS.label("corrected"),
            )
            .join(requests, requests.c.id == feedback.c.request_id)
            .where(here, THEIRS, feedback.c.at <= until)
        )
        outcomes = readable(Outcome, self._db.rows(asked.order_by(requests.c.at, requests.c.id)))
        opinions = readable(Opinion, self._db.rows(said.order_by(feedback.c.at, feedback.c.id)))
        self._db.tell([*outcomes.unreadable, *opinions.unreadable])
        by_request: dict[str, list[Opinion]] = {}
        for opinion in opinions:
            by_request.setdefault(opinion.request_id, []).append(opinion)
        return outcomes, by_request

    def corrected(
        self, model: str, *, since: datetime, until: datetime, after: datetime | None = None, by: datetime | None = None
    ) -> int:
        """How many requests of a model, `since` < at ≤ `until`, a user corrected, by feedback that counts (`THEIRS`),
        with question and correction on record: what can be learned from. With `after` those alone whose correction came
        after that time, and by `by` (`until`, unless given).

        Costs the feedback of that time, however many requests there are.
        """
        here = (requests.c.model == model, requests.c.at > since, requests.c.at <= until)
        said = sa.literal_column("requests.messages <> '[]'", sa.Boolean)
        asked = sa.select(requests.c.id).where(requests.c.id == feedback.c.request_id, *here, THEIRS, said)
        query = sa.select(sa.func.count(feedback.c.request_id.distinct())).where(
            feedback.c.at > since - CLOCKS_APART, READS, asked.correlate(feedback).exists()
        )
        if after is not None:
            query = query.where(feedback.c.at > after, feedback.c.at <= (by or until))
        with self._db.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def left_out(
        self,
        model: str,
        *,
        begun: datetime,
        since: datetime,
        until: datetime,
        after: datetime | None = None,
        by: datetime | None = None,
    ) -> LeftOut:
        """Of the requests of a model asked after `begun` that a user corrected, how many `corrected` counts by the
        other four, and why not the others. Costs as much as that."""
        return left_out(self._db, model, begun=begun, since=since, until=until, after=after, by=by)

    def corrections(
        self, model: str, *, since: datetime, until: datetime, by: datetime, liked: bool = False
    ) -> Iterator[tuple[RequestRecord, str | None]]:
        """Requests of a model, `since` < at ≤ `until`, in order of time, that a user corrected, each with its newest
        correction that came by then and counts (`THEIRS`); with `liked` also those without one whose last thumb was
        up, with None: what they were answered is right.

        One at a time: of all other requests nothing is read. What cannot be read is left out and logged.
        """
        return taught(self._db, model, since=since, until=until, by=by, liked=liked)

    def guarded(self, model: str, *, since: datetime, until: datetime) -> frozenset[str]:
        """The requests in whose answers output guards found something; that they could not look is no find."""
        verdicts = sa.func.replace(sa.cast(requests.c.guards, sa.Text), '"output.guards"', "")
        here = sa.and_(requests.c.model == model, requests.c.at > since, requests.c.at <= until)
        query = sa.select(requests.c.id).where(here, verdicts.like('%"output.%'))
        with self._db.reading() as connection:
            return frozenset(connection.execute(query).scalars())

    def pairs(self, model: str, version: int, *, since: datetime, first: int) -> Rows[Pair]:
        """The first copies since then that a version answered as a shadow, each beside what it was a copy of, where
        both are on record."""
        copies = shadow_requests
        both = [
            column.label(f"{prefix}{name}")
            for table, prefix in ((requests, ""), (copies, "shadow_"))
            for name, column in [
                *((n, table.c[n]) for n in Pair.model_fields if n in table.c),
                ("answer_chars", sa.func.length(table.c.answer)),
            ]
        ]
        here = sa.and_(copies.c.model == model, copies.c.served_version == version, copies.c.at > since)
        query = sa.select(*both).join_from(copies, requests, requests.c.id == copies.c.shadow_of).where(here)
        found = readable(Pair, self._db.rows(query.order_by(copies.c.at).limit(first)))
        self._db.tell(found.unreadable)
        return found

    def shadows_of(self, request_id: str) -> Rows[RequestRecord]:
        """What shadows answered to copies of one request."""
        query = sa.select(shadow_requests).where(shadow_requests.c.shadow_of == request_id)
        return readable(RequestRecord, self._db.rows(query.order_by(shadow_requests.c.at)))

    def stopped(self, model: str, *, since: datetime, until: datetime, oldest: int) -> list[datetime]:
        """When the first so many requests of a model that guards stopped were asked, `since` < at <= `until`."""
        said_so = sa.cast(requests.c.guards, sa.Text).like('%"block: %')
        query = sa.select(requests.c.at).where(
            requests.c.model == model, requests.c.at > since, requests.c.at <= until, said_so
        )
        with self._db.reading() as connection:
            return list(connection.execute(query.order_by(requests.c.at, requests.c.id).limit(oldest)).scalars())

    def caught(
        self,
        model: str,
        guards: Sequence[str],
        *,
        since: datetime,
        until: datetime,
        actions: Sequence[str] = FOUND,
    ) -> tuple[int, int]:
        """How many requests of a model one of these guards found something in, `since` <= at <= `until`, and how many
        there were, whatever became of them.

        Args:
            model: whose. guards: by name, as records note them; none: any guard.
            since, until: from when to when.
            actions: what of it counts: whatever was found, or only what was stopped, say.
        """
        verdicts = [requests.c.guards[guard].as_string() for guard in guards]
        said_so = [said.like(f"{action}: %") for said in verdicts for action in actions]
        if not guards:
            said_so = [sa.cast(requests.c.guards, sa.Text).like(f'%"{action}: %') for action in actions]
        found = sa.or_(*said_so)
        here = sa.and_(requests.c.model == model, requests.c.at >= since, requests.c.at <= until)
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.case((found, 1), else_=0)), 0)).where(here)
        with self._db.reading() as connection:
            every, hits = connection.execute(query).one()
        return int(hits), int(every)

    def corrections_for(self, request_ids: Sequence[str]) -> dict[str, str]:
        """Request id → the newest correction a user gave; blank and deleted ones say nothing. Others are absent."""
        given = {
            request_id: [text for item in items if (text := wording(item)) is not None]
            for request_id, items in self.feedback_for(request_ids).items()
        }
        return {request_id: texts[-1] for request_id, texts in given.items() if texts}

    def _insert(self, connection: Connection, table: sa.Table, items: Sequence[RequestRecord | Feedback]) -> set[str]:
        """Store what is new; returns its ids."""
        if not items:
            return set()
        if self._db.is_sqlite:  # asking for what was stored costs more than storing it, and as a rule it is everything
            with connection.begin_nested() as attempt:
                if self._inserting[table].insert(connection, items) == len(items):
                    return {item.id for item in items}
                attempt.rollback()
        insert = self._db.insert(table).on_conflict_do_nothing(index_elements=["id"]).returning(table.c.id)
        return set(connection.execute(insert, [row_of(item, table) for item in items]).scalars())


def _lines(model: str) -> sa.Select[Any]:
    columns = (requests.c[name] for name in RequestLine.model_fields)
    return sa.select(*columns).where(requests.c.model == model)
