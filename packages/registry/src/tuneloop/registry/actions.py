"""What takes more than one call of a store to do, or to tell: the same for the verbs and the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuneloop.registry import audit
from tuneloop.registry.access.roles import Role
from tuneloop.registry.deliveries.silences import Silence
from tuneloop.registry.errors import InvalidInput, Refused, Unavailable
from tuneloop.registry.evidence import causes_of_evidence, findings_of
from tuneloop.registry.facade import Registry
from tuneloop.registry.files import is_file
from tuneloop.registry.nouns import Approval, Route, Version, parse_version_name
from tuneloop.registry.overview import version
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within


@dataclass(frozen=True)
class Revoked:
    """A revoked approval, and what whoever revoked it should know: what serves, serves on."""

    approval: Approval
    not_looked_up: str | None  # why it is not known whether there is such a version
    notes: tuple[str, ...]


def approve(
    registry: Registry,
    model: str,
    number: int,
    *,
    by: str,
    reason: str,
    days: float | None = None,
    role: Role | None = None,
) -> Approval:
    """Answer for a version that exists.

    Raises:
        NotFound: it does not.
        InvalidInput, Refused: like `Gates.approve`.
    """
    found = version(registry, model, number)
    ttl_s = None if days is None else days * 86_400
    return registry.gates.approve(
        model, number, by=by, reason=reason, ttl_s=ttl_s, role=role, trained_by=found.trained_by
    )


def revoke(registry: Registry, model: str, number: int, *, by: str, reason: str, role: Role | None = None) -> Revoked:
    """Take back that a version may serve, also while MLflow is away: a version there is none of is served nowhere.

    Raises:
        NotFound: MLflow says that there is none.
    """
    not_looked_up = None
    try:
        version(registry, model, number)
    except Unavailable as error:
        not_looked_up = str(error)
    made = registry.gates.revoke(model, number, by=by, reason=reason, role=role)
    route = registry.routes.current_all().get(model)
    return Revoked(made, not_looked_up, () if route is None else _still_served(route, number))


def sign(registry: Registry, model: str, number: int, *, by: str, reason: str) -> Version:
    """Sign a version's files, as they were published, by this machine's settings.

    Raises:
        NotFound: there is no such version.
        InvalidInput: its files are not those that were published, or there is nothing to sign with.
        Unavailable: MLflow does not answer, or Sigstore, where that is to sign.
    """
    found = version(registry, model, number)
    registry.versions.check_key()
    detail = {"digest": found.artifact_digest, "reason": reason}
    with registry.database.writing() as connection:  # first: nothing is ever signed by nobody
        audit.record(
            connection, at=registry.clock(), actor=by, action="version.sign", subject=found.name, detail=detail
        )
    return registry.versions.sign(found)


def check_recipe(registry: Registry, policy: RetrainingPolicy, where: str) -> None:
    """A recipe that is not there would be noticed by the worker only, when a drift has to be answered.

    Raises:
        InvalidInput: the policy's recipe is no file here.
        NotFound: it is that of a version there is none of.
    """
    recipe = policy.recipe
    if recipe is None:
        return
    if "@" in recipe and not is_file(Path(recipe)):
        model, number = parse_version_name(recipe)
        mlflow_within(registry, lambda: registry.versions.get(model, number), LOOKUP_TIMEOUT_S)
    elif not is_file(Path(recipe)):
        raise InvalidInput(
            f"{where}: recipe {recipe!r} is no file in {Path.cwd()}; give its path as the worker will open it, or "
            "leave recipe out for the champion's own"
        )


def _still_served(route: Route, number: int) -> tuple[str, ...]:
    if number not in route.split:
        return ()
    share_bp = route.split[number]
    if number == route.champion:
        return (f"it is the champion, and serves {share_bp / 100:g} % on: promote another version, `tuneloop promote`",)
    still = f"it still serves {share_bp / 100:g} %: `tuneloop rollback {route.model}` takes that back"
    pinned = f"keys that may pin it, or were given it, still reach it while the route of {route.model} names it"
    return (still, pinned) if share_bp > 0 else (pinned,)


def silence(
    registry: Registry,
    for_s: float,
    *,
    by: str,
    reason: str,
    model: str | None = None,
    episode_id: str | None = None,
    signal: str | None = None,
) -> Silence:
    """Have nothing delivered for a while of one episode, for the cause it seems to have now, or of a model with or
    without one signal.

    Raises:
        InvalidInput: neither or both are named, or no possible time.
        NotFound: there is no such episode or model.
        Refused: the episode is resolved already.
    """
    if (episode_id is None) == (model is None) or (signal is not None and model is None):
        raise InvalidInput("name one episode, or a model with or without one of its signals; not both")
    cause, signals = None, None
    if episode_id is not None:
        episode = registry.episodes.get(episode_id)
        if episode.state == "resolved":
            raise Refused(f"{episode_id} is resolved already; there is nothing to silence")
        model, (cause, _) = episode.model, next(iter(causes_of_evidence(episode)), ("", ""))
        signals = {episode.signal, *findings_of(episode)}
    elif model is not None:
        registry.check_model(model)
    of_episode = {"episode_id": episode_id, "cause": cause}
    return registry.silences.add(str(model), for_s, by=by, reason=reason, signal=signal, signals=signals, **of_episode)
