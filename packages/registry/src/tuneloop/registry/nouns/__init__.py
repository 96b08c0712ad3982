"""The nouns that cross the walls between packages; all immutable.

Times are aware UTC; shares are basis points (`_bp`, 10,000 are all); durations carry their unit in the name.
"""

from tuneloop.registry.nouns.access import ApiKey, KeyUsage
from tuneloop.registry.nouns.audit import AuditEntry
from tuneloop.registry.nouns.base import (
    FRESH,
    FULL_SHARE_BP,
    Interval,
    ModelName,
    Noun,
    Verdict,
    as_tuple,
    kept,
    parse_version_name,
    said_of,
    utc_now,
    version_name,
)
from tuneloop.registry.nouns.episodes import (
    AlertEpisode,
    ChallengerSignal,
    ServingSignal,
    Signal,
    TrialSignal,
    WindowScore,
)
from tuneloop.registry.nouns.fleet import AdapterState, EngineState, GatewayState
from tuneloop.registry.nouns.gates import Approval, Check, GateReport
from tuneloop.registry.nouns.retraining import RetrainingRequest, RetrainingRun, RetrainingState
from tuneloop.registry.nouns.routes import Arm, Route, Shadow, Span, in_order
from tuneloop.registry.nouns.traffic import Feedback, Message, RequestLine, RequestRecord
from tuneloop.registry.nouns.versions import Version

__all__ = [
    "FRESH",
    "FULL_SHARE_BP",
    "AdapterState",
    "AlertEpisode",
    "ApiKey",
    "Approval",
    "Arm",
    "AuditEntry",
    "ChallengerSignal",
    "Check",
    "EngineState",
    "Feedback",
    "GateReport",
    "GatewayState",
    "Interval",
    "KeyUsage",
    "Message",
    "ModelName",
    "Noun",
    "RequestLine",
    "RequestRecord",
    "RetrainingRequest",
    "RetrainingRun",
    "RetrainingState",
    "Route",
    "ServingSignal",
    "Shadow",
    "Signal",
    "Span",
    "TrialSignal",
    "Verdict",
    "Version",
    "WindowScore",
    "as_tuple",
    "in_order",
    "kept",
    "parse_version_name",
    "said_of",
    "utc_now",
    "version_name",
]
