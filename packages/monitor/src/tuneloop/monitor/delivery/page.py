"""What a page says, whatever its form: what, since when, how sure, examples, what changed before, what to do.

Pure. Texts of users come in redacted by `redact` and cut short; nothing else of a request leaves but the three words
that are asked for more often than before, and the names of the parts of the traffic that an alarm sits in. Those are
of closed sets, or our own names (engines, keys by the ids that we gave them), and stay as they are; any other is
redacted as texts are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tuneloop.monitor.fields import API_KEY, FIELDS
from tuneloop.monitor.signals import GUARD_BLOCKS, OF_SERVING, PERSONAL_DATA
from tuneloop.registry.deliveries.outbox import Delivery
from tuneloop.registry.deliveries.silences import Silence
from tuneloop.registry.evidence import (
    causes_of_evidence,
    changes_of_evidence,
    findings_of,
    listed_of,
    pages_too,
    since_of,
    slices_of,
    summary_of,
)
from tuneloop.registry.nouns import AlertEpisode, version_name
from tuneloop.registry.printing import one_line

Redact = Callable[[Sequence[str]], list[str]]  # texts without personal data, in their order
_EXAMPLE_CHARS = 200
_KEY_ID = re.compile(r"key_[0-9a-zA-Z]+")
_SLICES = 5  # of all signals together; each has its own
_SPARED = ("examples", "changes", "done", "slices", "causes")  # left out first where a page has to be short
_OF_ENGINES = ("engine", "served model", "load")  # what no training mends
_SAID = {"opened": "", "worse": "got worse: ", "acknowledged": "acknowledged: ", "resolved": "resolved: "}


@dataclass(frozen=True)
class Page:
    """One delivery in words; every text is one line."""

    delivery: str
    episode: str
    transition: str
    sequence: int
    model: str
    version: int
    signal: str
    severity: str
    state: str  # of the episode as it is delivered, which may be later than the transition
    title: str
    what: str
    since: datetime
    opened_at: datetime
    resolved_at: datetime | None
    sure: str
    causes: tuple[str, ...]  # the likeliest first
    examples: tuple[str, ...]
    changes: tuple[str, ...]  # just before it began
    done: tuple[str, ...]
    runbook: str
    next: tuple[str, ...]  # commands
    pages_too: tuple[str, ...] = ()  # signals that page by themselves and joined it when it was a page
    silenced: str = ""  # for what and until when, where it is told despite that
    despite: tuple[str, ...] = ()  # the causes it is told of then
    slices: tuple[str, ...] = ()  # the parts of the traffic it sits in: signal, field, value, how much of how many


def page_of(
    delivery: Delivery,
    episode: AlertEpisode,
    *,
    examples: int,
    redact: Redact,
    runbook_base: str = "",
    silence: Silence | None = None,
) -> Page:
    """The page of one delivery, of the episode as it stands."""
    evidence = episode.evidence
    what = one_line(summary_of(episode))
    budget = evidence.get("mean_run_length")
    texts, slices = _redacted(_questions(episode, examples), _slices(episode), redact)
    sure = f"one false alarm in {budget} records or more, over all signals of a model together" if budget else ""
    return Page(
        delivery=delivery.id,
        episode=episode.id,
        transition=delivery.transition,
        sequence=delivery.sequence,
        model=episode.model,
        version=episode.version,
        signal=episode.signal,
        severity=episode.severity,
        state=episode.state,
        title=f"[{episode.severity}] {_SAID[delivery.transition]}{what}"[:300],
        what=what,
        since=since_of(episode),
        opened_at=episode.opened_at,
        resolved_at=episode.resolved_at,
        sure=sure,
        causes=tuple(one_line(f"{kind}: {why}") for kind, why in causes_of_evidence(episode)),
        examples=tuple(one_line(text[:_EXAMPLE_CHARS]) for text in texts),
        changes=tuple(one_line(what) for what in changes_of_evidence(episode)),
        done=tuple(one_line(line) for line in episode.done[-5:]),
        runbook=f"{runbook_base}{episode.runbook}",
        next=tuple(next_commands(episode)),
        pages_too=tuple(pages_too(episode)),
        silenced="" if silence is None else _silenced_text(silence),
        despite=() if silence is None else tuple(sorted(silence.uncovered(episode))),
        slices=tuple(one_line(text[:_EXAMPLE_CHARS]) for text in slices),
    )


def next_commands(episode: AlertEpisode) -> Iterable[str]:
    """What to type now."""
    yield f"tuneloop alert show {episode.id}"
    if episode.state == "resolved":
        return
    kind, _ = next(iter(causes_of_evidence(episode)), ("", ""))
    if kind == "deploy":
        yield f"tuneloop route history {episode.model}"
    elif kind in _OF_ENGINES or (not kind and episode.signal in OF_SERVING):
        yield "tuneloop status"
    elif kind == "attack" or episode.signal in (PERSONAL_DATA, GUARD_BLOCKS):
        yield f"tuneloop guard policy {episode.model}"
    elif kind == "feedback":
        yield f"tuneloop feedback {episode.model}"
    elif kind == "bias":
        yield f"tuneloop bias check {version_name(episode.model, episode.version)}"
    else:
        yield "tuneloop retraining list"
    if episode.state == "open":
        yield f"tuneloop alert ack {episode.id} --by YOU"


def most_left_out(page: Page) -> int:
    """How many of its texts a page can do without; the runbook and what to type next are none of them."""
    return sum(len(getattr(page, name)) for name in _SPARED)


def text_lines(page: Page, left_out: int = 0) -> Iterable[str]:
    """The page for a reader, a line at a time; where it has to be short, without so many texts, which it says."""
    kept: dict[str, tuple[str, ...]] = {}
    spare = left_out
    for field in _SPARED:
        texts: tuple[str, ...] = getattr(page, field)
        kept[field] = texts[: max(len(texts) - spare, 0)]
        spare -= len(texts) - len(kept[field])
    yield page.what
    yield ""
    yield f"model      {version_name(page.model, page.version)}"
    yield f"state      {page.state}, {page.severity}"
    yield f"since      {page.since:%Y-%m-%d %H:%M:%S}Z"
    if page.resolved_at is not None:
        yield f"until      {page.resolved_at:%Y-%m-%d %H:%M:%S}Z"
    if page.silenced:
        yield f"silenced   {page.silenced}; told once all the same, of {', '.join(page.despite)}"
    if page.sure:
        yield f"how sure   {page.sure}"
    for name, texts in (
        ("slice", kept["slices"]),
        ("cause", kept["causes"]),
        ("example", kept["examples"]),
        ("before", kept["changes"]),
        ("done", kept["done"]),
    ):
        yield from (f"{name:<10} {text}" for text in texts)
    if left_out:
        yield f"left out   {left_out} more lines; `tuneloop alert show {page.episode}` has them"
    yield f"runbook    {page.runbook}"
    yield from (f"next       {command}" for command in page.next)


def _silenced_text(silence: Silence) -> str:
    until = f"until {silence.ends_at:%Y-%m-%d %H:%M:%S}Z (by {silence.by}: {silence.reason})"
    return one_line(f"for {silence.cause or 'what it was then'} {until}")


@dataclass(frozen=True)
class _Sits:
    """A part of the traffic that a signal sits in, and how much of it."""

    signal: str
    field: str
    value: str
    said: str

    @property
    def is_ours(self) -> bool:
        """Whether nobody outside can have chosen the value."""
        if self.field == API_KEY:
            return _KEY_ID.fullmatch(self.value) is not None
        return self.field in FIELDS


def _slices(episode: AlertEpisode) -> list[_Sits]:
    """The parts of the traffic that each signal sits in; the surest of each first."""
    lists = [
        [_Sits(signal, field, value, said) for field, value, said in slices_of(finding)]
        for signal, finding in findings_of(episode).items()
    ]
    places = range(max(map(len, lists), default=0))
    return [found[place] for place in places for found in lists if place < len(found)][:_SLICES]


def _redacted(texts: Sequence[str], slices: Sequence[_Sits], redact: Redact) -> tuple[list[str], list[str]]:
    """Both without personal data, in one go: it starts a process, so there has to be something to redact."""
    theirs = [sits.value for sits in slices if not sits.is_ours]
    given = [*texts, *theirs]
    found = redact(given) if given else []
    values = iter(found[len(texts) :])
    return found[: len(texts)], [
        f"{sits.signal}: {sits.field} {sits.value if sits.is_ours else next(values)}: {sits.said}" for sits in slices
    ]


def _questions(episode: AlertEpisode, most: int) -> list[str]:
    """One of each signal in turn, so that no signal's examples crowd out another's."""
    lists = [
        [text for example in listed_of(finding, "examples", "question") if (text := str(example["question"]))]
        for finding in findings_of(episode).values()
    ]
    found: list[str] = []
    for place in range(max((len(texts) for texts in lists), default=0)):
        found += [texts[place] for texts in lists if place < len(texts) and texts[place] not in found]
    return found[:most]
