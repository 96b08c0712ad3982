"""The verbs of training; the front door finds them here."""

from __future__ import annotations

from tuneloop.train.verbs.data import data
from tuneloop.train.verbs.export import export
from tuneloop.train.verbs.plan import plan
from tuneloop.train.verbs.recipe import recipe
from tuneloop.train.verbs.train import base, train, worker

VERBS = (train, worker, plan, recipe, data, base, export)
