"""The nouns that cross the walls between packages; all immutable.

Times are aware UTC; shares are basis points (`_bp`, 10,000 are all); durations carry their unit in the name.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.access.roles import ACTOR_PREFIX, Role
from tuneloop.registry.errors import InvalidInput

FULL_SHARE_BP = 10_000
Signal = Literal[  # those a retraining policy may name
    "prompt_drift",
    "perplexity",
    "correction_perplexity",
    "thumbs_down",
    "refusals",
    "broken_answers",
    "answer_length",
    "latency",
]
ServingSignal = Literal["served_model_change", "injections"]  # what training cannot repair
TrialSignal = Literal[  # what the monitor judges of a challenger against its champion at the same time
    "trial_refusals",
    "trial_broken_answers",
    "trial_answer_perplexity",
    "trial_correction_perplexity",
]
ChallengerSignal = Literal["served_model_change", TrialSignal]  # everything that it judges of a challenger
Verdict = Literal["pass", "fail", "inconclusive"]  # of a check, and of a report of checks
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_VERSION_NAME = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})@([1-9][0-9]{0,8})")


def utc_now() -> datetime:
    """The wall clock; pass another callable wherever a `clock` is asked for."""
    return datetime.now(UTC)


def version_name(model: str, version: int) -> str:
    """`support-bot`, 7 → `support-bot@7`: the name engines load it under, for ever."""
    return f"{model}@{version}"


def parse_version_name(text: str) -> tuple[str, int]:
    """`support-bot@7` → (`support-bot`, 7).

    Raises:
        InvalidInput: the text is not of that form.
    """
    match = _VERSION_NAME.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is not a version; write MODEL@NUMBER, for example support-bot@7")
    return match[1], int(match[2])


FRESH = "fresh"  # the evaluation set that a retraining makes from users' corrections


def as_tuple(value: Any) -> Any:
    """A list as a tuple, which is what strict nouns hold: YAML and JSON know lists only."""
    return tuple(value) if isinstance(value, list) else value


class Noun(BaseModel):
    """Base of every noun: frozen, strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Noun):
    """An estimate with its interval at `level` (0.95 unless said otherwise)."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


class Version(Noun):
    """What was trained, and everything needed to make it again."""

    model: ModelName
    version: int = Field(ge=1)
    kind: Literal["adapter", "full"]
    base: str  # a hub id, or the base's folder name
    base_digest: str
    template_digest: str
    tokenizer_digest: str | None = None  # of the base's, or of whole weights' own; None: nobody noted it
    data_digest: str
    data_rows: int
    recipe_digest: str
    code_commit: str
    run_id: str  # the MLflow run that made it
    artifact_digest: str
    artifact_bytes: int
    rank: int | None = None  # adapters only
    target_modules: tuple[str, ...] = ()
    parent: int | None = None
    request_id: str | None = None  # the retraining request it answers
    trained_by: str | None = None  # who started the run, `worker` for a retraining; None: nobody noted it
    signed_by: str | None = Field(default=None, pattern=r"^[0-9a-f]{12}$")  # the name of the key that signed its files
    created_at: AwareDatetime
    metrics: dict[str, float] = {}  # `perplexity.<domain>`, `bleu.<domain>`, ...

    @property
    def name(self) -> str:
        """`support-bot@7`."""
        return version_name(self.model, self.version)


class Arm(Noun):
    """One version's share of a route. A weight of 0 keeps it loaded without traffic (staged, or ready for rollback)."""

    version: int = Field(ge=1)
    weight_bp: int = Field(ge=0, le=FULL_SHARE_BP)


class Shadow(Noun):
    """A version that is sent copies of requests and answers nobody; of which keys, says `assignment.shadowed`."""

    version: int = Field(ge=1)
    share_bp: int = Field(ge=1, le=FULL_SHARE_BP)  # of the keys

    @property
    def text(self) -> str:
        """`8=500`, as `tuneloop route shadow` takes it."""
        return f"{self.version}={self.share_bp}"


