"""Alert episodes, silences and deliveries, for people on call."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints

from tuneloop.registry import actions
from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.answers import Episode, PageOf
from tuneloop.registry.api.fields import (
    ID_PATTERN,
    Asked,
    Body,
    Caller,
    EpisodePath,
    Here,
    ModelQuery,
    SilencePath,
    needs,
)
from tuneloop.registry.deliveries.outbox import Delivery
from tuneloop.registry.deliveries.silences import LONGEST_S, Silence
from tuneloop.registry.episodes import shown_state
from tuneloop.registry.nouns import AlertEpisode, ModelName, ServingSignal, Signal

router = APIRouter(tags=["alerts"])
READ = needs(Permission.READ)
ALERTS = needs(Permission.ALERTS)
EpisodeId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


class Taken(Body):
    """What whoever takes or ends an episode says about it."""


class Quiet(Body):
    """What nothing is to be delivered of: one episode, or a model's, all or those of one signal."""

    for_s: float = Field(gt=0, le=LONGEST_S, allow_inf_nan=False, description="How long, in seconds.", examples=[7200])
    episode_id: EpisodeId | None = None
    model: ModelName | None = Field(None, examples=["bot"])
    signal: Signal | ServingSignal | None = Field(
        None, description="Of the model's only those in which nothing but this signal is seen."
    )


class Unquiet(Body):
    """Why a silence is over."""


@router.get("/alerts", dependencies=READ)
def list_alerts(
    here: Here,
    ask: Asked,
    model: ModelQuery = None,
    ended: Annotated[bool, Query(description="Resolved ones too.")] = False,
) -> PageOf[Episode]:
    """Alert episodes, the newest first, with examples as they are stored."""
    found = here.registry.episodes.page(ask, model, open_only=not ended)
    if model is not None and not found.items and ask.cursor is None:
        here.registry.check_model(model)
    return PageOf[Episode](items=_shown(here, *found.items), next=found.next, unreadable=found.unreadable)


@router.get("/alerts/{episode_id}", dependencies=READ)
def get_alert(episode_id: EpisodePath, here: Here) -> Episode:
    """One episode: what happened, how sure, which examples, what was done."""
    return _shown(here, here.registry.episodes.get(episode_id))[0]


@router.post("/alerts/{episode_id}/acknowledge", dependencies=ALERTS)
def acknowledge_alert(episode_id: EpisodePath, body: Taken, here: Here) -> Episode:
    """Say that you are on it; `reason` is what you are doing about it."""
    return _shown(here, here.registry.episodes.acknowledge(episode_id, by=here.actor, note=body.reason))[0]


@router.post("/alerts/{episode_id}/resolve", dependencies=ALERTS)
def resolve_alert(episode_id: EpisodePath, body: Taken, here: Here) -> Episode:
    """End an episode by hand; a new alarm opens a new one."""
    return _shown(here, here.registry.episodes.resolve(episode_id, by=here.actor, reason=body.reason))[0]


@router.get("/silences", dependencies=READ)
def list_silences(
    here: Here, ask: Asked, ended: Annotated[bool, Query(description="Ended ones too.")] = False
) -> PageOf[Silence]:
    """What is silenced, until when, by whom and why, the newest first."""
    return PageOf[Silence].of(here.registry.silences.page(ask, active_only=not ended))


@router.post("/silences", dependencies=ALERTS, status_code=201)
def silence_alerts(body: Quiet, here: Here) -> Silence:
    """Have nothing delivered for a while; it is recorded all the same, and told afterwards if it is still open."""
    return actions.silence(
        here.registry,
        body.for_s,
        by=here.actor,
        reason=body.reason,
        model=body.model,
        episode_id=body.episode_id,
        signal=body.signal,
    )


@router.post("/silences/{silence_id}/revoke", dependencies=ALERTS)
def end_silence(silence_id: SilencePath, body: Unquiet, here: Here) -> Silence:
    """End a silence now; what is open then is delivered."""
    return here.registry.silences.revoke(silence_id, by=here.actor, reason=body.reason)


@router.get("/deliveries", dependencies=READ)
def list_deliveries(
    here: Here,
    ask: Asked,
    episode: Annotated[str | None, Query(pattern=ID_PATTERN, description="Only of this episode.")] = None,
) -> PageOf[Delivery]:
    """What was delivered to whom, what waits, and why, the newest first."""
    found = here.registry.outbox.page(ask, episode)
    if episode is not None and not found.items and ask.cursor is None:
        here.registry.episodes.get(episode)  # raises where there is no such episode
    return PageOf[Delivery].of(found)


def _shown(here: Caller, *found: AlertEpisode) -> tuple[Episode, ...]:
    silences, now = here.registry.silences.all(active_only=True), here.registry.clock()
    return tuple(Episode(**dict(one), shown_as=shown_state(one, silences, now)) for one in found)
