"""The tables of the one database, in SQLAlchemy Core; `migrations/` makes them, this package names them.

Each room holds those of some nouns; `metadata` has them all once this is imported.
"""

from tuneloop.registry.tables.access import api_keys, key_usage, limit_leases, owner_limits, tokens
from tuneloop.registry.tables.alerts import BLANK, deliveries, episodes, shows_questions, silences, window_scores
from tuneloop.registry.tables.audit_log import audit, audit_head
from tuneloop.registry.tables.columns import Json, Money, UtcDateTime, metadata
from tuneloop.registry.tables.fleet import engines, gateways
from tuneloop.registry.tables.judgements import approvals, gate_reports, policies
from tuneloop.registry.tables.retrainings import retraining, retraining_runs
from tuneloop.registry.tables.routing import aliases, experiments, rollouts, routes
from tuneloop.registry.tables.traffic import (
    FEEDBACK_WITH_TEXT,
    REQUESTS_WITH_TEXT,
    feedback,
    forgotten_requests,
    requests,
    shadow_requests,
)

__all__ = [
    "BLANK",
    "FEEDBACK_WITH_TEXT",
    "REQUESTS_WITH_TEXT",
    "Json",
    "Money",
    "UtcDateTime",
    "aliases",
    "api_keys",
    "approvals",
    "audit",
    "audit_head",
    "deliveries",
    "engines",
    "episodes",
    "experiments",
    "feedback",
    "forgotten_requests",
    "gate_reports",
    "gateways",
    "key_usage",
    "limit_leases",
    "metadata",
    "owner_limits",
    "policies",
    "requests",
    "retraining",
    "retraining_runs",
    "rollouts",
    "routes",
    "shadow_requests",
    "shows_questions",
    "silences",
    "tokens",
    "window_scores",
]
