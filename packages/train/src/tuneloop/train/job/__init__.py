"""One training run, from a recipe's rows to a registered version; `tuneloop train` and the worker share it."""

from __future__ import annotations

from tuneloop.train.job.begin import Job, job_from_recipe
from tuneloop.train.job.outcome import Outcome
from tuneloop.train.job.run import run_job

__all__ = ["Job", "Outcome", "job_from_recipe", "run_job"]
