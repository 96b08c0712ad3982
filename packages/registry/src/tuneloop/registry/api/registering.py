"""Registering and signing: what takes the key, and the disk, of the machine that the control plane runs on.

Nobody names a path of that machine. What is registered is named by its place in MLflow, and a base by its name among
those in the home; of files that MLflow keeps on the machine itself, only those in tuneloop's own store are read.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from tuneloop.registry import actions
from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.fields import ID_PATTERN, Body, Here, ModelPath, Name, VersionNumber, VersionPath, needs
from tuneloop.registry.api.routing import one_of_few
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import Noun, Version
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within
from tuneloop.registry.versions.sources import MlflowRun, MlflowVersion, on_this_machine

router = APIRouter(tags=["versions"])
AT_ONCE = 2  # each copies and reads all of a version's files; changes of routes have places of their own
_places = threading.BoundedSemaphore(AT_ONCE)
_TOLD = 20
BaseName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    Field(examples=["smollm2-135m-instruct"], description="Of a base that the control plane's home has."),
]


class OfRun(Noun):
    """A folder of a run's artifacts in MLflow."""

    run_id: Annotated[str, StringConstraints(pattern=ID_PATTERN)]
    path: Name = Field("model", description="The folder below the run's artifacts.")


class OfVersion(Noun):
    """The files of a version in MLflow that tuneloop did not publish."""

    model: Name
    number: VersionNumber
    path: Name = Field(".", description="The folder below the version's files.")


class Registration(Body):
    """What is to become the next version of the model."""

    source: OfRun | OfVersion
    base: BaseName | None = Field(None, description="What it was trained on; whole weights may come without.")


class Signature(Body):
    """Why a version is signed anew."""


@router.post("/models/{model}/versions", status_code=201, dependencies=needs(Permission.REGISTER))
def register_version(model: ModelPath, body: Registration, here: Here) -> Version:
    """Make an adapter or whole weights that lie in MLflow the model's next version, once they were looked at."""
    from tuneloop.registry.versions.registering import register  # noqa: PLC0415 (MLflow's client takes 2 s)

    registry, said = here.registry, body.source
    base = None if body.base is None else _base(registry.settings, body.base)
    if isinstance(said, OfRun):
        source: MlflowRun | MlflowVersion = MlflowRun(said.run_id, said.path)
    else:
        source = MlflowVersion(said.model, said.number, said.path)
    with one_of_few(_places):
        mlflow_within(registry, lambda: registry.versions.all(model, newest=1), LOOKUP_TIMEOUT_S)
        return register(
            registry, model, source, base=base, by=here.actor, reason=body.reason, within=_store(registry.settings)
        )


@router.post("/models/{model}/versions/{version}/sign", dependencies=needs(Permission.SIGN))
def sign_version(model: ModelPath, version: VersionPath, body: Signature, here: Here) -> Version:
    """Sign a version's files, as they were published, by the settings of the control plane's machine."""
    with one_of_few(_places):
        return actions.sign(here.registry, model, version, by=here.actor, reason=body.reason)


def _base(settings: RegistrySettings, name: str) -> Path:
    bases = settings.home / "bases"
    if not (bases / name).is_dir():
        known = sorted(path.name for path in bases.glob("*") if path.is_dir())
        there = f"; there are {', '.join(known[:_TOLD])}" if known else ""
        raise NotFound(
            f"the control plane's home has no base {name!r}{there}; `tuneloop base` makes one there, or register with "
            "the verb where the base is"
        )
    return bases / name


def _store(settings: RegistrySettings) -> Path:
    """Where tuneloop keeps artifacts on this machine; where it keeps them elsewhere, a folder that holds none."""
    here = on_this_machine(settings.artifacts) if settings.artifacts else None
    return here or settings.home / "artifacts"
