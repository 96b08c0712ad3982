"""Requests by the ids that clients gave them: feedback may name a request by its client's own id.

An id means something only together with the API key it came with, and what is kept of both is their hash: an id is the
client's own text, and nobody may name what another key asked. Of several requests with one id the newest on record is
meant, but none that failed before anything was answered and that clients try again by themselves, with the same id.
Feedback that comes before its request is on record waits under the hash, and takes the id of the first that comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.nouns import Feedback, RequestRecord
from tuneloop.registry.tables import feedback, requests

TRIED_AGAIN = (408, 409, 429, 499)  # by clients of OpenAI's, or since they were too late; beside all from 500 on
WAITING = "own_"  # how the request id of feedback begins that has not found its request


def client_id(api_key: str, given: str) -> str:
    """What is kept of an id that a client gave a request: 128 bits of a SHA-256, in hex."""
    return sha256(f"{api_key}\0{given}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def waiting_for(client_ids: Iterable[str]) -> list[str]:
    """The request ids of feedback that waits for these."""
    return [f"{WAITING}{one}" for one in client_ids]


def waits(items: Sequence[Feedback]) -> bool:
    """Whether some of this feedback has not found its request."""
    return any(item.request_id.startswith(WAITING) for item in items)


def named(connection: Connection, items: Sequence[Feedback]) -> list[Feedback]:
    """The same feedback with the ids of the requests it is of, as far as they are on record."""
    own = {item.request_id.removeprefix(WAITING) for item in items if item.request_id.startswith(WAITING)}
    last = requests.c.ttft_ms.is_not(None) | ((requests.c.status < 500) & requests.c.status.not_in(TRIED_AGAIN))
    query = sa.select(requests.c.client_id, requests.c.id).where(requests.c.client_id.in_(own), last)
    found = {row.client_id: row.id for row in connection.execute(query.order_by(requests.c.at, requests.c.id))}
    return [
        item.model_copy(update={"request_id": found.get(item.request_id.removeprefix(WAITING), item.request_id)})
        for item in items
    ]


def adopt(connection: Connection, records: Iterable[RequestRecord]) -> None:
    """Give the feedback that waits for these requests, which have just been stored, their ids."""
    last = (record for record in records if record.client_id and _is_last(record))
    given = {str(one.client_id): one.id for one in sorted(last, key=lambda record: (record.at, record.id))}
    if not given:
        return
    query = sa.select(feedback.c.request_id).where(feedback.c.request_id.in_(waiting_for(given))).distinct()
    for waiting in connection.execute(query).scalars().all():
        mine = feedback.c.request_id == waiting
        request_id = given[waiting.removeprefix(WAITING)]
        connection.execute(sa.update(feedback).where(mine).values(request_id=request_id))


def _is_last(record: RequestRecord) -> bool:
    """Whether its client does not try it again: it was answered, be it in part, or refused for good."""
    return record.ttft_ms is not None or (record.status < 500 and record.status not in TRIED_AGAIN)
