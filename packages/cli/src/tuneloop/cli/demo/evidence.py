"""What the demo proved, from what the verbs printed as JSON: every figure of the closing table, measured here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import quantiles
from typing import Any

from tuneloop.cli.demo.traffic import Tally

Json = dict[str, Any]
SWAPS = {
    "route.stage": "load",
    "rollout.step": "raise",
    "version.promote": "promote",
    "route.rollback": "rollback",
}
AFTER_SWAP_S = 10.0
NEW_DOMAIN = "not worse on sqlalchemy"  # the gate's check on the domain that users drift to


@dataclass
class Gathered:
    """What the steps handed over, each as the verb printed it."""

    base: Json = field(default_factory=dict)
    versions: list[Json] = field(default_factory=list)
    routes: list[Json] = field(default_factory=list)
    audit: list[Json] = field(default_factory=list)
    requests: list[Json] = field(default_factory=list)
    windows: list[Json] = field(default_factory=list)
    episode: Json = field(default_factory=dict)
    retraining: Json = field(default_factory=dict)
    gate: Json = field(default_factory=dict)
    verdict: Json = field(default_factory=dict)
    trace: list[Json] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0


def build(gathered: Gathered, tally: Tally, drift_began: datetime) -> Json:
    """The evidence as it is written to `evidence.json`."""
    routes = sorted(gathered.routes, key=lambda route: route["revision"])
    return {
        "base": {"name": gathered.base["name"], "digest": gathered.base["digest"]},
        "versions": [_version(version) for version in sorted(gathered.versions, key=lambda v: v["version"])],
        "routes": [
            {
                "revision": route["revision"],
                "at": route["at"],
                "split": {str(arm["version"]): arm["weight_bp"] for arm in route["arms"]},
                "by": route["by"],
                "reason": route["reason"],
            }
            for route in routes
        ],
        "traffic": _traffic(gathered.requests, routes, tally),
        "swaps": _swaps(gathered.audit, tally),
        "drift": _drift(gathered, drift_began),
        "episode": {"id": gathered.episode["id"], "opened_at": gathered.episode["opened_at"]},
        "retraining": {key: gathered.retraining[key] for key in ("id", "state", "rows", "idempotency_key")},
        "gate": {check["name"]: check for check in gathered.gate["checks"]},
        "verdict": _verdict(gathered.verdict),
        "trace": {"request_id": gathered.trace[0]["id"], "steps": [f"{s['kind']} {s['id']}" for s in gathered.trace]},
        "seconds": {name: round(took, 1) for name, took in gathered.seconds.items()},
        "peak_memory_bytes": gathered.peak_memory_bytes,
    }


def failures(evidence: Json) -> list[str]:
    """What the demo promised and this run did not show; empty when all of it held."""
    traffic, gate = evidence["traffic"], evidence["gate"]
    wrong = []
    if traffic["failed"]:
        wrong.append(f"{traffic['failed']} of {traffic['sent']} requests failed")
    if traffic["moved_back"]:
        wrong.append(f"{traffic['moved_back']} keys moved back to the champion while the canary rose")
    if broken := sum(swap["streams_broken"] for swap in evidence["swaps"]):
        wrong.append(f"{broken} streams broke around a swap")
    if not any(swap["streams_in_flight"] for swap in evidence["swaps"]):
        wrong.append("no stream was in flight at any swap, so that none broke shows nothing")
    if (gap := gate[NEW_DOMAIN]["interval"]) is None or gap["high"] >= 0:
        wrong.append(f"version 2 is not better on the new domain: {gate[NEW_DOMAIN]['detail']}")
    wrong += [f"gate: {name}: {check['detail']}" for name, check in gate.items() if check["verdict"] != "pass"]
    if evidence["verdict"]["outcome"] != "pass":
        wrong.append(f"the canary's verdict is {evidence['verdict']['outcome']}")
    if evidence["retraining"]["state"] != "shipped":
        wrong.append(f"the retraining request ended as {evidence['retraining']['state']}")
    kinds = [step.rsplit(" ", 1)[0] for step in evidence["trace"]["steps"]]
    if "window" not in kinds:
        wrong.append(f"the trace ends at {kinds[-1]}, not at the window that raised the alert")
    return wrong


def moved_back(requests: Sequence[Json], routes: Sequence[Json]) -> int:
    """How often a key went from a version back to another while that version's share was rising or standing."""
    share = {route["revision"]: {arm["version"]: arm["weight_bp"] for arm in route["arms"]} for route in routes}
    by_key: dict[str, list[Json]] = defaultdict(list)
    for request in sorted(requests, key=lambda r: (r["revision"] or 0, r["at"])):
        if None not in (request["revision"], request["assigned_version"]):  # a pinned request is nobody's arm
            by_key[request["key_hash"]].append(request)
    count = 0
    for asked in by_key.values():
        for before, after in pairwise(asked):
            left = before["assigned_version"]
            shrank = share[after["revision"]].get(left, 0) < share[before["revision"]].get(left, 0)
            champion_gave_way = shrank and after["assigned_version"] != left
            if after["assigned_version"] != left and not champion_gave_way:
                count += 1
    return count


