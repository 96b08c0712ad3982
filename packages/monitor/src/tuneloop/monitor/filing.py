"""Acting on the policy: count the corrections, file the request, approve it where the policy says so, write down
what was done.

Every step can be cut off and done again: the idempotency key makes the second filing the first one, and a request
that was filed but not yet approved or noted is picked up by the next pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache, partial

from tuneloop.monitor.attacks import attacks_during
from tuneloop.monitor.following import in_vain
from tuneloop.monitor.late_corrections import LOOKED_UNTIL
from tuneloop.monitor.policy import File, Hold, decide
from tuneloop.monitor.raised import raised_still, reached_until
from tuneloop.monitor.reference import JUST_BEFORE
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import BAD_CORRECTIONS, OF_SERVING
from tuneloop.monitor.uncounted import Uncounted
from tuneloop.registry import Registry
from tuneloop.registry.corrections import CLOCKS_APART
from tuneloop.registry.episodes import noted
from tuneloop.registry.evidence import since_of
from tuneloop.registry.nouns import AlertEpisode, RetrainingRequest, RetrainingState, WindowScore
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.queue import new_request_id

BY = "monitor"


def pursue(registry: Registry, episode: AlertEpisode, settings: MonitorSettings, *, stopped: str = "") -> AlertEpisode:
    """Do what the policy asks for this open episode; returns the episode as it stands then.

    Args:
        registry, episode, settings: of whom. stopped: why no window of it is judged any more; empty: they are.
    """
    policy = registry.policies.get(episode.model, RetrainingPolicy)
    now = registry.clock()
    begun = since_of(episode) - JUST_BEFORE
    open_now = registry.episodes.all(episode.model, open_only=True).whole()
    attacks = attacks_during(registry, episode, open_now, begun, settings)
    spoilt = {  # what was recorded meanwhile is not learned from
        "there was an attack": attacks.until,
        "corrections were bad": reached_until(registry, episode.model, episode.version, BAD_CORRECTIONS, begun),
    }
    ends = {kind: end for kind, end in spoilt.items() if end is not None}
    what, spoilt_until = max(ends.items(), key=lambda end: end[1], default=("", None))
    since = begun if spoilt_until is None else max(begun, spoilt_until + JUST_BEFORE)
    until, by, ever = min(now, attacks.looked_until or now), None, None
    if settings.bad_corrections:
        judged, ever = _judged(registry, episode), since - CLOCKS_APART
        looked = datetime.fromisoformat(judged.detail[LOOKED_UNTIL]) if judged else ever
        until, by = min(until, judged.window_end if judged else since), min(looked, now)  # none yet: it learns nothing
    requests = registry.retraining.all(episode.model).whole()
    corrected = partial(registry.traffic.corrected, episode.model, since=since, until=until, by=by or now)
    found = partial(registry.traffic.left_out, episode.model, begun=begun, since=since, until=until, by=by)
    left_out = cache(lambda after: found(after=after))  # asked once: it reads
    judged_first = settings.bad_corrections or attacks.looked_until is not None
    decision = decide(
        episode,
        policy,
        requests,
        lambda after: left_out(after).counted,
        now,
        serving=_serving(open_now),
        attacks=attacks,
        in_vain=in_vain(registry, requests, episode),
        doubted=raised_still(registry, open_now, BAD_CORRECTIONS, settings),
        spoilt_until=spoilt_until,
        uncounted=Uncounted(left_out, what, judged_first, stopped),
    )
    if isinstance(decision, Hold):
        if episode.evidence.get("held") == decision.kind:
            return episode
        said = "retraining refused" if decision.refused else "no retraining yet"
        return _note(registry, episode, f"{said}: {decision.reason}", "episode.hold", held=decision.kind)
    request = (
        _file(registry, episode, decision, since=since, until=until, by=by, now=now, rows=corrected(after=ever))
        if isinstance(decision, File)
        else decision.request
    )
    if request.episode_id == episode.id:
        _approve(registry, request, policy)
        note = f"filed retraining {request.id} on {request.rows} corrections"
        if since > begun:
            note += f", all of what was asked after {since:%Y-%m-%d %H:%M:%S}Z: until then {what}"
    else:
        note = f"retraining {request.id} of another episode is under way"
    if episode.evidence.get("held") == request.id:
        return episode
    return _note(registry, episode, note, "episode.retraining", held=request.id)


def _file(
    registry: Registry,
    episode: AlertEpisode,
    decision: File,
    *,
    since: datetime,
    until: datetime,
    by: datetime | None,
    now: datetime,
    rows: int,
) -> RetrainingRequest:
    request = RetrainingRequest(
        id=new_request_id(),
        idempotency_key=decision.key,
        model=episode.model,
        base_version=episode.version,
        episode_id=episode.id,
        reason=decision.reason,
        window_start=since,
        window_end=until,
        rows=rows,
        recipe=decision.recipe,
        state=RetrainingState.PROPOSED,
        created_at=now,
        updated_at=now,
        judged_until=by,
    )
    return registry.retraining.file(request, by=BY)


def _approve(registry: Registry, request: RetrainingRequest, policy: RetrainingPolicy) -> None:
    # What a budget has sent back waits for a person: approving it goes beyond the budget.
    if policy.auto_approve and request.state == RetrainingState.PROPOSED and not request.held:
        registry.retraining.approve(request.id, by="policy", reason="auto_approve is on for this model")


def _judged(registry: Registry, episode: AlertEpisode) -> WindowScore | None:
    """The newest judgement of whether corrections are bad, if it looked at any or at there being too few to tell."""
    scores = registry.episodes.scores
    newest = scores(episode.model, version=episode.version, signal=BAD_CORRECTIONS, limit=1)
    return newest[0] if newest and LOOKED_UNTIL in newest[0].detail else None


def _serving(open_now: Sequence[AlertEpisode]) -> AlertEpisode | None:
    return next((episode for episode in open_now if episode.signal in OF_SERVING), None)


def _note(registry: Registry, episode: AlertEpisode, note: str, action: str, *, held: str) -> AlertEpisode:
    changed = noted(episode, note, registry.clock(), held=held)
    registry.episodes.update(episode, changed, by=BY, action=action)
    return changed
