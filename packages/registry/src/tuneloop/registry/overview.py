"""What somebody wants to see at once, gathered from several stores: the same for the verbs and the control plane."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.registry.errors import Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import (
    AlertEpisode,
    AuditEntry,
    EngineState,
    GateReport,
    GatewayState,
    Noun,
    RetrainingRequest,
    RetrainingRun,
    Route,
    Verdict,
    Version,
)
from tuneloop.registry.paging import Ask, Page, cursor_at
from tuneloop.registry.policies import RolloutPolicy
from tuneloop.registry.rollouts.advancing import judged as judged_now
from tuneloop.registry.rollouts.advancing import not_judged
from tuneloop.registry.rollouts.judging import judgement, trial_of
from tuneloop.registry.rollouts.rollout import OPEN, Rollout
from tuneloop.registry.routes.shadowing import ShadowNow
from tuneloop.registry.routes.shadowing import shadow_now as shadow_of
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

_MODELS = "models"
MOST_ENTRIES = 100  # of a request's history


class ModelLine(Noun):
    """A model, and who serves it."""

    model: str
    newest_version: int | None
    split_bp: str | None
    revision: int | None


class Judged(Noun):
    """How a version was judged, and whether it may get a share."""

    report: GateReport | None  # None: no gate has judged it
    verdict: Verdict | None
    approver: str | None  # who lets it in: a person, a token, or `gate`
    why_not: str | None  # why nobody does


class RouteNow(Noun):
    """The route in force, and the revision that each live gateway applies."""

    route: Route
    gateways: dict[str, int | None]
    unreadable: tuple[str, ...]


class RolloutNow(Noun):
    """A model's open rollout, and its running canary judged as it stands now."""

    route: Route
    rollout: Rollout | None  # None: none is open
    report: GateReport | None  # None: no canary is running
    verdict: Verdict | None
    own_limits: bool  # of the rollout that set the canary's share; otherwise no rollout did, and the policy's are taken
    taken_over: int = 0  # within an hour, its lease from controllers that had not let go of it


class RequestHistory(Noun):
    """A retraining request and what happened to it."""

    request: RetrainingRequest
    history: tuple[AuditEntry, ...]  # the oldest first; of more than a hundred the newest
    earlier: bool  # whether there are entries before these, which the audit log of the request's id has
    runs: tuple[RetrainingRun, ...]  # the oldest first
    unreadable: tuple[str, ...]


class Status(Noun):
    """Routes, what is alive, and what is open."""

    routes: tuple[Route, ...]
    engines: tuple[EngineState, ...]
    gateways: tuple[GatewayState, ...]
    alerts: tuple[AlertEpisode, ...]
    retraining: tuple[RetrainingRequest, ...]
    rollouts: tuple[Rollout, ...]
    unreadable: tuple[str, ...]


def models(registry: Registry) -> list[ModelLine]:
    """Every registered model, by name."""
    return _model_lines(registry, _model_names(registry))


def models_page(registry: Registry, ask: Ask) -> Page[ModelLine]:
    """The same, page by page."""
    after = ask.after(_MODELS, str)
    names = [name for name in _model_names(registry) if after is None or name > after[0]]
    shown = names[: ask.limit]
    following = cursor_at(_MODELS, shown[-1:]) if len(names) > len(shown) else None
    return Page(_model_lines(registry, shown), following)


def versions_page(registry: Registry, model: str, ask: Ask) -> Page[Version]:
    """A model's versions, the newest first.

    Raises:
        NotFound: there is no such model.
        Unavailable: MLflow does not answer within a few seconds.
    """
    found = mlflow_within(registry, lambda: registry.versions.page(model, ask), LOOKUP_TIMEOUT_S)
    if not found.items and ask.cursor is None:
        version(registry, model, 1)  # raises with the names that exist
    return found


def version(registry: Registry, model: str, number: int) -> Version:
    """One version.

    Raises:
        NotFound: it does not exist.
        Unavailable: MLflow does not answer within a few seconds.
    """
    return mlflow_within(registry, lambda: registry.versions.get(model, number), LOOKUP_TIMEOUT_S)


def judged(registry: Registry, model: str, number: int) -> Judged:
    """How a version was judged.

    Raises:
        NotFound: it does not exist.
    """
    version(registry, model, number)
    report, approver = registry.gates.latest(model, number), registry.gates.approver(model, number)
    return Judged(
        report=report,
        verdict=report.verdict if report else None,
        approver=approver,
        why_not=None if approver else registry.gates.why_not(model, number),
    )


