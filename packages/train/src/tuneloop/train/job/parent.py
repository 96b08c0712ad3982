"""Where a run starts from: the base, or a version that a recipe names or that is trained again."""

from __future__ import annotations

from dataclasses import replace

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import parse_version_name
from tuneloop.train.job.begin import Job
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.tuning.going_on import cannot_go_on


def going_on(job: Job, registry: Registry) -> Job:
    """The job with the version it starts from: a recipe may name one, a retraining knows its parent already.

    Raises:
        InvalidInput: the weights of that version cannot be gone on from with this recipe.
    """
    named = job.recipe.recipe.base.adapter
    if named is not None and job.parent is None:
        job = replace(job, parent=registry.versions.get(*parse_version_name(named)), start="parent")
    if job.parent is None or job.start == "base":
        return job
    parent, wanted = job.parent, (job.base.digest, job.base.template_digest)
    if (parent.base_digest, parent.template_digest) != wanted:
        raise InvalidInput(
            f"the run cannot start from {parent.name}: it was trained on {parent.base} ({parent.base_digest[:19]}…, "
            f"template {parent.template_digest[:19]}…), this run's base is {wanted[0][:19]}…, "
            f"template {wanted[1][:19]}…"
        )
    trained = Lineage(registry.versions, parent).recipe().recipe.tuning
    if (reason := cannot_go_on(trained, job.recipe.recipe.tuning)) is not None:
        raise InvalidInput(f"the run cannot start from {parent.name}: {reason}")
    return job