def _version(version: Json) -> Json:
    def domains(metric: str) -> dict[str, float]:
        found = version["metrics"].items()
        return {name.removeprefix(f"{metric}."): value for name, value in found if name.startswith(f"{metric}.")}

    return {
        "version": version["version"],
        "digest": version["artifact_digest"],
        "parent": version["parent"],
        "request_id": version["request_id"],
        "perplexity": domains("perplexity"),
        "bleu": domains("bleu"),
    }


def _traffic(requests: Sequence[Json], routes: Sequence[Json], tally: Tally) -> Json:
    cuts = quantiles(tally.latencies_ms, n=100, method="inclusive")
    return {
        "sent": tally.sent,
        "failed": tally.failed,
        "recorded": len(requests),
        "assigned": _counts(requests, "assigned_version"),
        "served": _counts(requests, "served_version"),
        "latency_ms": {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "p99": round(cuts[98], 1)},
        "moved_back": moved_back(requests, routes),
    }


def _counts(requests: Sequence[Json], key: str) -> dict[str, int]:
    return dict(sorted(Counter(str(request[key]) for request in requests if request[key] is not None).items()))


def _swaps(audit: Sequence[Json], tally: Tally) -> list[Json]:
    swaps = []
    for entry in sorted(audit, key=lambda entry: entry["id"]):
        if entry["action"] not in SWAPS or entry["detail"].get("before") == "":
            continue
        at = datetime.fromisoformat(entry["at"])
        in_flight, broken = tally.streams_at(at, AFTER_SWAP_S)
        split = entry["detail"]["split"]
        swap = {
            "at": entry["at"],
            "action": SWAPS[entry["action"]],
            "version": split,
            "revision": entry["detail"]["revision"],
        }
        swaps.append(swap | {"streams_in_flight": in_flight, "streams_broken": broken})
    return swaps


def _drift(gathered: Gathered, drift_began: datetime) -> Json:
    opened = next(window for window in gathered.windows if window["id"] == gathered.episode["windows"][0])
    before = [
        window
        for window in gathered.windows
        if window["verdict"] == "drift" and datetime.fromisoformat(window["window_end"]) < drift_began
    ]
    keys = ("signal", "statistic", "threshold", "p_value", "mean_run_length", "n")
    seen = {
        signal: {key: found[key] for key in ("statistic", "threshold", "p_value", "n")}
        for signal, found in gathered.episode["evidence"]["signals"].items()
    }
    rest = {"signals": seen, "before_drift_alarms": len(before), "windows": len(gathered.windows)}
    return {key: opened[key] for key in keys} | rest


def _verdict(report: Mapping[str, Any]) -> Json:
    feedback = next(check for check in report["checks"] if check["name"] == "feedback")
    return {"outcome": report["verdict"], "interval": feedback["interval"], "checks": report["checks"]}