def route_now(registry: Registry, model: str) -> RouteNow:
    """A model's route and who follows it.

    Raises:
        NotFound: it has none.
    """
    route, gateways = registry.route(model), registry.fleet.gateways()
    applied = {gateway.id: gateway.applied.get(model) for gateway in gateways}
    return RouteNow(route=route, gateways=applied, unreadable=gateways.unreadable)


def shadow_now(registry: Registry, model: str) -> ShadowNow:
    """A model's shadow beside the live answers to the same requests; reads thousands of records.

    Raises:
        NotFound: it has no route.
    """
    return shadow_of(registry, registry.routes.current(model))


def canary_of(route: Route) -> int | None:
    """The version whose share a rollout would raise or take away; None: no canary is running."""
    running = [arm.version for arm in route.arms[:-1] if arm.weight_bp > 0]
    return running[-1] if running else None


def rollout_now(registry: Registry, model: str) -> RolloutNow:
    """The open rollout, and the running canary's judgement.

    Raises:
        NotFound: the model has no route.
    """
    route, there = registry.route(model), registry.rollouts.open(model)
    number, taken_over = canary_of(route), registry.rollouts.taken_over(there) if there else 0
    if number is None:
        return RolloutNow(
            route=route, rollout=there, report=None, verdict=None, own_limits=False, taken_over=taken_over
        )
    own = there if there is not None and there.version == number and there.step is not None else None
    try:
        report = judged_now(registry, own) if own is not None else _by_policy(registry, model, number)
    except Unreadable as error:  # what else there is to know is told all the same
        report = not_judged(model, number, route.champion, registry.clock(), str(error))
    verdict = report.verdict if report else None
    return RolloutNow(
        route=route,
        rollout=there,
        report=report,
        verdict=verdict,
        own_limits=own is not None,
        taken_over=taken_over,
    )


def _by_policy(registry: Registry, model: str, number: int) -> GateReport:
    """The judgement of a share that no rollout set."""
    limits = registry.policies.get(model, RolloutPolicy).limits
    return judgement(registry, model, number, limits, trial_of(registry, model, number))


def request_history(registry: Registry, request_id: str) -> RequestHistory:
    """A retraining request with its audit entries and its runs.

    Raises:
        NotFound: there is none of that id.
    """
    request, entries = registry.retraining.get(request_id), registry.audit.entries(request_id, limit=MOST_ENTRIES + 1)
    earlier = len(entries) > MOST_ENTRIES
    del entries[MOST_ENTRIES:]
    runs = registry.retraining.runs(request_id=request_id)
    unreadable = (*entries.unreadable, *runs.unreadable)
    return RequestHistory(
        request=request,
        history=tuple(entries[::-1]),
        earlier=earlier,
        runs=tuple(runs[::-1]),
        unreadable=unreadable,
    )


def status(registry: Registry) -> tuple[Status, dict[str, str]]:
    """The state of everything, and the models whose route cannot be read with why."""
    routes = registry.routes.current_all()
    engines, gateways = registry.fleet.engines(), registry.fleet.gateways()
    alerts, requests = registry.episodes.all(open_only=True), registry.retraining.all(open_only=True)
    rollouts = registry.rollouts.all(states=OPEN)
    rows = [row for found in (engines, gateways, alerts, requests, rollouts) for row in found.unreadable]
    now = Status(
        routes=tuple(routes.values()),
        engines=tuple(engines),
        gateways=tuple(gateways),
        alerts=tuple(alerts),
        retraining=tuple(requests),
        rollouts=tuple(rollouts),
        unreadable=(*routes.unreadable.values(), *rows),
    )
    return now, routes.unreadable


def _model_names(registry: Registry) -> list[str]:
    return mlflow_within(registry, registry.versions.models, LOOKUP_TIMEOUT_S)


def _model_lines(registry: Registry, names: Sequence[str]) -> list[ModelLine]:
    routes = registry.routes.current_all()
    newest = mlflow_within(registry, lambda: registry.versions.newest_of(names), LOOKUP_TIMEOUT_S)
    return [
        ModelLine(
            model=name,
            newest_version=newest.get(name),
            split_bp=route.split_text if route else None,
            revision=route.revision if route else None,
        )
        for name, route in ((name, routes.get(name)) for name in names)
    ]
