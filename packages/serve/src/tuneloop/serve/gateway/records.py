"""Records and feedback on their way to the database: off the request path, redacted before they touch a disk, spooled
when it is away.

A record waits in memory for a fraction of a second (after a start: until the redaction worker is warm, about 3 s),
then it is in the database or in an fsynced file. Feedback is acknowledged only then. Redaction takes most of the time,
so where more comes than it can do, text goes before a record does. What cannot be kept is counted, never silently gone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from tuneloop.registry.client_ids import client_id
from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.nouns import Feedback, Message, RequestRecord
from tuneloop.serve.gateway.body import ROLES
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.http import said_in
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.redactor import Redactor
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.spool import Spool
from tuneloop.serve.gateway.store import Store
from tuneloop.serve.gateway.transcript import answer_text

log = logging.getLogger(__name__)
PAUSE_S = 0.25
BATCH = 500
AT_ONCE = 32  # records made in one go, 0.2 ms: the event loop cannot have the interpreter meanwhile
BREATH_S = 0.000_2
REDACT_TIMEOUT_S = 20.0
EDGE_CHARS = 8_300  # redacted beyond what is kept, the longest secret there is: of what the cut goes through no half is
_FEEDBACK_TEXTS = ("label", "comment", "correction")


class Recorder:
    """Takes finished exchanges and feedback; one thread stores them."""

    def __init__(
        self,
        settings: GatewaySettings,
        link: Link,
        folder: Path,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._redactor = Redactor() if settings.record_text == "redacted" else None
        self._requests = Store(
            link,
            Spool(folder, "requests", RequestRecord),
            lambda registry, items: registry.traffic.add_requests(items),
            spooled=metrics.records_spooled.inc,
            aside=metrics.records_aside.inc,
        )
        self._feedback = Store(
            link,
            Spool(folder, "feedback", Feedback),
            lambda registry, items: registry.traffic.add_feedback(items),
            spooled=metrics.records_spooled.inc,
            aside=metrics.records_aside.inc,
        )
        self._queue: deque[Exchange] = deque()
        self._bytes_in = self._bytes_out = 0  # one writer each: the event loop, the thread
        self._storing = 0
        self._taken = 0  # from the queue and stored, or given up, since the start
        self._marks: deque[tuple[float, int]] = deque()  # when it was so late, so many had been added
        self._reached_s = self.stored_until_s = clock()  # all that had been added by then is in the database
        self._dropped = 0
        self._drop_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gateway-records", daemon=True)

    @property
    def pending(self) -> int:
        """Records that are in memory only."""
        return len(self._queue) + self._storing

    @property
    def dropped(self) -> int:
        """Records lost since the start."""
        return self._dropped

    @property
    def is_half_full(self) -> bool:
        """Whether what nobody would miss should be left out, so that requests keep their records."""
        few = 2 * len(self._queue) < self._settings.record_queue
        return not few or 2 * (self._bytes_in - self._bytes_out) > self._settings.record_queue_bytes

    @property
    def _is_crowded(self) -> bool:
        """Whether the queue may soon be full, though what comes is without text."""
        return 4 * len(self._queue) >= 3 * self._settings.record_queue

    def start(self) -> None:
        """Start the thread and, if text is kept, the redaction worker."""
        if self._redactor is not None:
            self._redactor.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Store what waits: with text as long as there is time, then without."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=timeout_s)
        if self._redactor is not None:
            self._redactor.stop()
        self._thread.join(timeout=timeout_s)
        if self.pending:
            log.error("%d records could not be stored within %g s and are lost", self.pending, 2 * timeout_s)
        self._requests.close()
        self._feedback.close()

    def add(self, exchange: Exchange) -> None:
        """Take a finished exchange; called on the event loop, waits for nothing."""
        if exchange.plan is None:  # refused before it was known what it is about: counted, not recorded
            return
        if len(self._queue) >= self._settings.record_queue:
            self._drop(1, "the queue is full")
            return
        if self._redactor is None:
            exchange.forget_text()
            self._queue.append(exchange)
            return
        size = exchange.text_bytes
        if size and (self.is_half_full or self._bytes_in - self._bytes_out + size > self._settings.record_queue_bytes):
            self._skip_text(exchange)
            size = 0
        self._bytes_in += size
        self._queue.append(exchange)

    def _skip_text(self, exchange: Exchange) -> None:
        exchange.forget_text()
        exchange.guards = exchange.guards | {"redaction": "skipped"}  # anew: a thread may be reading them for a span
        self._metrics.records_without_text.inc()

    def add_feedback(self, feedback: Feedback) -> None:
        """Store feedback; once this returns it survives kill -9. Waits for redaction and for the database or a disk.

        Raises:
            InvalidInput: it holds text and this gateway keeps none, or the database refuses what it holds.
            NotFound: its request was deleted with its user (what comes from the disk is left out; the log tells).
            Unavailable: neither database nor disk takes it, or it cannot be redacted now.
        """
        clean = self._redacted_feedback(feedback)
        try:
            kept = self._feedback.keep([clean])
        except OSError as error:
            log.error("feedback is refused: the database is away, and the disk refuses: %s", error)
            raise Unavailable(
                f"the database is away and the disk refuses this feedback: {error.strerror or error}"
            ) from error
        if kept.refused:
            raise InvalidInput("the database refuses this feedback; send plain text")
        if kept.unwanted:
            raise NotFound("the request was deleted with all that is on record of its user; nothing is kept of it")

    def _redacted_feedback(self, feedback: Feedback) -> Feedback:
        texts = {name: storable(text) for name in _FEEDBACK_TEXTS if (text := getattr(feedback, name))}
        if not texts:
            return feedback
        if self._redactor is None:
            raise InvalidInput("this gateway keeps no text (record_text is none); send a score or a thumb alone")
        clean = self._redactor.redact(list(texts.values()), REDACT_TIMEOUT_S, urgent=True)
        return feedback.model_copy(update=dict(zip(texts, clean, strict=True)))

    def _run(self) -> None:
        while True:
            self._marks.append((self._clock(), self._taken + len(self._queue)))
            self._storing = min(BATCH, len(self._queue))  # before they leave the queue: `pending` misses none
            batch = [self._queue.popleft() for _ in range(self._storing)]
            size = sum(exchange.text_bytes for exchange in batch)
            try:
                if batch:
                    self._store(batch)
            except Exception:
                log.exception("storing records failed")
                self._drop(len(batch), "a defect of the gateway")
            self._bytes_out += size
            self._storing = 0
            self._taken += len(batch)
            self._replay()
            self._reach()
            if self._stopping and not self._queue:
                return
            if len(self._queue) < BATCH:  # many in one transaction: it takes a millisecond, of one record too
                self._wake.wait(PAUSE_S)

    def _reach(self) -> None:
        """See how far the database has come; what is on disk may be of any time before."""
        while self._marks and self._marks[0][1] <= self._taken:
            self._reached_s = self._marks.popleft()[0]
        if not self._requests.has_files:
            self.stored_until_s = self._reached_s

    def _replay(self) -> None:
        for store in (self._requests, self._feedback):
            try:
                store.replay()
            except Unavailable:  # the link has logged it
                pass
            except Exception:
                log.exception("bringing in what is on disk failed; it stays there and is tried again")

    def _store(self, batch: Sequence[Exchange]) -> None:
        records: list[RequestRecord] = []
        for exchange in batch:
            if len(records) % AT_ONCE == AT_ONCE - 1 and not self._stopping:
                time.sleep(BREATH_S)
            if self._redactor is not None and self._is_crowded and exchange.text_bytes:
                self._skip_text(exchange)  # those that came while there was room hold up the others
            records.append(self._redacted(record_of(exchange, self._settings.record_text_chars + EDGE_CHARS)))
        try:
            refused = self._requests.keep(records).refused
        except OSError as error:
            self._drop(len(records), f"neither database nor disk takes them: {error}")
        else:
            if refused:
                self._drop(len(refused), "the database refuses them")

    def _redacted(self, record: RequestRecord) -> RequestRecord:
        """The record with its text redacted, or without text when that fails."""
        if self._redactor is None:
            return record
        texts = [
            storable(text) for text in (*(m.content for m in record.messages), record.answer, record.error) if text
        ]
        if not texts:
            return record
        try:
            clean = iter(self._redactor.redact(texts, REDACT_TIMEOUT_S))
        except Unavailable as error:
            log.error("a record is stored without its text: %s", error)
            self._metrics.records_without_text.inc()
            verdict = record.guards | {"redaction": "failed"}
            return record.model_copy(update={"messages": (), "answer": None, "error": None, "guards": verdict})
        most = self._settings.record_text_chars

        def kept(raw: str) -> str:
            was_cut = len(raw) >= most + EDGE_CHARS
            found = next(clean)
            return found[: min(most, max(0, len(found) - EDGE_CHARS)) if was_cut else most]

        messages = tuple(Message(role=m.role, content=kept(m.content) if m.content else "") for m in record.messages)
        answer = kept(record.answer) if record.answer else record.answer
        reason = next(clean) if record.error else record.error
        return record.model_copy(update={"messages": messages, "answer": answer, "error": reason})

    def _drop(self, count: int, why: str) -> None:
        with self._drop_lock:
            if not self._dropped:
                log.error("records are being lost, and counted in tuneloop_records_dropped_total: %s", why)
            self._dropped += count
        self._metrics.records_dropped.inc(count)


def record_of(exchange: Exchange, text_chars: int) -> RequestRecord:
    """The record of a finished exchange, its text not yet redacted and each piece cut to `text_chars`.

    A request that pinned its version has no assigned version: the split had no say in it, so it belongs to no arm.
    """
    assert exchange.plan is not None
    answer = answer_text(exchange.answer)
    usage, target = exchange.usage, exchange.target
    return RequestRecord.trusted(
        id=exchange.id,
        at=exchange.at,
        model=exchange.plan.route.model,
        revision=exchange.plan.route.revision,
        assigned_version=exchange.plan.assigned,
        served_version=target.version if target else None,
        engine=target.engine if target else None,
        key_hash=exchange.key_hash,
        key_source=exchange.unit_source,
        api_key=exchange.api_key,
        endpoint=exchange.endpoint,
        stream=exchange.stream,
        status=exchange.status,
        error=exchange.error,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        queue_ms=exchange.queue_ms,
        ttft_ms=exchange.ttft_ms,
        total_ms=exchange.total_ms,
        guards=exchange.guards,
        messages=tuple(Message(role=_role(role), content=text[:text_chars]) for role, text in exchange.messages),
        answer=answer[:text_chars] if answer is not None else None,
        shadow_of=exchange.shadow_of,
        client_id=client_id(exchange.api_key or "", said_in(exchange.client_id)) if exchange.client_id else None,
    )


def _role(said: str) -> str:
    """A role is the client's own text, which is not stored as it is: what no template knows is `other`."""
    return said if said in ROLES else "other"


def storable(text: str) -> str:
    """Without the one character PostgreSQL cannot hold."""
    return text.replace("\0", "\ufffd")
