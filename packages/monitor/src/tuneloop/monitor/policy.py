"""Whether an episode earns a retraining request now. Pure: everything it weighs is an argument.

Storms are stopped here: one open request per model, a cooldown between requests, enough fresh corrections to learn
from. What was trained and did not help backs off, whether it shipped or not: the cooldown doubles with each such
attempt, and only corrections that came after the last one's data count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneloop.monitor.attacks import Attacks
from tuneloop.monitor.causes import is_of_bias, is_of_serving
from tuneloop.monitor.raised import seen_since
from tuneloop.monitor.uncounted import Uncounted, told
from tuneloop.registry.evidence import findings_of, since_of, summary_of
from tuneloop.registry.nouns import AlertEpisode, RetrainingRequest, RetrainingState, version_name
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.queue import ENDED, idempotency_key

_TRIED = frozenset({RetrainingState.REJECTED, RetrainingState.FAILED})  # and not taken back, or left to expire
_LONGEST_S = 10 * 365 * 86_400.0  # no policy's cooldown is longer
_DOUBLINGS = 30  # more would not fit into a time
NO_ATTACKS = Attacks()
ALL_COUNT = Uncounted()
Corrected = Callable[[datetime | None], int]


@dataclass(frozen=True)
class Hold:
    """No request now; `kind` stays the same as long as the cause does, `reason` is for people."""

    kind: str
    reason: str
    refused: bool = False  # nothing is waited for


@dataclass(frozen=True)
class File:
    """A request is due."""

    key: str
    recipe: str
    reason: str


@dataclass(frozen=True)
class Pending:
    """A request of this model is already under way."""

    request: RetrainingRequest


def decide(
    episode: AlertEpisode,
    policy: RetrainingPolicy,
    requests: Sequence[RetrainingRequest],
    corrected: Corrected,
    now: datetime,
    *,
    serving: AlertEpisode | None = None,
    attacks: Attacks = NO_ATTACKS,
    in_vain: Sequence[RetrainingRequest] = (),
    doubted: AlertEpisode | None = None,
    spoilt_until: datetime | None = None,
    uncounted: Uncounted = ALL_COUNT,
) -> File | Hold | Pending:
    """File, hold or wait.

    Args:
        episode: an episode that is not resolved.
        policy: the model's policy in force.
        requests: every retraining request of the model, ended ones included.
        corrected: how many records since the episode's first window began a user corrected; given a time, after it.
            Asked last, where everything else allows a request: it reads.
        now: the time.
        serving: the open episode that says the served model changed while its version did not, if there is one.
        attacks: whether guards catch more attacks than before, and until when they did.
        in_vain: what shipped for earlier episodes of the same signals and did not help.
        doubted: the open episode that says that corrections are worse than they were, if there is one.
        spoilt_until: until when what was recorded is not learned from; None: all of what came since the episode began,
            or an attack ended, is.
        uncounted: what of the corrections does not count, and why; asked only where too few do.
    """
    held = (
        _held_by_others(episode, serving, attacks, doubted)
        or _held_by_cause(episode)
        or _held_by_policy(episode, policy)
        or _held_after_attack(episode, policy, attacks.until)
    )
    if held is not None:
        return held
    under_way = next((request for request in requests if request.state not in ENDED), None)
    if under_way is not None:
        return Pending(under_way)
    mine = [request for request in requests if request.episode_id == episode.id]
    failed = [request for request in mine if request.state in _TRIED]
    tried = sorted([*failed, *in_vain], key=lambda request: request.created_at)
    held = _held_by_a_person(mine) or _backs_off(tried, policy, now) or _held_by_past(requests, policy, now)
    if held is not None:
        return held
    learned = tried[-1].learns_until if tried else None
    rows = corrected(learned)
    if rows < policy.min_rows:
        begun = spoilt_until or max(since_of(episode), attacks.until or since_of(episode))
        last = tried[-1] if tried else None
        return _held_by_rows(rows, episode, policy, last, learned or begun, uncounted, spoilt_until)
    recipe = policy.recipe or version_name(episode.model, episode.version)
    data = episode.evidence.get("window_digest", episode.id)
    window = f"{data}/{len(mine)}"  # the attempt counts: a failed run may be asked for again
    key = idempotency_key(episode.model, episode.version, episode.id, window, recipe)
    return File(key, recipe, f"{' and '.join(_signals(episode, policy))}: {summary_of(episode)}")


def _held_by_rows(
    rows: int,
    episode: AlertEpisode,
    policy: RetrainingPolicy,
    tried: RetrainingRequest | None,
    since: datetime,
    uncounted: Uncounted,
    spoilt_until: datetime | None,
) -> Hold:
    """Too few corrections count: how many, why not the others, and what can be done."""
    said = f"{rows} of {policy.min_rows} corrections since {since:%Y-%m-%dT%H:%M:%S}Z"
    if tried is not None:
        said += f", until when {tried.id} learned," if tried.judged_until else f", when {tried.id} was filed,"
    found = uncounted.left_out(None if tried is None else tried.learns_until)
    version = version_name(episode.model, episode.version)
    others = told(
        found,
        version=version,
        tried=tried.id if tried else "an earlier one",
        spoilt=uncounted.spoilt,
        spoilt_until=spoilt_until,
    )
    said += " that can be learned from"
    said += f"; of the others {', '.join(others)}" if others else ""
    read = f"`tuneloop feedback {episode.model}` shows what users said"
    if uncounted.judged_first and uncounted.stopped:
        why = f"no more will count, since they are to be judged first, and {uncounted.stopped}"
        return Hold("not judged any more", f"{said}; {why}. Train by hand on what you have read: {read}", refused=True)
    if rows + found.unjudged >= policy.min_rows:
        return Hold("rows to be judged", f"{said}; it waits until the next window is judged, with these. {read}")
    least = f"`min_rows` in `tuneloop retraining policy {episode.model}` how many it takes"
    return Hold("rows", f"{said}; it waits for more. {read}, {least}")


def _signals(episode: AlertEpisode, policy: RetrainingPolicy) -> list[str]:
    return [signal for signal in findings_of(episode) if signal in policy.signals]


def _held_by_others(
    episode: AlertEpisode, serving: AlertEpisode | None, attacks: Attacks, doubted: AlertEpisode | None
) -> Hold | None:
    """What is open may be none of training's business, in this episode or beside it."""
    if serving is not None:
        what = "this episode" if serving.id == episode.id else serving.id
        why = f"what engines serve is not the version any more ({what} says so): that is repaired in serving"
        return Hold("serving", f"{why}, not by training")
    if (attack := attacks.on) is not None:
        what = "this episode" if attack.id == episode.id else attack.id
        why = f"{episode.model} is under attack ({what} says so): training would learn from it"
        return Hold("attack", f"{why}; it waits until guards catch no more than before")
    if doubted is not None:
        what = "this episode" if doubted.id == episode.id else doubted.id
        why = f"more corrections than before are such that nothing can be learned from them ({what} says so)"
        return Hold("corrections", f"{why}; it waits until they are what they were")
    return None


