"""What may have caused an episode, the likeliest first, from what its signals say and what changed before. Pure but
for `gather` and what it calls.

Rules, not odds: a cause counts for the signals it can explain, and the one that explains most of them leads. What
users ask does not depend on a deploy, so changed prompts are a drift; a change that came before the reference was
gathered is in the reference, so it explains no difference from it. A served model that is known to have changed
explains everything but what users ask. An attack that guards have caught explains whatever its time shows but
lateness: what they do not catch is asked and answered like any question. Bad corrections explain whatever is read from
corrections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from tuneloop.monitor.attacks import is_attack
from tuneloop.monitor.engines import of_model, said_of
from tuneloop.monitor.fields import ENGINE
from tuneloop.monitor.parity import unequal_group
from tuneloop.monitor.parity_pool import accepted_gap
from tuneloop.monitor.raised import alarmed_until, last_reached
from tuneloop.monitor.signals import (
    ANSWER_DRIFT,
    BAD_CORRECTIONS,
    BROKEN_ANSWERS,
    CORRECTION_BLEU,
    CORRECTION_PERPLEXITY,
    GUARD_BLOCKS,
    INJECTIONS,
    INVALID_FORMAT,
    LATENCY,
    PARITY,
    PERPLEXITIES,
    PERSONAL_DATA,
    PROMPT_DRIFT,
    QUALITIES,
    REFERENCE_BLEU,
    REFUSALS,
    REQUEST_RATE,
    SERVED_MODEL_CHANGE,
    SPEED,
    THUMBS_DOWN,
)
from tuneloop.registry import Registry
from tuneloop.registry.evidence import (
    causes_of_evidence,
    findings_of,
    listed_of,
    part_of,
    since_of,
    summary_of,
    window_of,
)
from tuneloop.registry.nouns import AlertEpisode, AuditEntry, EngineState, WindowScore

Kind = Literal["served model", "attack", "engine", "deploy", "bias", "drift", "feedback", "load"]
# Of causes that explain as much, the first leads.
ORDER: tuple[Kind, ...] = ("served model", "attack", "engine", "deploy", "bias", "feedback", "drift", "load")
SERVING: tuple[Kind, ...] = ("engine", "deploy", "load")  # what training cannot mend; a served model that changed
# forbids it too, but only while its own episode is open: `policy.decide` asks for that
ONE_ENGINE_ALPHA = 0.01  # of naming one that is no slower than the others: something has been raised already
_WINDOWS_OF_BIAS = 10  # read back for whom answers refuse: it may have grown too slowly for the first of them
_MOST_CHANGES = 10
_DEPLOYS = ("route.", "rollout.")
_POLICIES = ("policy.", "gate.", "guard.")
_WORSE = frozenset({THUMBS_DOWN, REFUSALS, BROKEN_ANSWERS, INVALID_FORMAT})
_ASKED = (PROMPT_DRIFT, REQUEST_RATE)  # whatever serves it
_OF_DEPLOYS = (*SPEED, REQUEST_RATE, SERVED_MODEL_CHANGE)  # at once, whenever the reference was gathered
_FOUND = (PERSONAL_DATA, GUARD_BLOCKS)
_OF_CORRECTIONS = (BAD_CORRECTIONS, CORRECTION_PERPLEXITY, CORRECTION_BLEU)
_OF_ANSWERS = (*PERPLEXITIES, *QUALITIES)  # what users ask makes these worse, and so does what answers them


@dataclass(frozen=True)
class Change:
    """Something that was changed, or is not as it should be, before an episode was seen."""

    at: str
    kind: Literal["deploy", "policy", "engine", "served model", "attack", "bias"]
    what: str


@dataclass(frozen=True)
class Cause:
    """One explanation and its reason."""

    kind: Kind
    why: str
    explains: tuple[str, ...]


def changes_before(
    model: str, entries: Iterable[AuditEntry], engines: Iterable[EngineState], until: datetime
) -> list[Change]:
    """What the audit log and the engines say, the newest first."""
    found = []
    for entry in entries:
        kind: Literal["deploy", "policy"] | None = None
        if entry.action.startswith(_DEPLOYS):
            kind = "deploy"
        elif entry.action.startswith(_POLICIES):
            kind = "policy"
        if kind is None or entry.at > until or not _is_of(model, entry.subject):
            continue
        split = entry.detail.get("split")
        said = "; ".join(str(part) for part in (split, entry.detail.get("reason")) if part)
        what = f"{entry.at:%Y-%m-%d %H:%M:%S}Z {entry.action} of {entry.subject} by {entry.actor}"
        found.append(Change(entry.at.isoformat(), kind, what + (f" ({said})" if said else "")))
    for engine in engines:
        if said := said_of(engine, until):
            what = f"{engine.at:%Y-%m-%d %H:%M:%S}Z engine {engine.id} {said}"
            found.append(Change(engine.at.isoformat(), "engine", what))
    return sorted(found, key=lambda change: change.at, reverse=True)[:_MOST_CHANGES]


def served_changes(model: str, version: int, episodes: Iterable[AlertEpisode]) -> list[Change]:
    """The open episodes that say that this version's served model changed."""
    return [
        Change(since_of(episode).isoformat(), "served model", f"{episode.id}: {summary_of(episode)}")
        for episode in episodes
        if (episode.model, episode.version, episode.signal) == (model, version, SERVED_MODEL_CHANGE)
        and episode.state != "resolved"
    ]


