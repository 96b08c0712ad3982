"""The guards in the gateway: what a request asks for and says is judged before an engine sees it, what an engine
answers is masked before a client does, each by the model's policy.

Texts are judged in worker processes, within the policy's deadline and behind a bounded queue (`verdicts`). What cannot
be judged is refused, or let through where the policy says `fail: open`, and counted either way. A model without a
policy pays one look into a dict.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b

import msgspec

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.guard_policy import GuardAction, GuardPolicy, is_sampled
from tuneloop.serve.gateway.body import Ask, changed
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.guard_worker import Finding, work
from tuneloop.serve.gateway.incoming import Incoming, Text, cleaned
from tuneloop.serve.gateway.mask import Mask
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.outgoing import Looker
from tuneloop.serve.gateway.pool import Pool, QueueFull, TooLate
from tuneloop.serve.gateway.responses.mask import ResponseMask
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.snapshot import Snapshot
from tuneloop.serve.gateway.verdicts import Verdicts
from tuneloop.serve.guards.topics import OFF_TOPIC, words_of

_LATE_RETRY_S = 5
_MOST_KINDS = 5  # told of one guard
_GRAVER: tuple[GuardAction, ...] = ("off", "sample", "flag", "redact", "block")
_COUNT = msgspec.json.Decoder(int | None)


class Guarding:
    """The guards of every model of one gateway."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self.metrics = metrics
        self.pool = Pool("guard worker", work, settings.guard_workers, settings.guard_queue)
        self.verdicts = Verdicts(self.pool)
        self._guards: Mapping[str, dict[str, Guard]] = {}  # model → id of a key, or "" for the others → its guards

    def applies(self, snapshot: Snapshot) -> None:
        """Take the policies of a new view; on the event loop."""
        enabled = {model: policy for model, policy in snapshot.guards.items() if policy.enabled}
        self._guards = {
            model: {key: Guard(self, model, policy.of_key(key)) for key in ("", *policy.keys)}
            for model, policy in enabled.items()
        }
        if any(guard.needs_workers for guards in self._guards.values() for guard in guards.values()):
            self.pool.start()

    def stop(self) -> None:
        """End the workers; waits for them."""
        self.pool.stop()

    def of(self, exchange: Exchange) -> Guard | None:
        """The guards of a request; None where its model has none."""
        assert exchange.plan is not None
        guards = self._guards.get(exchange.plan.route.model)
        return None if guards is None else guards.get(exchange.api_key or "") or guards[""]


