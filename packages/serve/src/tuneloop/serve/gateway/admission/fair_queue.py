"""Whose turn is next among requests that wait: fair by key, higher priorities first, nobody starved; pure.

Start-time fair queueing: P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated
Services Packet Switching Networks", SIGCOMM 1996. It is applied twice: among the priorities, by their weights, and
within a priority among its keys, evenly. A cost is a request's tokens, so a key with long requests gets fewer turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tuneloop.registry.access.limits import PRIORITIES, Priority

T = TypeVar("T")
FlowT = TypeVar("FlowT", bound=Hashable)
WEIGHTS: dict[Priority, int] = {"high": 16, "normal": 4, "low": 1}  # shares while all three wait


class Tags(Generic[FlowT]):
    """Start tags of the flows that wait, and the virtual time: the start tag of what was served last."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._starts: dict[FlowT, float] = {}  # of the first that waits; in order of arrival
        self._finishes: dict[FlowT, float] = {}  # of flows of which nothing waits, while they are ahead of time

    def begin(self, flow: FlowT) -> None:
        """A flow of which nothing waited has something to wait for."""
        self._starts[flow] = max(self._virtual, self._finishes.pop(flow, 0.0))

    def first(self) -> FlowT:
        """The flow with the least start tag; of equals the one that came first."""
        return min(self._starts, key=self._starts.__getitem__)

    def served(self, flow: FlowT, cost: float, *, more: bool) -> None:
        """The first request of a flow was served at this cost; `more`: others wait behind it."""
        self._virtual = start = self._starts.pop(flow)
        finish = start + cost
        if more:
            self._starts[flow] = finish
        elif self._starts:
            self._finishes[flow] = finish
        else:  # nobody waits: a new busy period begins, in which all are equal
            self._finishes.clear()
        if len(self._finishes) > 2 * len(self._starts) + 64:
            self._finishes = {one: at for one, at in self._finishes.items() if at > self._virtual}

    def end(self, flow: FlowT) -> None:
        """The only request of a flow left unserved; what it had paid before stays paid."""
        start = self._starts.pop(flow)
        if self._starts:
            self._finishes[flow] = start
        else:
            self._finishes.clear()


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[T]):
    """One request that waits."""

    key: str
    priority: Priority
    cost: float
    item: T


class _Class(Generic[T]):
    """The keys of one priority."""

    def __init__(self) -> None:
        self.tags: Tags[str] = Tags()
        self.queues: dict[str, deque[Ticket[T]]] = {}


class FairQueue(Generic[T]):
    """Requests that wait."""

    def __init__(self) -> None:
        self._tags: Tags[Priority] = Tags()
        self._classes: dict[Priority, _Class[T]] = {priority: _Class() for priority in PRIORITIES}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, key: str, priority: Priority, cost: float, item: T) -> Ticket[T]:
        """Let a request wait."""
        ticket = Ticket(key, priority, max(cost, 1.0), item)
        mine = self._classes[priority]
        if not mine.queues:
            self._tags.begin(priority)
        queue = mine.queues.get(key)
        if queue is None:
            mine.tags.begin(key)
            queue = mine.queues[key] = deque()
        queue.append(ticket)
        self._count += 1
        return ticket

    def pop(self) -> Ticket[T] | None:
        """Take the one whose turn it is."""
        if not self._count:
            return None
        priority = self._tags.first()
        mine = self._classes[priority]
        key = mine.tags.first()
        queue = mine.queues[key]
        ticket = queue.popleft()
        if not queue:
            del mine.queues[key]
        mine.tags.served(key, ticket.cost, more=bool(queue))
        self._tags.served(priority, ticket.cost / WEIGHTS[priority], more=bool(mine.queues))
        self._count -= 1
        return ticket

    def discard(self, ticket: Ticket[T]) -> None:
        """Take out a request that waits no longer; nothing happens where it had its turn."""
        mine = self._classes[ticket.priority]
        queue = mine.queues.get(ticket.key)
        if queue is None or ticket not in queue:
            return
        queue.remove(ticket)
        self._count -= 1
        if queue:
            return
        del mine.queues[ticket.key]
        mine.tags.end(ticket.key)
        if not mine.queues:
            self._tags.end(ticket.priority)

    def ahead_of(self, key: str, priority: Priority) -> float:
        """About how many would have their turn before a request of a key that came now, were all of one cost."""
        mine = self._classes[priority].queues
        own = len(mine.get(key, ()))
        keys = len(mine) + (key not in mine)
        ahead = 0.0
        for other, there in self._classes.items():
            share = WEIGHTS[other] * keys / (WEIGHTS[priority] * max(1, len(there.queues)))
            turns = (own + 1) * (1.0 if other == priority else share)
            queues = (queue for name, queue in there.queues.items() if (name, other) != (key, priority))
            ahead += sum(min(len(queue), turns) for queue in queues)
        return own + ahead