def _held_after_attack(episode: AlertEpisode, policy: RetrainingPolicy, until: datetime | None) -> Hold | None:
    """What was raised under an attack may be the attack's doing; what is raised after it is not."""
    if until is None or seen_since(episode, until, _signals(episode, policy)):
        return None
    why = f"the attack was over at {until:%Y-%m-%d %H:%M:%S}Z, and nothing was raised again since"
    return Hold("after an attack", f"{why}; it waits for what is seen without one")


def _held_by_policy(episode: AlertEpisode, policy: RetrainingPolicy) -> Hold | None:
    if not policy.enabled:
        return Hold("disabled", f"retraining of {episode.model} is switched off by its policy")
    if not _signals(episode, policy):
        return Hold("signal", f"the policy of {episode.model} retrains on {', '.join(policy.signals)} only")
    return None


def _held_by_cause(episode: AlertEpisode) -> Hold | None:
    """Training on what a bad deploy or a bad engine did would teach it."""
    why = is_of_serving(episode)
    if why is not None:
        said = f"the likeliest cause is how the model is served ({why})"
        return Hold("serving", f"{said}; put that right, no training does")
    if (bias := is_of_bias(episode)) is not None:
        return Hold("bias", f"{bias}; what is trained then is for a person to decide")
    return None


def _held_by_a_person(mine: Sequence[RetrainingRequest]) -> Hold | None:
    stopped = next((request for request in mine if _person_said_no(request)), None)
    if stopped is None:
        return None
    why = f"{stopped.id} for this episode was {stopped.state} ({stopped.outcome}); not asked for again"
    return Hold(str(stopped.state), why)


def _backs_off(tried: Sequence[RetrainingRequest], policy: RetrainingPolicy, now: datetime) -> Hold | None:
    """What was trained for this episode and did not ship, or shipped for one like it in vain, the oldest first: each
    doubles the cooldown."""
    if not tried:
        return None
    cooldown_s = min(policy.cooldown_s * 2 ** min(len(tried), _DOUBLINGS), _LONGEST_S)
    last, until = tried[-1], tried[-1].created_at + timedelta(seconds=cooldown_s)
    if now >= until:
        return None
    said = f"{last.id} did not help: {last.state}{f' ({last.outcome})' if last.outcome else ''}"
    shipped = sum(request.state == RetrainingState.SHIPPED for request in tried)
    counted = [f"{len(tried) - shipped} of this episode that did not ship"] if len(tried) > shipped else []
    counted += [f"{shipped} that shipped"] if shipped else []
    backs = f"after {' and '.join(counted)} the cooldown is {cooldown_s / 3600:g} h"
    return Hold("cooldown", f"{said}; {backs} and lasts until {until:%Y-%m-%d %H:%M:%S}Z")


def _held_by_past(requests: Sequence[RetrainingRequest], policy: RetrainingPolicy, now: datetime) -> Hold | None:
    newest = max(requests, key=lambda request: request.created_at, default=None)
    if newest is not None and now < (until := newest.created_at + timedelta(seconds=policy.cooldown_s)):
        return Hold("cooldown", f"{newest.id} is {newest.state}; the cooldown lasts until {until:%Y-%m-%d %H:%M:%S}Z")
    return None


def _person_said_no(request: RetrainingRequest) -> bool:
    """A gate or a rollout rejects what was made; what was made by nobody, a person has rejected."""
    rejected = request.state == RetrainingState.REJECTED and request.result_version is None
    return rejected or request.state == RetrainingState.CANCELLED
