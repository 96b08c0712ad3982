"""Everything known of one version, gathered: what it was made of, by whom, what it reached, who let it in, where it
serves.

What MLflow cannot tell now is named and left out; the rest stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tuneloop.registry.errors import NotFound, Unavailable, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.hurry import LOOKUP_TIMEOUT_S, mlflow_within
from tuneloop.registry.nouns import Approval, GateReport, Noun, RetrainingRequest, Version
from tuneloop.registry.run_files import DATA, ENVIRONMENT, kept_json

T = TypeVar("T")


class Measure(Noun):
    """A figure of the version, with the ends of its 95 % interval where the run kept them."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


class Serving(Noun):
    """The version's arm in the route in force, and what engines say of it."""

    revision: int
    share_bp: int
    champion: bool
    overrides: int  # keys that were given it
    engines: dict[str, str]  # live engine → the adapter's state there
    gateways: tuple[str, ...]  # live gateways that apply this revision


class Lineage(Noun):
    """One version, looked at from every side."""

    version: Version
    measures: tuple[Measure, ...]
    data: dict[str, Any]  # what the run says of its data: `train` and `sets` with rows and digests, `dropped`, …
    environment: dict[str, Any]
    request: RetrainingRequest | None
    request_approved_by: str | None
    gate: GateReport | None
    decisions: tuple[Approval, ...]
    approver: str | None
    why_not: str | None
    serving: Serving | None
    not_known: tuple[str, ...]


def lineage_of(registry: Registry, model: str, number: int) -> Lineage:
    """Gather it.

    Raises:
        NotFound: there is no such version.
        Unavailable: the database or MLflow does not answer at all.
    """
    version = mlflow_within(registry, lambda: registry.versions.get(model, number), LOOKUP_TIMEOUT_S)
    missing: list[str] = []

    def asked(what: str, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return mlflow_within(registry, ask, LOOKUP_TIMEOUT_S)
        except (NotFound, Unavailable, Unreadable) as error:
            missing.append(f"{what}: {error}")
            return otherwise

    nothing: dict[str, Any] = {}
    no_figures: dict[str, float] = {}
    logged = asked("intervals", lambda: registry.versions.run_metrics(version.run_id), no_figures)
    data = asked("data", lambda: kept_json(registry, version, DATA), nothing)
    environment = asked("environment", lambda: kept_json(registry, version, ENVIRONMENT), nothing)
    request, approved_by = None, None
    if version.request_id is not None:
        try:
            request = registry.retraining.get(version.request_id)
            approved = registry.audit.entries(request.id, limit=1, action="retraining.approved")
            approved_by = approved[0].actor if approved else None
        except (NotFound, Unreadable) as error:
            missing.append(f"retraining request: {error}")
    approver = registry.gates.approver(model, number)
    decisions = registry.gates.decisions(model, number)
    missing += decisions.unreadable
    return Lineage(
        version=version,
        measures=tuple(_measures(version, logged)),
        data=data,
        environment=environment,
        request=request,
        request_approved_by=approved_by,
        gate=registry.gates.latest(model, number),
        decisions=tuple(decisions),
        approver=approver,
        why_not=None if approver else registry.gates.why_not(model, number),
        serving=_serving(registry, version),
        not_known=tuple(missing),
    )


def _measures(version: Version, logged: Mapping[str, float]) -> list[Measure]:
    return [
        Measure(name=name, value=value, low=logged.get(f"{name}.low"), high=logged.get(f"{name}.high"))
        for name, value in sorted(version.metrics.items())
    ]


def _serving(registry: Registry, version: Version) -> Serving | None:
    try:
        route = registry.routes.current(version.model)
    except NotFound:
        return None
    if version.version not in route.split:
        return None
    gateways = registry.fleet.gateways()
    return Serving(
        revision=route.revision,
        share_bp=route.split[version.version],
        champion=route.champion == version.version,
        overrides=sum(given == version.version for given in route.overrides.values()),
        engines={e.id: str(e.adapters[version.name]) for e in registry.fleet.engines() if version.name in e.adapters},
        gateways=tuple(g.id for g in gateways if g.applied.get(version.model) == route.revision),
    )