class Route(Noun):
    """Which versions of a model get which share; append-only, one row per revision.

    Challengers own the buckets from 0 upwards in the order of `arms`; the champion is the last arm and owns the rest.
    """

    model: ModelName
    revision: int = Field(ge=1)
    arms: tuple[Arm, ...]
    salt: str
    by: str
    reason: str
    at: AwareDatetime
    forced: bool = False
    overrides: dict[str, int] = {}  # hash of a sticky key → the version it gets, whatever the split says
    holdout_bp: int = Field(
        default=0, ge=0, lt=FULL_SHARE_BP
    )  # share of the keys that get the champion, whatever it says
    shadow: Shadow | None = None  # an arm without a share, which is sent copies

    @model_validator(mode="after")
    def _arms_make_a_whole(self) -> Self:
        versions = [arm.version for arm in self.arms]
        if len(set(versions)) != len(versions):
            raise ValueError(f"a version stands twice in the split {self.split_text}")
        total = sum(arm.weight_bp for arm in self.arms)
        if total != FULL_SHARE_BP:
            raise ValueError(
                f"weights sum to {total}, not {FULL_SHARE_BP} basis points ({self.split_text}); "
                f"add {FULL_SHARE_BP - total} to one arm"
            )
        if strangers := set(self.overrides.values()) - set(versions):
            raise ValueError(f"keys are overridden to versions {sorted(strangers)}, which are no arms of the route")
        if self.shadow is not None and self.split.get(self.shadow.version) != 0:
            raise ValueError(f"the shadow {self.shadow.version} is no arm without a share ({self.split_text})")
        return self

    @property
    def champion(self) -> int:
        """The stable arm: what serves when the assigned version cannot."""
        return self.arms[-1].version

    @property
    def split(self) -> dict[int, int]:
        """Version → basis points."""
        return {arm.version: arm.weight_bp for arm in self.arms}

    @property
    def split_text(self) -> str:
        """`2=1000 1=9000`, as `tuneloop route set` takes it."""
        return " ".join(f"{arm.version}={arm.weight_bp}" for arm in self.arms)


class Message(Noun):
    """One turn of a conversation; a plain completion's prompt has the role `prompt`."""

    role: str
    content: str


class RequestLine(Noun):
    """What the gateway did with one request, without anybody's words."""

    id: str
    at: AwareDatetime
    model: str
    revision: int | None
    assigned_version: int | None
    served_version: int | None
    engine: str | None
    key_hash: str  # hash of the sticky key
    key_source: Literal["header", "user", "api_key", "request"]
    api_key: str | None  # id of the key, never the key
    endpoint: Literal["chat", "completion"]
    stream: bool
    status: int  # HTTP status; 499 when the client left first
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_ms: FiniteFloat | None = None  # arrival → sent to the engine
    ttft_ms: FiniteFloat | None = None  # arrival → first event or body byte
    total_ms: FiniteFloat
    guards: dict[str, str] = {}  # guard → verdict


class RequestRecord(RequestLine):
    """What the gateway did with one request. Text is redacted before it is stored, or left out, by policy."""

    messages: tuple[Message, ...] = ()
    answer: str | None = None
    shadow_of: str | None = None  # id of the request that this was a copy of; nobody was given its answer

    @property
    def question(self) -> str:
        """The last thing the user said, which is what prompt drift looks at; empty when text is not stored."""
        return next((m.content for m in reversed(self.messages) if m.role in {"user", "prompt"}), "")


class Feedback(Noun):
    """What a user thought of one answer, and how it should have read."""

    id: str
    request_id: str
    at: AwareDatetime
    score: float | None = Field(default=None, ge=0.0, le=1.0)
    thumb: Literal["up", "down"] | None = None
    label: str | None = Field(default=None, max_length=200)
    comment: str | None = Field(default=None, max_length=10_000)
    correction: str | None = Field(default=None, max_length=100_000)
    api_key: str | None = None  # id of the key that sent it; counts only for requests that this key made


class AdapterState(StrEnum):
    """Where an adapter stands on one engine; only `ready` and `draining` may carry traffic."""

    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class EngineState(Noun):
    """An engine agent's heartbeat: what its engine is and which adapters it can serve now."""

    id: str
    url: str
    base: str
    base_digest: str
    template_digest: str
    state: Literal["starting", "ready", "down"]
    adapters: dict[str, AdapterState] = {}  # version name → state
    detail: str = ""
    max_loras: int
    max_lora_rank: int
    at: AwareDatetime

    def serves(self, name: str) -> bool:
        """Whether requests for this version name may be sent here."""
        return self.state == "ready" and self.adapters.get(name) in {AdapterState.READY, AdapterState.DRAINING}


class GatewayState(Noun):
    """A gateway's heartbeat: which revision of each route it applies, and what it could not record."""

    id: str
    url: str
    applied: dict[str, int]  # model → route revision
    in_flight: dict[str, int]  # "engine id|version name" → requests
    dropped_records: int
    at: AwareDatetime


class WindowScore(Noun):
    """One signal of one version over one window, as the monitor judged it."""

    id: str
    at: AwareDatetime
    model: str
    version: int
    signal: str  # a `Signal` or a `ServingSignal`
    window_start: AwareDatetime
    window_end: AwareDatetime
    n: int
    statistic: float
    threshold: float
    p_value: float | None
    mean_run_length: float  # the budget: records between false alarms over all streams of the model, at least
    verdict: Literal["drift", "none", "not enough data"]
    detail: dict[str, Any] = {}
    request_ids: tuple[str, ...] = ()


