"""From one answer back to what made it: request → route → version → run → data → retraining → episode → window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneloop.registry.errors import NotFound, Unavailable, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Feedback, Noun, RequestRecord, Version, version_name
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within
from tuneloop.registry.versions.run_files import DATA, kept_json

_MISSING = (NotFound, Unavailable, Unreadable)


class TraceStep(Noun):
    """One link of the chain."""

    kind: str
    id: str
    summary: str
    detail: dict[str, Any]


def trace(registry: Registry, request_id: str) -> list[TraceStep]:
    """The chain behind one request, as far as it goes: a first version has no retraining behind it.

    Raises:
        NotFound: the request is not on record.
    """
    record = registry.traffic.request(request_id)
    served = (
        "not served"
        if record.served_version is None
        else f"served by {version_name(record.model, record.served_version)}"
    )
    if record.engine is not None:
        served += f" on {record.engine}"
    opinions = [_opinion(one) for one in registry.traffic.feedback_for([record.id]).get(record.id, [])]
    said = f"; feedback: {'; '.join(map(_in_words, opinions))}" if opinions else ""
    steps = [
        TraceStep(
            kind="request",
            id=record.id,
            summary=f"{record.at:%Y-%m-%d %H:%M:%S} UTC, {record.status}, {record.total_ms:.0f} ms, {served}{said}",
            detail=record.model_dump(mode="json", exclude={"messages", "answer"}) | {"feedback": opinions},
        )
    ]
    steps += [_shadow_step(shadow) for shadow in registry.traffic.shadows_of(record.id)]
    if record.revision is not None:
        steps.append(_route_step(registry, record.model, record.revision))
    if record.served_version is None:
        return steps
    number = record.served_version
    try:
        version = mlflow_within(registry, lambda: registry.versions.get(record.model, number), LOOKUP_TIMEOUT_S)
    except _MISSING as error:
        name = version_name(record.model, number)
        return [*steps, _not_known("version", name, error)]
    return steps + _behind_version(registry, version)


def _opinion(feedback: Feedback) -> dict[str, Any]:
    """What counts of one, without anybody's words: of those only that there are some."""
    given = feedback.model_dump(mode="json", include={"at", "score", "thumb", "label"}, exclude_none=True)
    return given | {name: True for name in ("comment", "correction") if getattr(feedback, name)}


def _in_words(opinion: Mapping[str, Any]) -> str:
    parts = [name if one is True else f"{name} {one}" for name, one in opinion.items() if name != "at"]
    return ", ".join(parts)


def _not_known(kind: str, name: str, error: Exception) -> TraceStep:
    return TraceStep(kind=kind, id=name, summary=f"not known: {error}", detail={})


def _shadow_step(record: RequestRecord) -> TraceStep:
    version = "no version" if record.served_version is None else version_name(record.model, record.served_version)
    return TraceStep(
        kind="shadow",
        id=record.id,
        summary=f"a copy to {version}, {record.status}, {record.total_ms:.0f} ms, which nobody was given",
        detail=record.model_dump(mode="json", exclude={"messages", "answer"}),
    )


def _route_step(registry: Registry, model: str, revision: int) -> TraceStep:
    name = f"{model} revision {revision}"
    try:
        route = registry.routes.at(model, revision)
    except _MISSING as error:  # made before this database was, or damaged; the rest of the chain may still be told
        return _not_known("route", name, error)
    summary = f"{route.split_text}, by {route.by}: {route.reason}"
    return TraceStep(kind="route", id=name, summary=summary, detail=route.model_dump(mode="json"))


def _behind_version(registry: Registry, version: Version) -> list[TraceStep]:
    metrics, no_metrics = _asked(registry, lambda: registry.versions.run_metrics(version.run_id))
    manifest, no_manifest = _asked(registry, lambda: kept_json(registry, version, DATA))
    rows = "rows unknown" if version.known_rows is None else f"{version.known_rows} rows"
    parent = f", parent {version_name(version.model, version.parent)}" if version.parent else ""
    steps = [
        TraceStep(
            kind="version",
            id=version.name,
            summary=f"{version.kind} on {version.base} ({version.base_digest[:19]}…), "
            f"made {version.created_at:%Y-%m-%d %H:%M:%S} UTC{parent}",
            detail=version.model_dump(mode="json"),
        ),
        TraceStep(
            kind="run",
            id=version.run_id,
            summary=f"code {version.code_commit[:12]}, recipe {version.recipe_digest[:19]}…{no_metrics}",
            detail=metrics,
        ),
        TraceStep(
            kind="data",
            id=version.data_digest,
            summary=f"{rows}{no_manifest}",
            detail=manifest,
        ),
    ]
    if version.request_id is None:
        return steps
    return steps + _behind_request(registry, version.request_id)


def _behind_request(registry: Registry, request_id: str) -> list[TraceStep]:
    try:
        request = registry.retraining.get(request_id)
    except _MISSING as error:
        return [_not_known("retraining request", request_id, error)]
    steps = [
        TraceStep(
            kind="retraining request",
            id=request.id,
            summary=f"{request.state}: {request.reason} ({request.rows} corrections)",
            detail=request.model_dump(mode="json"),
        )
    ]
    return steps if request.episode_id is None else steps + _behind_episode(registry, request.episode_id)


def _behind_episode(registry: Registry, episode_id: str) -> list[TraceStep]:
    try:
        episode = registry.episodes.get(episode_id)
    except _MISSING as error:
        return [_not_known("alert episode", episode_id, error)]
    steps = [
        TraceStep(
            kind="alert episode",
            id=episode.id,
            summary=f"{episode.signal} of {version_name(episode.model, episode.version)}, {episode.state}, opened "
            f"{episode.opened_at:%Y-%m-%d %H:%M:%S} UTC",
            detail=episode.model_dump(mode="json"),
        )
    ]
    return [*steps, _window_step(registry, episode.windows[0])] if episode.windows else steps


def _window_step(registry: Registry, score_id: str) -> TraceStep:
    try:
        window = registry.episodes.score(score_id)
    except _MISSING as error:
        return _not_known("window", score_id, error)
    return TraceStep(
        kind="window",
        id=window.id,
        summary=f"{window.n} requests {window.window_start:%H:%M:%S}–{window.window_end:%H:%M:%S}: {window.signal} "
        f"{window.statistic:.4g} over {window.threshold:.4g}",
        detail=window.model_dump(mode="json"),
    )


def _asked(registry: Registry, ask: Callable[[], Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """What MLflow tells, and what to say where it does not: the rest of the chain may still be told."""
    try:
        return dict(mlflow_within(registry, ask, LOOKUP_TIMEOUT_S)), ""
    except _MISSING as error:
        return {}, f"; the rest is not known: {error}"