def _attacks_on(registry: Registry, episode: AlertEpisode, others: Iterable[AlertEpisode]) -> list[Change]:
    """The open episodes that say that guards catch more attacks on this model than they did, of those attacks that had
    begun when this episode last raised an alarm, and had not ended when it began: an episode stays open for some quiet
    windows more."""
    found = []
    for other in others:
        if other.id == episode.id or not is_attack(other):
            continue
        began = window_of(findings_of(other)[INJECTIONS])
        if began is not None and began[0] > alarmed_until(episode):
            continue
        reached = last_reached(registry, other.model, other.version, INJECTIONS, since_of(other))
        ended = len(reached) > 1 and reached[1].verdict != "not enough data"
        if not ended or max(score.window_end for score in reached) > since_of(episode):
            found.append(Change(since_of(other).isoformat(), "attack", f"{other.id}: {summary_of(other)}"))
    return found


def causes_of(episode: AlertEpisode, changes: Sequence[Change]) -> list[Cause]:
    """Every cause that explains a signal, the likeliest first; there is always one."""
    findings = findings_of(episode)
    signals = tuple(findings)
    before_reference = str(part_of(episode.evidence, "reference").get("to", ""))
    found = []
    moved = findings.get(SERVED_MODEL_CHANGE)
    known = [change for change in changes if change.kind == "served model"]
    by_served = tuple(s for s in signals if s not in _ASKED)
    if moved is not None:
        found.append(Cause("served model", _which_moved(part_of(moved, "engines")), (SERVED_MODEL_CHANGE,)))
    elif REFERENCE_BLEU in signals:
        why = "the version is the same and so are the questions: its weights, chat template or engine are not"
        found.append(Cause("served model", why, (REFERENCE_BLEU,)))
    elif known and by_served:
        found.append(Cause("served model", known[0].what, by_served))
    found += _attack_of(findings, changes)
    late = tuple(s for s in signals if s in SPEED)
    slow = slow_engine(part_of(findings.get(LATENCY, {}), "engines")) or _named_engine(findings)
    away = [change for change in changes if change.kind == "engine"]
    if late and (slow is not None or away):
        why = f"{slow} alone is slow" if slow is not None else away[0].what
        found.append(Cause("engine", why, late))
    deploys = [change for change in changes if change.kind == "deploy"]
    since = [change for change in deploys if change.at > before_reference]
    by_deploy = tuple(s for s in signals if (s in _OF_ANSWERS and since) or (s in _OF_DEPLOYS and deploys))
    if by_deploy:
        newest = (deploys if any(s in _OF_DEPLOYS for s in by_deploy) else since)[0]
        found.append(Cause("deploy", f"just before: {newest.what}", by_deploy))
    unequal = [change for change in changes if change.kind == "bias"]
    by_bias = tuple(s for s in signals if s in QUALITIES)
    if PARITY in signals:
        found.append(Cause("bias", str(findings[PARITY].get("worst", "")), by_bias))
    elif unequal and by_bias:
        found.append(Cause("bias", unequal[0].what, by_bias))
    asked = tuple(s for s in signals if s not in (INJECTIONS, BAD_CORRECTIONS))
    by_drift = asked if PROMPT_DRIFT in signals else tuple(s for s in signals if s in (*_OF_ANSWERS, *_FOUND))
    if by_drift:
        found.append(Cause("drift", _drift_why(by_drift), by_drift))
    if BAD_CORRECTIONS in signals:
        why = f"corrections that nothing can be learned from: {findings[BAD_CORRECTIONS].get('worst', '')}"
        found.append(Cause("feedback", why, tuple(s for s in signals if s in _OF_CORRECTIONS)))
    if not found:
        found.append(Cause("load", "nothing was changed just before, and no engine alone is slow", signals))
    return sorted(found, key=lambda cause: (-len(cause.explains), ORDER.index(cause.kind)))