class AlertEpisode(Noun):
    """One problem from first sight to all-clear."""

    id: str
    model: str
    version: int
    signal: str
    detector: str
    severity: Literal["page", "ticket"]
    state: Literal["open", "acknowledged", "resolved"]
    opened_at: AwareDatetime
    updated_at: AwareDatetime
    resolved_at: AwareDatetime | None = None
    windows: tuple[str, ...]  # ids of the window scores that belong to it, the first one opened it
    evidence: dict[str, Any]
    runbook: str
    done: tuple[str, ...] = ()  # what was done about it, in order


class RetrainingState(StrEnum):
    """proposed → approved → queued → running → gated → shipped, or one of the ends."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    QUEUED = "queued"
    RUNNING = "running"
    GATED = "gated"
    SHIPPED = "shipped"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RetrainingRequest(Noun):
    """Why, on what data, with which recipe a model is to be trained again."""

    id: str
    idempotency_key: str
    model: str
    base_version: int  # the champion it must beat
    episode_id: str | None
    reason: str
    window_start: AwareDatetime
    window_end: AwareDatetime
    rows: int  # corrections in the window when it was filed
    recipe: str  # a path the worker can read, or the champion's name (`bot@1`) for the recipe it was made with
    state: RetrainingState
    created_at: AwareDatetime
    updated_at: AwareDatetime
    lease_owner: str | None = None
    lease_until: AwareDatetime | None = None
    fencing_token: int = 0
    attempts: int = 0
    result_version: int | None = None
    outcome: str = ""
    held: str = ""  # why a budget does not let it run: until `held_until`, or, without, until a person approves it
    held_until: AwareDatetime | None = None
    budget_waived_by: str | None = None  # who approved it knowing that it is above a budget


class RetrainingRun(Noun):
    """One attempt at a request from the moment it could train: what it was to take, and what it took."""

    request_id: str
    fencing_token: int  # of the lease it runs under
    model: str
    worker: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    end: str = ""  # the state in which it left its request
    devices: int = Field(ge=1)
    planned_hours: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    usd_per_hour: Decimal | None = Field(default=None, ge=0, le=1_000_000)  # of all its devices together
    basis: str = ""  # where the two figures come from, or why there are none

    def hours(self, now: datetime) -> float:
        """By the clock: what it took, or has taken so far."""
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds() / 3600)


class Check(Noun):
    """One line of a gate or a rollout's judgement."""

    name: str
    verdict: Verdict
    detail: str
    interval: Interval | None = None


class GateReport(Noun):
    """A version held against the champion; no data is inconclusive, never a pass."""

    model: str
    version: int
    champion: int | None
    at: AwareDatetime
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail when any check fails, pass only when every check passes."""
        verdicts = {check.verdict for check in self.checks}
        if "fail" in verdicts:
            return "fail"
        return "pass" if verdicts == {"pass"} else "inconclusive"


def _person(actor: str) -> str:
    """Who acts, whether at the command line or by a token of the same name."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", actor) if unicodedata.category(c) != "Cf")
    return seen.strip().removeprefix(ACTOR_PREFIX).strip().casefold()


class Approval(Noun):
    """What a person decided about a version: it may serve, or it may not, whatever its gate says. The newest counts."""

    model: str
    version: int
    granted: bool
    by: str
    reason: str
    at: AwareDatetime
    expires_at: AwareDatetime | None = None  # then only the gate decides again
    role: Role | None = None  # of the control plane's token it came from; None: from the command line
    trained_by: str | None = None  # the version's, as it was known then

    @property
    def by_the_trainer(self) -> bool:
        """Whether the same person trained the version, or might have: nobody noted who did."""
        return self.trained_by is None or _person(self.trained_by) == _person(self.by)


class ApiKey(Noun):
    """Who may ask; the secret itself is shown once and kept only as a SHA-256 digest."""

    id: str
    digest: str
    owner: str
    models: tuple[ModelName, ...]  # empty: every model
    may_pin: bool  # may ask for MODEL@VERSION
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    limits: KeyLimits = KeyLimits()
    old_digest: str | None = None  # of the secret before the last rotation, which opens until `old_until`
    old_until: AwareDatetime | None = None

    def usable(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def opened_by(self, digest: str, now: datetime) -> bool:
        """Whether the secret of that digest may be used: the key's own, or the one before in its time of grace."""
        known = digest == self.digest or (
            digest == self.old_digest and self.old_until is not None and now < self.old_until
        )
        return known and self.usable(now)


class KeyUsage(Noun):
    """What an API key used of one model in a month, as far as it is on record."""

    month: str  # `2026-11`, of UTC
    api_key: str
    model: str
    requests: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class AuditEntry(Noun):
    """Who did what to what, when and why."""

    id: int
    at: AwareDatetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str  # over this entry and the hash of the one before it
