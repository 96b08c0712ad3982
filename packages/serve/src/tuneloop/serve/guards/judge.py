"""`Guards.judge`: every guard of a policy over one text.

Deterministic but for the clock that `ms` is read from. What is matched is a folded copy; the text itself is changed by
redaction alone, and only in the verdict.
Secrets and personal data are looked for in the text as it stands, not in decoded readings.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from tuneloop.registry.guard_policy import GuardAction, GuardPolicy
from tuneloop.serve.guards import classifier, rules, secrets
from tuneloop.serve.guards.concepts import sentences
from tuneloop.serve.guards.topics import OFF_TOPIC, Topics, words_of
from tuneloop.serve.guards.verdict import Outcome, Reason, Verdict, replaced
from tuneloop.serve.guards.views import Reading, readings

_ORDER: tuple[Outcome, ...] = ("allow", "sample", "flag", "redact", "block")
WARM_UP = "Warm up: write to ada@example.com, or +44 20 7946 0958."  # makes every guard load what it needs
_SUREST = 0.9999  # of the classifier, so that `block_from: 1` never blocks
# No entity the policy knows is without one of these; Presidio costs milliseconds a text and seconds the first time.
# Between the digits of a telephone number stands what libphonenumber takes for punctuation.
_MAY_BE_PERSONAL = re.compile(
    r"@|\d(?:[\s()\[\].\-/~x\xad\u200b\u2010-\u2015\u2053\u2060\u2212\u223c\u30fc\uff08\uff09\uff0d-\uff0f\uff3b\uff3d\uff5e]{0,4}\d){6}"
    r"|\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{0,4}::?[0-9a-fA-F]{1,4}:|[A-Z]{2}\d{2}"
    r"|\b(?:[13]|bc1)[a-zA-Z0-9]{24}"
)


class Guards:
    """The guards of one policy. Making one reads the classifier (2 ms); judging touches nothing outside."""

    def __init__(self, policy: GuardPolicy | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` gives seconds."""
        self.policy = policy or GuardPolicy()
        self._clock = clock
        self._classifier = classifier.load()
        topics = self.policy.topics if self.policy.topics and self.policy.topics.action != "off" else None
        self._topics = None if topics is None else (topics, Topics(topics.deny), Topics(topics.allow))

    def judge(self, text: str) -> Verdict:
        """What is to be done with a text of a user, a document or a tool."""
        began, policy = self._clock(), self.policy
        looked_at = text[: policy.max_characters]
        found = list(self._length(text))
        read: Iterable[Reading] = readings(looked_at, decode=policy.decode)
        if self._topics is not None:
            read = list(read)  # looked through twice
        score, attacks = self._injection(looked_at, read)
        found += attacks
        found += self._secrets(looked_at)
        found += self._personal(looked_at)
        found += self._spoken_of(looked_at, read)
        kept = tuple(reason for reason in found if reason.action != "off")
        action = max((_outcome(reason.action) for reason in kept), key=_ORDER.index, default="allow")
        redacted = _redacted(text, kept) if action == "redact" else None
        ms = round((self._clock() - began) * 1000, 3)
        return Verdict(action=action, reasons=kept, score=round(score, 4), ms=ms, redacted=redacted)

    def score(self, text: str) -> float:
        """The score alone: 0–1, how likely the text is an attack."""
        looked_at = text[: self.policy.max_characters]
        return self._injection(looked_at, readings(looked_at, decode=self.policy.decode))[0]

    def _length(self, text: str) -> Iterator[Reason]:
        most = self.policy.max_characters
        if len(text) > most:
            kind = f"{len(text)} characters; {most} are looked at"
            yield Reason(guard="length", kind=kind, action=self.policy.length, score=1, start=most, end=len(text))

    def _injection(self, text: str, read: Iterable[Reading]) -> tuple[float, list[Reason]]:
        if self.policy.injection == "off" and self.policy.hidden == "off":
            return 0.0, []
        score, found = 0.0, list[Reason]()
        known = classifier.Known()
        for reading in read:
            if reading.hidden:
                reason = Reason(
                    guard="hidden", kind=reading.name, action=self.policy.hidden, score=1, view=reading.name
                )
                found.append(reason)
            here = self._attacks(reading, len(text), known) if self.policy.injection != "off" else []
            score = max([score, *(reason.score for reason in here)])
            found += [one for one in here if one.action != "off"]
            if score >= self.policy.block_from:
                break  # nothing that follows changes the verdict
        return score, found

    def _attacks(self, reading: Reading, characters: int, known: classifier.Known) -> list[Reason]:
        if reading.text in known.unmarked:
            return []  # it is read in another way, and every sentence of it was judged
        parts = sentences(reading.text, known.tagged)
        marked = rules.marks(reading.text)
        if not marked:
            known.unmarked.add(reading.text)
        # Folding may change the length; then places in the folded text are none in the text.
        in_place = reading.name == "text" and len(reading.text) == characters
        windows = classifier.windows(parts, marked, known)
        found = [
            self._reason(hit.rule, rules.RULE_SCORE, reading, (hit.start, hit.end) if in_place else None)
            for hit in rules.matches(parts, marked, known.seen)
            if not self._doubted(hit, windows)
        ]
        known.seen.update(part.tokens for part in parts)
        value, window = self._classifier.best(windows, known)
        if window is not None:
            where = (window.start, window.end) if in_place else None
            score = min(round(self._classifier.score(value), 4), _SUREST)
            found.append(self._reason("classifier", score, reading, where))
        return found

    def _doubted(self, hit: rules.Hit, windows: Sequence[classifier.Window]) -> bool:
        """Whether neither the words right around a hit nor the sentences do look like an attack to the classifier.

        Those right around it count by themselves: else benign words in the same sentence would outvote a rule.
        """
        near = classifier.windows([hit.near], ()) if hit.near else []
        best = self._classifier.best
        return self._classifier.doubts(max(best(near)[0], best(_around(windows, hit))[0]))

    def _reason(self, kind: str, score: float, reading: Reading, span: tuple[int, int] | None) -> Reason:
        policy = self.policy
        action: GuardAction = policy.injection if score >= policy.block_from else "off"
        if action == "off" and policy.flag_from is not None and score >= policy.flag_from:
            action = "sample" if policy.injection == "sample" else "flag"
        start, end = span or (None, None)
        return Reason(guard="injection", kind=kind, action=action, score=score, view=reading.name, start=start, end=end)

    def _secrets(self, text: str) -> Iterator[Reason]:
        if self.policy.secrets != "off":
            for one in secrets.find(text):
                yield Reason(
                    guard="secrets", kind=one.kind, action=self.policy.secrets, score=1, start=one.start, end=one.end
                )

    def _personal(self, text: str) -> Iterator[Reason]:
        if self.policy.personal == "off" or not may_be_personal(text):
            return
        from tuneloop.registry.redaction import find  # noqa: PLC0415 (Presidio: seconds and 120 MB, for who needs it)

        for one in find(text, self.policy.entities):
            yield Reason(
                guard="personal",
                kind=one.entity,
                action=self.policy.personal,
                score=round(one.score, 2),
                start=one.start,
                end=one.end,
            )

    def _spoken_of(self, text: str, read: Iterable[Reading]) -> Iterator[Reason]:
        if self._topics is None:
            return
        topics, denied, allowed = self._topics
        told, on_topic = set[str](), not topics.allow or words_of(text) < topics.least_words
        for reading in read:
            for topic in denied.spoken_of(reading.text):
                if topic not in told:
                    told.add(topic)
                    yield Reason(guard="topics", kind=topic, action=topics.action, score=1, view=reading.name)
            on_topic = on_topic or (reading.name == "text" and bool(allowed.spoken_of(reading.text)))
        if not on_topic:
            yield Reason(guard="topics", kind=OFF_TOPIC, action=topics.action, score=1)


def _around(windows: Sequence[classifier.Window], hit: rules.Hit) -> list[classifier.Window]:
    return [window for window in windows if window.start <= hit.end and hit.start <= window.end]


def may_be_personal(text: str) -> bool:
    """Whether Presidio need be asked at all."""
    return _MAY_BE_PERSONAL.search(text) is not None


def _outcome(action: GuardAction) -> Outcome:
    return "allow" if action == "off" else action


def _redacted(text: str, reasons: Sequence[Reason]) -> str:
    found = (reason for reason in reasons if reason.action == "redact")
    return replaced(text, ((r.start, r.end, r.kind) for r in found if r.start is not None and r.end is not None))
