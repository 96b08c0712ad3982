"""Everything known of one version, gathered: what it was made of, by whom, what it reached, who let it in, where it
serves.

What MLflow cannot tell now, and what cannot be read, is named and left out; the rest stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self, TypeVar

from pydantic import ValidationError

from tuneloop.registry.database import faults
from tuneloop.registry.errors import NotFound, Unavailable, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Approval, AuditEntry, GateReport, Noun, RetrainingRequest, Version
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within
from tuneloop.registry.versions.kept import Kept, KeptCheck, KeptData, KeptEnvironment
from tuneloop.registry.versions.run_files import BIAS, DATA, ENVIRONMENT, kept_json, model_card

T = TypeVar("T")
KeptT = TypeVar("KeptT", bound=Kept)


class MeasuredMetric(Noun):
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


class RunKept(Noun):
    """One version, and what its run keeps of it that says how two differ."""

    version: Version
    measures: tuple[MeasuredMetric, ...]
    environment: KeptEnvironment
    bias: KeptCheck
    not_known: tuple[str, ...]


class ComparedVersion(Version):
    """One side of a comparison: a version, with what its run keeps that says how it differs."""

    measures: tuple[MeasuredMetric, ...]
    environment: KeptEnvironment
    bias: KeptCheck
    not_known: tuple[str, ...]

    @classmethod
    def of(cls, kept: RunKept) -> Self:
        """The same, flat."""
        beside = {name: getattr(kept, name) for name in RunKept.model_fields if name != "version"}
        return cls(**dict(kept.version), **beside)


class Card(Noun):
    """The model card as it was published, and what was found of bias since."""

    version: str
    card: str
    bias: KeptCheck
    not_known: tuple[str, ...]

    @property
    def text(self) -> str:
        """As Markdown."""
        if self.bias.at is None:
            return self.card
        found = "\n".join(f"- {one.text}" for one in self.bias.attributes)
        return f"{self.card.rstrip()}\n\n## Bias\n\nC{self.bias.against[1:]}.\n\n{found}\n"


class Lineage(RunKept):
    """One version, looked at from every side."""

    data: KeptData
    request: RetrainingRequest | None
    request_approved_by: str | None
    gate: GateReport | None
    decisions: tuple[Approval, ...]
    approver: str | None
    why_not: str | None  # None with no approver: not known
    routed: bool | None  # whether the route in force names it; None: not known
    serving: Serving | None


class _Asked:
    """Asks, and notes what could not be told."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.missing: list[str] = []

    def mlflow(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """What MLflow says, within a time; an outage of it is noted like the rest."""
        try:
            return mlflow_within(self._registry, ask, LOOKUP_TIMEOUT_S)
        except (NotFound, Unavailable, Unreadable) as error:
            self.missing.append(f"{what}: {error}")
            return otherwise

    def database(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """What the database says; without it nothing is known, so an outage is no gap but the end."""
        try:
            return ask()
        except (NotFound, Unreadable) as error:
            self.missing.append(f"{what}: {error}")
            return otherwise


def lineage_of(registry: Registry, model: str, number: int) -> Lineage:
    """Gather it.

    Raises:
        NotFound: there is no such version.
        Unavailable: the database or MLflow does not answer at all.
    """
    version = mlflow_within(registry, lambda: registry.versions.get(model, number), LOOKUP_TIMEOUT_S)
    asked = _Asked(registry)
    nobody: tuple[str | None, str | None] = (None, None)
    nowhere: tuple[bool | None, Serving | None] = (None, None)
    kept = _run_kept(registry, version, asked)
    request = asked.database("retraining request", lambda: _request(registry, version), None)
    decisions = registry.gates.decisions(model, number)
    asked.missing += decisions.unreadable
    routed, serving = asked.database("serves", lambda: _serving(registry, version, asked.missing), nowhere)
    approver, why_not = asked.database("whether it may get a share", lambda: _let_in(registry, version), nobody)
    return Lineage(
        version=version,
        measures=kept.measures,
        environment=kept.environment,
        bias=kept.bias,
        data=asked.mlflow("data", lambda: _kept(registry, version, DATA, KeptData), KeptData()),
        request=request,
        request_approved_by=_approved_by(registry, request),
        gate=asked.database("gate", lambda: registry.gates.latest(model, number), None),
        decisions=tuple(decisions),
        approver=approver,
        why_not=why_not,
        routed=routed,
        serving=serving,
        not_known=tuple(asked.missing),
    )


def run_kept(registry: Registry, model: str, number: int) -> RunKept:
    """A version beside another: what its run keeps, as far as MLflow tells it now.

    Raises:
        NotFound: there is no such version.
        Unavailable: MLflow does not answer at all.
    """
    version = mlflow_within(registry, lambda: registry.versions.get(model, number), LOOKUP_TIMEOUT_S)
    return _run_kept(registry, version, _Asked(registry))


def card_of(registry: Registry, model: str, number: int) -> Card:
    """A version's card.

    Raises:
        NotFound: there is no such version, or it was published without a card.
        Unavailable: MLflow does not answer.
        Unreadable: the card is no text.
    """

    def ask() -> tuple[Version, str]:
        version = registry.versions.get(model, number)
        return version, model_card(registry, version)

    version, published = mlflow_within(registry, ask, LOOKUP_TIMEOUT_S)
    asked = _Asked(registry)
    bias = asked.mlflow("bias", lambda: _kept(registry, version, BIAS, KeptCheck), KeptCheck())
    return Card(version=version.name, card=published, bias=bias, not_known=tuple(asked.missing))


def _run_kept(registry: Registry, version: Version, asked: _Asked) -> RunKept:
    no_figures: dict[str, float] = {}
    logged = asked.mlflow("intervals", lambda: registry.versions.run_metrics(version.run_id), no_figures)
    environment = asked.mlflow(
        "environment", lambda: _kept(registry, version, ENVIRONMENT, KeptEnvironment), KeptEnvironment()
    )
    bias = asked.mlflow("bias", lambda: _kept(registry, version, BIAS, KeptCheck), KeptCheck())
    return RunKept(
        version=version,
        measures=tuple(_measures(version, logged)),
        environment=environment,
        bias=bias,
        not_known=tuple(asked.missing),
    )


def _kept(registry: Registry, version: Version, name: str, kind: type[KeptT]) -> KeptT:
    try:
        return kind.model_validate(kept_json(registry, version, name))
    except ValidationError as error:
        writer = "`tuneloop bias check`" if name == BIAS else "training"
        raise Unreadable(
            f"MLflow run {version.run_id}: {name} is not what {writer} writes: {faults(error)}; it was changed by hand"
        ) from None


def _request(registry: Registry, version: Version) -> RetrainingRequest | None:
    return None if version.request_id is None else registry.retraining.get(version.request_id)


def _approved_by(registry: Registry, request: RetrainingRequest | None) -> str | None:
    entries: Sequence[AuditEntry] = (
        [] if request is None else registry.audit.entries(request.id, limit=1, action="retraining.approved")
    )
    return entries[0].actor if entries else None


def _let_in(registry: Registry, version: Version) -> tuple[str | None, str | None]:
    """Who lets it in, or why nobody does."""
    approver = registry.gates.approver(version.model, version.version)
    return (approver, None) if approver else (None, registry.gates.why_not(version.model, version.version))


def _measures(version: Version, logged: Mapping[str, float]) -> list[MeasuredMetric]:
    return [
        MeasuredMetric(name=name, value=value, low=logged.get(f"{name}.low"), high=logged.get(f"{name}.high"))
        for name, value in sorted(version.metrics.items())
    ]


def _serving(registry: Registry, version: Version, missing: list[str]) -> tuple[bool | None, Serving | None]:
    try:
        route = registry.routes.current(version.model)
    except NotFound:
        return False, None
    if version.version not in route.split:
        return False, None
    engines, gateways = registry.fleet.engines(), registry.fleet.gateways()
    missing += (*engines.unreadable, *gateways.unreadable)
    return True, Serving(
        revision=route.revision,
        share_bp=route.split[version.version],
        champion=route.champion == version.version,
        overrides=sum(given == version.version for given in route.overrides.values()),
        engines={e.id: str(e.adapters[version.name]) for e in engines if version.name in e.adapters},
        gateways=tuple(g.id for g in gateways if g.applied.get(version.model) == route.revision),
    )
