"""What guards find in the runs of an answer: secrets here, personal data in a worker, if a run may hold any.

A run that could not be looked at in time is shown as `<UNCHECKED>`, or as it is where the policy says `fail: open`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.guard_policy import GuardPolicy, OutputGuards
from tuneloop.serve.gateway.guard_worker import Outgoing
from tuneloop.serve.gateway.mask import Find
from tuneloop.serve.gateway.pool import Pool
from tuneloop.serve.guards import secrets
from tuneloop.serve.guards.judge import may_be_personal

UNCHECKED = "<UNCHECKED>"


class Looker:
    """Looks through the answers of one model."""

    def __init__(
        self,
        policy: GuardPolicy,
        output: OutputGuards,
        pool: Pool,
        tell: Callable[[str, str], None],
        failed: Callable[[Unavailable], None],
    ) -> None:
        """`tell` hears of each guard and kind that was found, `failed` why runs could not be looked at."""
        self._policy = policy
        self._output = output
        self._pool = pool
        self._tell = tell
        self._failed = failed

    async def __call__(self, runs: Sequence[str]) -> Sequence[Sequence[Find]]:
        """The finds in each run, from left to right."""
        found: list[list[Find]] = [self._secrets(run) for run in runs]
        asked = [at for at, run in enumerate(runs) if self._output.personal != "off" and may_be_personal(run)]
        if not asked:
            return found
        question = Outgoing(self._output.entities, tuple(runs[at] for at in asked))
        try:
            answer = await self._pool.ask(question, self._policy.deadline_ms / 1e3)
        except Unavailable as error:
            self._failed(error)
            if self._policy.fail == "closed" and self._output.personal == "redact":
                for at in asked:
                    found[at] = [Find(len(runs[at]) - len(runs[at].lstrip()), len(runs[at].rstrip()), UNCHECKED)]
            return found
        assert isinstance(answer, list)
        for at, here in zip(asked, answer, strict=True):
            for entity, start, end in here:
                self._tell("personal", entity)
                found[at].append(Find(start, end, f"<{entity}>" if self._output.personal == "redact" else None))
            found[at].sort(key=lambda one: (one.start, -one.end))
        return found

    def left_out(self, kind: str) -> None:
        """A secret that was too long to wait for was left out."""
        self._tell("secrets", kind)

    def _secrets(self, run: str) -> list[Find]:
        if self._output.secrets == "off":
            return []
        found = secrets.find(run)
        for one in found:
            self._tell("secrets", one.kind)
        redact = self._output.secrets == "redact"
        return [Find(one.start, one.end, f"<{one.kind.upper()}>" if redact else None) for one in found]
