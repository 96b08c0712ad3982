"""What a version's run keeps in files, as far as it is read here, and all else that is in them as it is.

Training writes data and environment, `tuneloop bias check` what it found: neither package is known here.
"""

from __future__ import annotations

from pydantic import AwareDatetime, ConfigDict

from tuneloop.registry.nouns import Interval, Noun


def verdict_text(verdict: str, gap: Interval | None) -> str:
    """A finding of bias for people, with the gap and its interval where there is one."""
    if gap is None:
        return verdict
    return f"{verdict} ({gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] nats per token)"


class Kept(Noun):
    """A file that a run keeps: what is read here, and all else that is in it as it is."""

    model_config = ConfigDict(extra="allow")


class KeptSet(Kept):
    """A held-out set, as the run noted it."""

    rows: int
    digest: str


class KeptData(Kept):
    """What a run says of its data."""

    sets: dict[str, KeptSet] = {}
    fresh_rows: int | None = None  # a retraining's
    replayed_rows: int | None = None
    dropped: dict[str, int] = {}  # why → how many rows


class KeptEnvironment(Kept):
    """What a run was made with."""

    python: str | None = None
    packages: dict[str, str] = {}  # distribution → its version


class KeptFinding(Kept):
    """What was concluded of one attribute."""

    verdict: str
    gap: Interval | None = None  # nats per token; None under two templates
    reason: str = ""

    @property
    def text(self) -> str:
        """For people."""
        return verdict_text(self.verdict, self.gap)


class KeptBias(Kept):
    """One attribute of a check for bias."""

    attribute: str
    readings: int
    alone: KeptFinding  # the version's own gap against none
    champion: KeptFinding | None = None  # its gap less the champion's

    @property
    def text(self) -> str:
        """For people."""
        than = f"; than the champion's: {self.champion.text}" if self.champion else ""
        return f"{self.attribute}: {self.alone.text}{than}; {self.readings} readings"


class KeptCheck(Kept):
    """What `tuneloop bias check` last found of a version."""

    at: AwareDatetime | None = None  # None: it was not checked
    champion: str | None = None
    why_alone: str = ""
    attributes: tuple[KeptBias, ...] = ()

    @property
    def against(self) -> str:
        """For people: when it was checked, and against what."""
        against = f"against {self.champion}" if self.champion else f"against nothing: {self.why_alone}"
        return "not checked" if self.at is None else f"checked {self.at:%Y-%m-%d %H:%M} {against}"
