"""Experiments: declared, started, stopped and reported as the verbs do it.

A report, and a bandit's step, reads every request since the start, so few are made at a time. Nothing here steps by
itself: a controller does where a bandit declares how often, whoever asks for a step does otherwise.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.answers import PageOf
from tuneloop.registry.api.fields import ID_PATTERN, Asked, Body, Here, ModelQuery, needs
from tuneloop.registry.api.routing import one_of_few, reading_much
from tuneloop.registry.experiments import conduct, words
from tuneloop.registry.experiments.declaration import Declaration, Experiment
from tuneloop.registry.experiments.report import Report
from tuneloop.registry.nouns import Noun

router = APIRouter(tags=["experiments"])
READ = needs(Permission.READ)
ROUTE = needs(Permission.ROUTE)

ExperimentPath = Annotated[str, Path(pattern=ID_PATTERN, description="The experiment's id.", examples=["exp_1"])]
ExperimentId = Annotated[str, Field(pattern=ID_PATTERN)]


class Declared(Body):
    """What is to be found out, and how."""

    declaration: Declaration
    replaces: ExperimentId | None = Field(None, description="The draft whose place it takes.")


class Begin(Body):
    """Why it starts."""

    force: bool = Field(False, description="Serve what nobody approved; needs the permission `force`.")


class Stop(Body):
    """Why it stops."""


class Step(Body):
    """A bandit's next shares."""

    propose: bool = Field(False, description="Say what the shares would be, and change nothing.")


class Stepped(Noun):
    """What a bandit's traffic says, and the shares that follow."""

    chances: dict[int, float]  # version → its chance to be the best; empty: an arm has too few units yet
    split: dict[int, int]  # version → basis points
    revision: int  # of the route: the one that gives these shares, or the one in force where nothing was written
    moved: bool  # whether the route was changed


class Told(Noun):
    """What an experiment says, in words and in figures."""

    words: tuple[str, ...]
    report: Report


@router.get("/experiments", dependencies=READ)
def list_experiments(here: Here, ask: Asked, model: ModelQuery = None) -> PageOf[Experiment]:
    """Experiments, the newest first."""
    found = here.registry.experiments.page(ask, model)
    if model is not None and not found.items and ask.cursor is None:
        here.registry.check_model(model)
    return PageOf[Experiment].of(found)


@router.get("/experiments/{experiment_id}", dependencies=READ)
def get_experiment(experiment_id: ExperimentPath, here: Here) -> Experiment:
    """One experiment: what was declared, and where it stands."""
    return here.registry.experiments.get(experiment_id)


@router.post("/experiments", status_code=201, dependencies=ROUTE)
def declare_experiment(body: Declared, here: Here) -> Experiment:
    """Declare an experiment; its plan says how long it will take by recent traffic."""
    store = here.registry.experiments
    with reading_much():
        declared = conduct.settled(here.registry, body.declaration)
        plan = conduct.plan(here.registry, declared)
        if body.replaces is None:
            return store.new(declared, plan, by=here.actor, reason=body.reason)
        return store.redeclare(body.replaces, declared, plan, by=here.actor, reason=body.reason)


@router.post("/experiments/{experiment_id}/start", dependencies=ROUTE)
def start_experiment(experiment_id: ExperimentPath, body: Begin, here: Here) -> Experiment:
    """Give the arms their shares and start; the declaration stands from then on."""
    change = here.change(body.reason, force=body.force)
    with one_of_few():
        return conduct.start(here.registry, experiment_id, change)[0]


@router.post("/experiments/{experiment_id}/step", dependencies=ROUTE)
def step_experiment(experiment_id: ExperimentPath, body: Step, here: Here) -> Stepped:
    """Move a running bandit's shares once, or only say where to."""
    change = here.change(body.reason)
    with reading_much():
        running, route, wanted = conduct.step(here.registry, experiment_id)
    moves = not body.propose and wanted.moves(route)
    if not body.propose:
        with one_of_few():
            route = conduct.take(here.registry, running, route, wanted, change)
    return Stepped(chances=wanted.chances, split=wanted.split, revision=route.revision, moved=moves)


@router.post("/experiments/{experiment_id}/stop", dependencies=ROUTE)
def stop_experiment(experiment_id: ExperimentPath, body: Stop, here: Here) -> Experiment:
    """Count nothing from now on; the route stays as it is."""
    return here.registry.experiments.stop(experiment_id, by=here.actor, reason=body.reason)


@router.get("/experiments/{experiment_id}/report", dependencies=READ)
def report_experiment(experiment_id: ExperimentPath, here: Here) -> Told:
    """What it says now, or said when it was stopped; as often as one likes."""
    with reading_much():
        found = conduct.report(here.registry, experiment_id)
    return Told(words=(*words.verdict(found), *words.left_out(found)), report=found)
