"""The registry's verbs: the life of a version, traffic, retraining, keys, and the control plane over all of it."""

from __future__ import annotations

from tuneloop.registry.verbs.access import key
from tuneloop.registry.verbs.api import api, token
from tuneloop.registry.verbs.experiments import experiment
from tuneloop.registry.verbs.lineage import card, show
from tuneloop.registry.verbs.register import register
from tuneloop.registry.verbs.retention import retention
from tuneloop.registry.verbs.retraining import retraining
from tuneloop.registry.verbs.rollout import controller, rollout
from tuneloop.registry.verbs.routes import promote, rollback, route
from tuneloop.registry.verbs.state import audit, db, feedback, forget, requests, status, trace
from tuneloop.registry.verbs.versions import approve, compare, gate, models, sign, versions

VERBS = (
    models,
    versions,
    show,
    card,
    compare,
    register,
    gate,
    approve,
    sign,
    promote,
    rollback,
    route,
    rollout,
    experiment,
    retraining,
    retention,
    status,
    trace,
    requests,
    feedback,
    forget,
    audit,
    key,
    controller,
    db,
    token,
    api,
)