class Guard:
    """The guards of one model, for one API key or for all others."""

    def __init__(self, shared: Guarding, model: str, policy: GuardPolicy) -> None:
        self._shared = shared
        self._model = model
        self._policy = policy
        judged = GuardPolicy(  # what verdicts depend on: other changes of a policy leave them known
            max_characters=10_000_000,
            length="off",
            injection=policy.injection,
            block_from=policy.block_from,
            flag_from=policy.flag_from,
            decode=policy.decode,
            hidden=policy.hidden,
            secrets=policy.secrets,
            personal=policy.personal,
            entities=policy.entities,
            topics=policy.topics,
        )
        self._judged = judged.model_dump_json()
        self._digest = blake2b(self._judged.encode(), digest_size=16).digest()

    @property
    def needs_workers(self) -> bool:
        """Whether anything is ever judged in a worker."""
        output = self._policy.output
        return self._policy.looks or (output is not None and output.personal != "off")

    async def admit(self, exchange: Exchange, ask: Ask) -> Ask:
        """The request as an engine may see it; the exchange learns how its answer is to be masked.

        Raises:
            ApiError: 400, a guard blocks it; 503, it could not be judged and the policy does not let it through then.
        """
        incoming = Incoming(ask, exchange.endpoint, self._policy.trusted_roles)
        if self._policy.looks and incoming.texts:
            exchange.messages = ()  # until it is known what is in them: whatever ends the request now, none is stored
        declared = list(self._declared(ask, incoming))
        self._tell(exchange, declared)
        self._refuse_blocked(declared)
        if self._policy.looks and incoming.texts:
            ask = await self._judged_ask(exchange, ask, incoming)
        if self._policy.output is not None and self._policy.output.looks and exchange.endpoint != "embedding":
            exchange.mask = partial(self._mask, exchange)
        return ask

    def _declared(self, ask: Ask, incoming: Incoming) -> Iterator[tuple[str, Finding]]:
        """What is wrong with the request whatever its texts say, and with which member."""
        policy, values = self._policy, ask.members.values
        if policy.parameters != "off":
            for name in policy.banned_parameters:
                if name in values and bytes(values[name]) != b"null":
                    yield name, Finding("parameters", name, policy.parameters, None, None)
            choices = _COUNT.decode(values["n"]) if "n" in values else None
            if policy.max_choices is not None and (choices or 1) > policy.max_choices:
                yield "n", Finding("parameters", "n", policy.parameters, None, None)
        if policy.length != "off" and sum(len(text.text) for text in incoming.texts) > policy.max_characters:
            kind = f"more than {policy.max_characters} characters"
            yield incoming.member, Finding("length", kind, policy.length, None, None)

    async def _judged_ask(self, exchange: Exchange, ask: Ask, incoming: Incoming) -> Ask:
        began = time.perf_counter()
        try:
            await self._judge(incoming.texts)
        except Unavailable as error:
            self._failed(exchange, "input", error)
            if self._policy.fail == "open":
                return ask  # and what was asked is not stored: nobody knows what is in it
            message = f"the guards of {self._model} cannot judge this request now; try again"
            after_s = _LATE_RETRY_S if isinstance(error, TooLate) else 1
            raise ApiError(503, message, code="guards_unavailable", retry_after_s=after_s) from None
        self._shared.metrics.guard_took(self._model, time.perf_counter() - began)
        self._only_off_topic_as_a_whole(incoming.texts)
        for text in incoming.texts:
            if text.is_name:  # which cannot be masked
                text.found = [_blocked(one) if one.action == "redact" else one for one in text.found]
        found = [(text.where, one) for text in incoming.texts for one in text.found]
        self._tell(exchange, found)
        engine = [cleaned(text.text, text.found, only_redact=True) for text in incoming.texts]
        record = [cleaned(text.text, text.found, only_redact=False) for text in incoming.texts]
        if changes := incoming.changes(engine):
            ask = changed(ask, exchange.endpoint, changes)
        exchange.messages = ask.messages
        if record != engine and (changes := incoming.changes(record)):
            exchange.messages = changed(ask, exchange.endpoint, changes).messages
        self._refuse_blocked(found)
        return ask

    async def _judge(self, texts: Sequence[Text]) -> None:
        """Put into each text what was found in it; the newest are looked at where they are too many.

        Raises:
            Unavailable: they could not be judged.
        """
        room, said = self._policy.max_characters, dict[bytes, tuple[str, list[Text]]]()
        for text in reversed(texts):
            looked_at = text.text[: max(0, room)]
            room -= len(looked_at)
            if looked_at:
                digest = blake2b(looked_at.encode("utf-8", "surrogatepass"), digest_size=16, key=self._digest).digest()
                said.setdefault(digest, (looked_at, []))[1].append(text)
        asked = {digest: looked_at for digest, (looked_at, _) in said.items()}
        verdicts = await self._shared.verdicts.judge(self._judged, asked, self._policy.deadline_ms / 1e3)
        for digest, (_, same) in said.items():
            for text in same:
                text.found = self._of_role(text.role, verdicts[digest])

    def _only_off_topic_as_a_whole(self, texts: Sequence[Text]) -> None:
        """A request is off topic where nothing its user says at some length is on it: a conversation that was on topic
        may go on in any words.
        """
        topics = self._policy.topics
        if topics is None or topics.action == "off" or not topics.allow:
            return

        room, on_topic = self._policy.max_characters, False
        for text in reversed(texts):  # as they were judged: what is past the limit was not looked at, and says nothing
            looked_at = text.text[: max(0, room)]
            room -= len(looked_at)
            off = any(one.guard == "topics" and one.kind == OFF_TOPIC for one in text.found)
            on_topic |= text.role == "user" and not off and words_of(looked_at) >= topics.least_words
        for text in texts:
            if on_topic or text.role != "user":
                text.found = [one for one in text.found if (one.guard, one.kind) != ("topics", OFF_TOPIC)]

    @staticmethod
    def _of_role(role: str, found: Sequence[Finding]) -> Sequence[Finding]:
        """What an assistant has said is mostly the model's own: it may be quoting an attack, and is flagged at most."""
        if role != "assistant":
            return found
        return [
            Finding(one.guard, one.kind, "flag", one.start, one.end)
            if one.guard in {"injection", "hidden", "topics"} and one.action == "block"
            else one
            for one in found
        ]

    def _refuse_blocked(self, found: Sequence[tuple[str, Finding]]) -> None:
        blocked = [one for _, one in found if one.action == "block"]
        if not blocked:
            return
        where = next(where for where, one in found if one.action == "block")
        kinds = "; ".join(
            f"{guard}: {_listed(blocked, guard)}" for guard in dict.fromkeys(one.guard for one in blocked)
        )
        message = f"the guards of {self._model} do not let this request through: {kinds}"
        raise ApiError(400, message, code="guard_blocked", param=where)

    def _tell(self, exchange: Exchange, found: Sequence[tuple[str, Finding]]) -> None:
        """Count what was found, once a request, and note it for the record: kinds, and nobody's words."""
        for guard in dict.fromkeys(one.guard for _, one in found):
            here = [one for _, one in found if one.guard == guard]
            action = self._drawn(exchange, max((one.action for one in here), key=_GRAVER.index))
            exchange.guards[guard] = f"{action}: {_listed(here, guard)}"
            self._shared.metrics.guarded(self._model, "input", guard, action)

    def _drawn(self, exchange: Exchange, action: str) -> str:
        """What is told of an action: of what is sampled people read a share."""
        return "pass" if action == "sample" and not is_sampled(exchange.id, self._policy.sample_bp) else action

    def _failed(self, exchange: Exchange, where: str, error: Unavailable) -> None:
        cause = "queue" if isinstance(error, QueueFull) else "deadline" if isinstance(error, TooLate) else "worker"
        prefix = "" if where == "input" else f"{where}."
        exchange.guards[f"{prefix}guards"] = f"failed {self._policy.fail}: {cause}"
        self._shared.metrics.guard_failed(self._model, where, cause, self._policy.fail)

    def _mask(self, exchange: Exchange, keep_bytes: int) -> Mask | ResponseMask:
        """The mask of one answer."""
        policy, output = self._policy, self._policy.output
        assert output is not None
        told: list[Finding] = []

        def tell(guard: str, kind: str) -> None:
            action = output.secrets if guard == "secrets" else output.personal
            told_as = self._drawn(exchange, action)
            if guard not in {one.guard for one in told}:
                self._shared.metrics.guarded(self._model, "output", guard, told_as)
            told.append(Finding(guard, kind, action, None, None))
            exchange.guards[f"output.{guard}"] = f"{told_as}: {_listed(told, guard)}"

        looker = Looker(policy, output, self._shared.pool, tell, partial(self._failed, exchange, "output"))
        kind = ResponseMask if exchange.endpoint == "response" else Mask
        return kind(output, looker, looker.left_out, keep_bytes)


def _blocked(one: Finding) -> Finding:
    return Finding(one.guard, one.kind, "block", one.start, one.end)


def _listed(found: Sequence[Finding], guard: str) -> str:
    kinds = sorted({one.kind for one in found if one.guard == guard})
    return ", ".join(kinds[:_MOST_KINDS]) + (
        f" and {len(kinds) - _MOST_KINDS} more" if len(kinds) > _MOST_KINDS else ""
    )
