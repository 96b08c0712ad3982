"""The monitor's settings: `[monitor]` in `tuneloop.toml`, `TUNELOOP_MONITOR_…` variables."""

from __future__ import annotations

import json
import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tuneloop.monitor.slo import EVERY_OTHER, Slo
from tuneloop.registry.settings import Section

FEWEST_IN_A_WINDOW = 10  # records
MAX_RUN_LENGTH = 1_000_000  # a window is held to ten times as many permutations, over its size


class MonitorSettings(Section):
    """How often to look, how much to look at, and how many false alarms are allowed."""

    section = "monitor"

    every_s: float = Field(default=10.0, gt=0)  # pause between passes
    window: int = Field(default=40, ge=FEWEST_IN_A_WINDOW, le=1_000)  # records a window holds
    window_s: float = Field(
        default=0.0, ge=0
    )  # a window whose oldest record is this old is judged with FEWEST_IN_A_WINDOW; 0: once it is full alone
    reference: int = Field(default=120, ge=20, le=2_000)  # records a champion's reference holds; frozen once full
    season_days: int = Field(
        default=0, ge=0, le=28
    )  # a reference covers so many days, and windows are held against its like hours; 0: whatever comes first
    mean_run_length: int = Field(
        default=10_000, le=MAX_RUN_LENGTH
    )  # records between false alarms, over all streams of a model
    embeddings: str = ""  # a sentence-transformers model that texts are read with too: folder, package, or hub name
    clear_after: int = Field(default=3, ge=1)  # quiet windows in a row that end an episode
    canary_every_s: float = Field(
        default=300.0, ge=0
    )  # between readings of the canaries of a version that serves; 0: the served model is not watched
    trial_share_margin: float = Field(
        default=0.1, gt=0, le=1
    )  # how much larger a challenger's share of refusals, or of broken answers, may be than its champion's
    trial_nats_margin: float = Field(default=0.5, gt=0)  # and how much its nats per token
    late_s: float = Field(default=900.0, ge=0)  # how late a record may arrive and still be judged
    scorer_concurrency: int = Field(
        default=2, ge=1, le=8
    )  # prompts scored at once; each one costs the engine a whole prefill
    scorer_timeout_s: float = Field(default=30.0, gt=0)
    scorer_max_tokens: int = Field(
        default=2_048, ge=16
    )  # longer prompts are not scored: their log-probabilities fill memory
    latency_ms: float = Field(default=0.0, ge=0)  # 95 % of answers are to be whole within this; 0: no objective
    ttft_ms: float = Field(default=0.0, ge=0)  # and to have begun within this; 0: no objective
    group_s: float = Field(default=1_800.0, ge=0)  # alarms of one model closer than this are one episode; 0: never
    changes_s: float = Field(default=6 * 3600.0, ge=0)  # how far before an episode its page looks for what changed
    answer_formats: dict[str, Literal["json"]] = {}  # by model, "*" every other: what its answers have to parse as
    reference_answers: dict[str, str] = {}  # model → a file of fixed questions with the answers they should get
    answer_drift: bool = (
        False  # whether the texts of answers are held against the reference's, as those of questions are
    )
    correction_bleu: bool = False  # whether answers are held against users' corrections of them
    bad_corrections: bool = False  # whether it is watched that corrections are such as can be learned from
    throughput: bool = False  # whether tokens a second, the time in the queue and how often it is asked are judged
    guard_rates: bool = False  # whether the shares of requests with personal data, and of those guards stop, are
    parity_windows: int = Field(
        default=0, ge=0, le=50
    )  # windows, taken together, in which no group of people may be refused more; 0: nobody is told by that alone
    bias_sets: tuple[str, ...] = ()  # SET:FILE, what `tuneloop bias check` reads beside its own sentences
    delivery_every_s: float = Field(default=2.0, gt=0)  # pause between looks at what is to be delivered
    delivery_timeout_s: float = Field(default=10.0, gt=0, le=30)  # for each step of an attempt
    delivery_give_up_s: float = Field(default=86_400.0, gt=0)  # after the first attempt
    runbook_base: str = ""  # put before a runbook's path in pages, for example https://wiki.example.com/tuneloop/
    heartbeat_url: str = ""  # asked for after each whole pass; who watches it notices when that ends
    slo: dict[str, Slo] = {}  # by model; "*" is every other one: what `tuneloop alert rules` writes rules of
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65_535)  # Prometheus scrapes here; 0: off

    @field_validator("slo", "bias_sets", "answer_formats", "reference_answers", mode="before")
    @classmethod
    def _from_a_variable(cls, value: object) -> object:
        """A variable holds it as JSON."""
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("heartbeat_url")
    @classmethod
    def _is_asked_over_http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("write http://HOST/… or https://HOST/…")
        return value

    @model_validator(mode="after")
    def _budget_fits_the_window(self) -> Self:
        if self.mean_run_length < 10 * self.window:
            raise ValueError(
                f"mean_run_length {self.mean_run_length} is under 10 windows of {self.window} records; "
                f"raise it to {10 * self.window} or more, or every day brings false alarms"
            )
        return self

    @property
    def cut_into(self) -> int:
        """Into how many windows time may cut the records of a full one: so many more are looked back over."""
        return math.ceil(self.window / FEWEST_IN_A_WINDOW) if self.window_s else 1

    @property
    def watches_latency(self) -> bool:
        """Whether a latency objective is set."""
        return self.latency_ms > 0 or self.ttft_ms > 0

    def answer_format(self, model: str) -> str | None:
        """What a model's answers have to parse as, if it was declared."""
        return self.answer_formats.get(model, self.answer_formats.get(EVERY_OTHER))

    def paging(self, model: str) -> tuple[str, ...]:
        """The signals that page by themselves; latency does unless Prometheus pages for it."""
        slo = self.slo.get(model, self.slo.get(EVERY_OTHER))
        always = ("injections", "served_model_change")
        return always if slo is not None and slo.latency is not None else ("latency", *always)


SETTINGS: tuple[type[Section], ...] = (MonitorSettings,)
