"""Limits of keys and their owners at the gateway: take what a request may need, give back what it did not, say what is
left.

Called on the event loop alone; a key without limits never comes here. All keys of an owner share one meter beside their
own. Tokens are reserved as the prompt's estimate and
the most its answer may take, and settled with the engine's count; so is money. What no engine took is given back whole;
a whole answer that was not waited for any longer costs what was reserved, as its engine may be at work on it.
"""

from __future__ import annotations

import calendar
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from tuneloop.registry.access.leases import Need, Shared, floor_of
from tuneloop.registry.nouns import ApiKey, utc_now
from tuneloop.registry.retraining.budgets import month_of
from tuneloop.serve.gateway.admission.estimate import answer_tokens, prompt_tokens
from tuneloop.serve.gateway.admission.meter import Gateways, Meter, Part
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.admission.scopes import Scope, scopes_of
from tuneloop.serve.gateway.admission.window import WINDOW_S, Window
from tuneloop.serve.gateway.body import Ask
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.sse import Usage

Kind = Literal["streams", "requests", "tokens", "budget"]
Told = Literal[Kind, "owner_streams", "owner_requests", "owner_tokens", "owner_budget"]  # which limit it was
_OF_OWNER: dict[Kind, Told] = {
    "streams": "owner_streams",
    "requests": "owner_requests",
    "tokens": "owner_tokens",
    "budget": "owner_budget",
}
SEEN_AFTER_S = 5.0  # what is said to be in the database can be read by then, as a rule at once
_REMEMBERED = 20  # requests that the mean time of a key's is made of
_NOTHING = Decimal(0)


@dataclass(slots=True)
class Taken:
    """What one request has taken of the limits of its key, or of its owner."""

    meter: Meter
    price: Price | None  # None: the key has no budget
    began_s: float
    second: int  # under which it stands in the windows
    prompt: int
    tokens: int
    money: Decimal