def _attack_of(findings: Mapping[str, Mapping[str, Any]], changes: Sequence[Change]) -> list[Cause]:
    attacks = [change for change in changes if change.kind == "attack"]
    by_attack = tuple(s for s in findings if s not in (*SPEED, SERVED_MODEL_CHANGE))
    if INJECTIONS in findings:
        shares = {"reference": 0.0, "window": 0.0} | part_of(findings[INJECTIONS], "shares")
        why = f"guards caught {shares['window']:.0%} of what was asked, {shares['reference']:.0%} before"
        return [Cause("attack", why, by_attack)]
    return [Cause("attack", attacks[0].what, by_attack)] if attacks and by_attack else []


def _drift_why(explained_by_it: Sequence[str]) -> str:
    if PROMPT_DRIFT in explained_by_it:
        return "users ask other questions"
    if set(explained_by_it) <= set(_FOUND):
        return "what users ask holds more of what guards look for"
    if tuple(explained_by_it) == (ANSWER_DRIFT,):
        return "answers are other texts than before, though users ask what they asked"
    if any(signal in PERPLEXITIES for signal in explained_by_it):
        return "what users ask or want is harder than it was"
    return "answers fit what users ask less than before"


def _named_engine(findings: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The one engine that writes slower, or lets requests wait longer, than the others; late answers have their counts.
    Where several are named none is slow alone."""
    of_speed = [findings.get(signal, {}) for signal in SPEED if signal != LATENCY]
    parts = [part for finding in of_speed for part in listed_of(finding, "slices", "field", "value", "p_value")]
    named = {str(part["value"]) for part in parts if part["field"] == ENGINE}
    sure = any(part["field"] == ENGINE and part["p_value"] < ONE_ENGINE_ALPHA for part in parts)
    return named.pop() if sure and len(named) == 1 else None


def slow_engine(engines: Mapping[str, Sequence[int]]) -> str | None:
    """The one engine that is slower than the others together; `engines` has (slow, all) answers of each.

    Fisher's exact test, one-sided, of each engine against the others, at `ONE_ENGINE_ALPHA` over all of them.
    """
    if len(engines) < 2:
        return None
    from scipy.stats import hypergeom  # noqa: PLC0415 (slow to import, and only needed here)

    total, bad = sum(n for _, n in engines.values()), sum(slow for slow, _ in engines.values())
    p_values = {name: float(hypergeom.sf(slow - 1, total, bad, n)) for name, (slow, n) in engines.items()}
    name = min(p_values, key=lambda one: (p_values[one], one))
    return name if p_values[name] * len(engines) < ONE_ENGINE_ALPHA else None


def is_of_serving(episode: AlertEpisode) -> str | None:
    """Why training would not help, when the likeliest cause is how the model is served."""
    kind, why = next(iter(causes_of_evidence(episode)), ("", ""))
    return f"{kind}: {why}" if kind in SERVING else None


def by_attack(episode: AlertEpisode) -> bool:
    """Whether an attack is among its causes."""
    return any(kind == "attack" for kind, _ in causes_of_evidence(episode))


def is_of_bias(episode: AlertEpisode) -> str | None:
    """Why a person has to decide what is trained, when people are treated unequally, whatever else may be the cause."""
    return next((why for kind, why in causes_of_evidence(episode) if kind == "bias"), None)


def explained(episode: AlertEpisode, changes: Sequence[Change]) -> AlertEpisode:
    """The episode with its causes and with what changed before it; a page where a deploy has made answers worse, since
    somebody can take that back at once."""
    causes = causes_of(episode, changes)
    evidence = episode.evidence | {
        "causes": [asdict(cause) | {"explains": list(cause.explains)} for cause in causes],
        "changes": [asdict(change) for change in changes],
    }
    deployed = causes[0].kind == "deploy" and not _WORSE.isdisjoint(causes[0].explains)
    severity = "page" if deployed else episode.severity
    return episode.model_copy(update={"evidence": evidence, "severity": severity})


def gather(registry: Registry, episode: AlertEpisode, before_s: float, until: datetime) -> list[Change]:
    """What changed in the time before the episode began and until its newest window ended."""
    begin = since_of(episode) - timedelta(seconds=before_s)
    entries = registry.audit.about_model(episode.model, _DEPLOYS + _POLICIES, since=begin, until=until)
    known_engines = of_model(registry.fleet.engines(live_only=False), episode)
    engines = [engine for engine in known_engines if engine.at >= begin]
    still_open = registry.episodes.all(episode.model, open_only=True).whole()
    known = served_changes(episode.model, episode.version, still_open)
    known += _attacks_on(registry, episode, still_open)
    if accepted_gap(registry, episode.model, episode.version) is None:  # parity itself tells what is worse than that
        known += _bias_of(
            registry.episodes.scores(episode.model, version=episode.version, signal=REFUSALS, limit=_WINDOWS_OF_BIAS)
        )
    before = changes_before(episode.model, entries, engines, until)
    return [*(change for change in known if episode.signal != SERVED_MODEL_CHANGE), *before]


def _bias_of(scores: Iterable[WindowScore]) -> list[Change]:
    """Whom the newest windows' answers refuse, if it is one group of people more than others."""
    found = [score for score in scores if "groups" in score.detail]
    counts: dict[str, list[int]] = {}
    for score in found:
        for name, (hits, n) in score.detail["groups"].items():
            counts[name] = [counts.get(name, [0, 0])[0] + hits, counts.get(name, [0, 0])[1] + n]
    unequal = unequal_group(counts)
    if unequal is None:
        return []
    said = f"answers refuse one group of people more than others: {unequal}"
    return [Change(found[0].window_start.isoformat(), "bias", said)]


def _which_moved(engines: Mapping[str, Mapping[str, Any]]) -> str:
    moved = [name for name, found in engines.items() if found["alarm"]]
    if len(engines) < 2:
        return f"{', '.join(moved) or 'an engine'} serves something else under the version's name than at first"
    if len(moved) == len(engines):
        return f"all {len(engines)} engines serve something else under the version's name than at first"
    return f"{', '.join(moved)} of {len(engines)} engines: the others read as at first"


def _is_of(model: str, subject: str) -> bool:
    return subject in {model, "*"} or subject.startswith(f"{model}@")
