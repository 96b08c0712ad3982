"""How versions were judged, and what people decided about them."""

from __future__ import annotations

import unicodedata

from pydantic import AwareDatetime

from tuneloop.registry.access.roles import ACTOR_PREFIX, Role
from tuneloop.registry.nouns.base import Interval, Noun, Verdict


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