class Limits:
    """Every limited key of one gateway."""

    def __init__(
        self,
        prices: Mapping[str, Price],
        answer_unless_said: int,
        refused: Callable[[str, Told], None],
        hurry: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`refused` hears of key and limit; `hurry` asks for the next renewal at once: a part may not suffice."""
        self._prices = prices
        self._answer_unless_said = answer_unless_said
        self._refused = refused
        self._hurry = hurry
        self._clock = clock
        self._now = now
        self._meters: dict[str, Meter] = {}
        self._spent: Mapping[str, Decimal] = {}  # of every key with a budget, once it has been read
        self.gateways = Gateways()

    def admit(self, exchange: Exchange, key: ApiKey, ask: Ask, model: str, *, at_last: bool = True) -> bool:
        """Take what a request may need, or nothing; `exchange` learns what it holds, and what the client is told.

        False, where this is not the last attempt: other gateways leave room, which the next renewal may bring here, or
        it may tell what the key has spent.

        Raises:
            ApiError: 429, which limit it is and when there may be room; 403, its price is not known; 503, what it has
                spent is not known yet.
        """
        now_s, scopes = self._clock(), scopes_of(key)
        if any(one.limits.budget_usd_per_month is not None and one.id not in self._spent for one in scopes):
            self._hurry()
            if not at_last:
                return False
            message = "what this API key has spent of its budget is not known yet; try again"
            raise ApiError(503, message, code="not_ready", retry_after_s=1)
        prompt = prompt_tokens(ask)
        tokens = prompt + answer_tokens(ask, self._answer_unless_said)
        taken: list[Taken] = []
        for scope in scopes:
            meter = self._meter(scope)
            try:
                price = self._price(scope, model)
                money = price.of(prompt, tokens - prompt) if price else _NOTHING
                self._check(scope, meter, tokens, money, now_s)
            except _Refusal as refusal:
                if refusal.is_elsewhere and not at_last:
                    return False
                self._refused(key.id, _OF_OWNER[refusal.kind] if scope.is_owner else refusal.kind)
                exchange.limit_headers = self._headers([self._meter(one) for one in scopes], now_s)
                raise refusal.error from None
            taken.append(Taken(meter, price, now_s, 0, prompt, tokens, money))
        for one in taken:  # of none, if one of them has no room
            one.meter.open += 1
            one.second = one.meter.requests.add(now_s, 1)
            one.meter.tokens.add(now_s, tokens)
            one.meter.reserved += one.money
        exchange.taken = tuple(taken)
        exchange.limit_headers = self._headers([one.meter for one in taken], now_s)
        return True

    def count(self, key: ApiKey, *, at_last: bool = True) -> bool:
        """Take one request that no engine is asked for, or nothing; False as `admit` does.

        Raises:
            ApiError: 429, too many requests within a minute.
        """
        now_s, scopes = self._clock(), scopes_of(key)
        for scope in scopes:
            meter = self._meter(scope)
            try:
                self._check_window("requests", meter.requests, 1, meter, scope, now_s)
            except _Refusal as refusal:
                if refusal.is_elsewhere and not at_last:
                    return False
                self._refused(key.id, _OF_OWNER[refusal.kind] if scope.is_owner else refusal.kind)
                raise refusal.error from None
        for scope in scopes:
            self._meter(scope).requests.add(now_s, 1)
        return True

    def _meter(self, scope: Scope) -> Meter:
        meter = self._meters.get(scope.id)
        if meter is None:
            meter = self._meters[scope.id] = Meter(scope.limits, spent=self._spent.get(scope.id, _NOTHING))
        meter.limits = scope.limits
        return meter

    def _check(self, scope: Scope, meter: Meter, tokens: int, money: Decimal, now_s: float) -> None:
        self._check_streams(meter, scope)
        self._check_window("requests", meter.requests, 1, meter, scope, now_s)
        self._check_window("tokens", meter.tokens, tokens, meter, scope, now_s)
        self._check_budget(meter, scope, money)

    def settle(self, exchange: Exchange) -> None:
        """A request has ended: put what it took in the place of what it had reserved."""
        for taken in exchange.taken:
            self._settle(exchange, taken)

    def _settle(self, exchange: Exchange, taken: Taken) -> None:
        meter, now_s = taken.meter, self._clock()
        meter.open -= 1
        meter.reserved -= taken.money
        untaken = exchange.status == 503 and not exchange.committed and exchange.usage is None
        if exchange.target is None or untaken:  # who was refused for what it asked has asked nonetheless
            if exchange.status >= 500 or exchange.left:
                meter.requests.settle(taken.second, -1)
            meter.tokens.settle(taken.second, -taken.tokens)
            return
        took_s = now_s - taken.began_s
        meter.mean_s += (took_s - meter.mean_s) / _REMEMBERED if meter.mean_s else took_s
        usage = exchange.usage
        if usage is None and exchange.overdue:
            usage = exchange.usage = Usage(taken.prompt, taken.tokens - taken.prompt)
            exchange.guards["usage"] = "estimated"
        # The engine's count comes last. Who leaves before it pays for the prompt, and for what of an answer was sent.
        if usage is None and (exchange.committed or exchange.left):
            usage = exchange.usage = Usage(taken.prompt, exchange.events)
            exchange.guards["usage"] = "estimated"
        prompt, answer = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        more = prompt + answer - taken.tokens
        if more > 0:  # underestimated: it counts from now, as its own second may have left the window
            meter.tokens.add(now_s, more)
        else:
            meter.tokens.settle(taken.second, more)
        if taken.price is not None and (cost := taken.price.of(prompt, answer)):
            meter.spend(now_s, cost)

    def needs(self) -> dict[str, dict[str, Need]]:
        """What the registry is told of every key in use; the others are forgotten here."""
        now_s = self._clock()
        self._meters = {key: meter for key, meter in self._meters.items() if not meter.is_idle(now_s)}
        found = {key: meter.needs(now_s, self.gateways) for key, meter in self._meters.items()}
        return {key: needs for key, needs in found.items() if needs}

    def learn(self, shared: Shared) -> None:
        """Take the parts that a renewal gave."""
        self.gateways.live, self.gateways.away = shared.live, False
        for key, parts in shared.held.items():
            if (meter := self._meters.get(key)) is not None:
                for kind, held in parts.items():
                    meter.parts[kind].held, meter.parts[kind].others = held, shared.others[key][kind]

    def learn_spending(self, spent: Mapping[str, Decimal], read_s: float) -> None:
        """Take what is on record of this month's spending: all that had ended here at `read_s` of this clock."""
        self._spent = spent
        for key, meter in self._meters.items():
            meter.on_record(spent.get(key, _NOTHING), read_s - SEEN_AFTER_S)

    def unshared(self) -> None:
        """The registry has not answered for a while: keep to an even share."""
        self.gateways.away = True

    def _price(self, scope: Scope, model: str) -> Price | None:
        if scope.limits.budget_usd_per_month is None:
            return None
        price = self._prices.get(model)
        if price is None:
            message = f"{scope.who} has a budget, and {model} has no price; ask for one in `prices` of [gateway]"
            raise _Refusal("budget", ApiError(403, message, code="model_without_price", param="model"))
        return price

    def _check_streams(self, meter: Meter, scope: Scope) -> None:
        limit = scope.limits.streams
        if limit is None:
            return
        part = meter.parts["streams"]
        if meter.open + 1 <= part.of(limit, self.gateways):
            return
        message = f"{scope.who} may have {limit} requests at once, and has"
        expected_s = meter.mean_s / max(1, meter.open)
        raise self._full("streams", part, limit, 1, meter.open, message, expected_s)

    def _check_window(
        self,
        kind: Literal["requests", "tokens"],
        window: Window,
        cost: int,
        meter: Meter,
        scope: Scope,
        now_s: float,
    ) -> None:
        limits = scope.limits
        limit = limits.requests_per_minute if kind == "requests" else limits.tokens_per_minute
        if limit is None:
            return
        part, there, used = meter.parts[kind], self.gateways, window.used(now_s)
        allowed = part.of(limit, there)
        if used + cost <= allowed:
            if there.live > 1 and used + cost > allowed - max(1, limit // 16):
                part.refused = max(part.refused, cost)
                self._hurry()
            return
        most = limit if there.live <= 1 else limit - floor_of(limit, there.live) * (there.live - 1)
        if cost > most:
            message = (
                f"the request may take {cost} tokens, more than the {most} a minute that {scope.who} may use; lower "
                "max_tokens"
            )
            raise _Refusal(kind, ApiError(429, message, code="rate_limit_exceeded"))
        message = f"{scope.who} may use {limit} {kind} a minute; {used} are used here and this request may take {cost}"
        own_s = window.wait_s(now_s, allowed - cost) if cost <= allowed else cost * WINDOW_S / limit
        raise self._full(kind, part, limit, cost, used, message, own_s)

    def _full(
        self, kind: Kind, part: Part, limit: int, cost: int, used: int, message: str, expected_s: float
    ) -> _Refusal:
        elsewhere = used + cost <= part.reach(limit, self.gateways)
        after_s = 1 if elsewhere else max(1, math.ceil(expected_s))
        if self.gateways.live > 1:
            part.refused = max(part.refused, cost)
            self._hurry()
        text = f"{message}; try again in {after_s} s"
        error = ApiError(429, text, code="rate_limit_exceeded", retry_after_s=after_s)
        return _Refusal(kind, error, is_elsewhere=elsewhere)

    def _check_budget(self, meter: Meter, scope: Scope, money: Decimal) -> None:
        budget = scope.limits.budget_usd_per_month
        if budget is None or meter.owed + money <= budget:
            return
        if meter.owed - meter.reserved + money <= budget:  # what is under way may take less than it has reserved
            after_s = max(1, math.ceil(meter.mean_s / max(1, meter.open)))
        else:
            now = self._now()
            month = month_of(now)
            days = calendar.monthrange(month.year, month.month)[1]
            after_s = math.ceil((month + timedelta(days=days) - now).total_seconds())
        message = f"{scope.who} may spend {budget} USD a month, and this request could exceed that"
        raise _Refusal("budget", ApiError(429, message, code="insufficient_quota", retry_after_s=after_s))

    def _headers(self, meters: Sequence[Meter], now_s: float) -> list[tuple[bytes, bytes]]:
        """What OpenAI's clients read: of each kind the limit that leaves the least."""
        found = []
        for kind in (b"requests", b"tokens"):
            left: list[tuple[int, int, Window]] = []
            for meter in meters:
                limits, window = meter.limits, meter.requests if kind == b"requests" else meter.tokens
                limit = limits.requests_per_minute if kind == b"requests" else limits.tokens_per_minute
                if limit is not None:
                    reach = meter.parts[kind.decode()].reach(limit, self.gateways)
                    left.append((max(0, reach - window.used(now_s)), limit, window))
            if left:
                remaining, limit, window = min(left, key=lambda one: one[0])
                found += [
                    (b"x-ratelimit-limit-" + kind, b"%d" % limit),
                    (b"x-ratelimit-remaining-" + kind, b"%d" % remaining),
                    (b"x-ratelimit-reset-" + kind, duration(window.reset_s(now_s))),
                ]
        return found


class _Refusal(Exception):
    """Which limit has no room, and what the client is told."""

    def __init__(self, kind: Kind, error: ApiError, *, is_elsewhere: bool = False) -> None:
        super().__init__(error.message)
        self.kind = kind
        self.error = error
        self.is_elsewhere = is_elsewhere  # other gateways leave room


def duration(seconds: float) -> bytes:
    """As OpenAI writes one: `350ms`, `12s`, `1m1s`."""
    if seconds < 1.0:
        return b"%dms" % math.ceil(seconds * 1e3)
    minutes, rest = divmod(math.ceil(seconds), 60)
    return (b"%dm" % minutes if minutes else b"") + b"%ds" % rest
