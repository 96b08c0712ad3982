"""The demo's closing table: what happened, from the evidence alone."""

from __future__ import annotations

from typing import Any


def closing_table(evidence: dict[str, Any]) -> str:
    """Two columns: what, and the figures."""
    traffic, drift, verdict = evidence["traffic"], evidence["drift"], evidence["verdict"]
    latency = traffic["latency_ms"]
    rows = [("base", f"{evidence['base']['name']} {evidence['base']['digest'][:19]}…")]
    for version in evidence["versions"]:
        figures = ", ".join(f"{domain} {value:.3g}" for domain, value in version["perplexity"].items())
        bleu = ", ".join(f"{domain} {value:.3g}" for domain, value in version["bleu"].items())
        origin = f"parent {version['parent']}" if version["parent"] else "from the base"
        rows.append((f"version {version['version']}", f"{origin}; perplexity {figures}; BLEU {bleu}"))
    interval = verdict["interval"]
    rows += [
        ("gate", "; ".join(f"{name}: {_gap(check)}" for name, check in evidence["gate"].items() if check["interval"])),
        ("routes", " → ".join(_split(route["split"]) for route in evidence["routes"])),
        ("requests", f"{traffic['sent']} sent, {traffic['failed']} failed, served by {_split(traffic['served'])}"),
        ("keys moved back", str(traffic["moved_back"])),
        ("latency", f"p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms, p99 {latency['p99']:.0f} ms"),
        (
            "swaps",
            ", ".join(
                f"{s['action']} ({s['streams_in_flight']} streams, {s['streams_broken']} broken)"
                for s in evidence["swaps"]
            ),
        ),
        (
            "drift",
            "; ".join(
                f"{signal} {found['statistic']:.4g} over {found['threshold']:.4g} in {found['n']} requests"
                for signal, found in drift["signals"].items()
            )
            + f"; at most one false alarm in {drift['mean_run_length']:.0f} requests; "
            f"{drift['before_drift_alarms']} alarms before the drift",
        ),
        ("episode", f"{evidence['episode']['id']}, opened {evidence['episode']['opened_at']}"),
        (
            "retraining",
            "{id}, {state}, {rows} corrections".format(**evidence["retraining"]),
        ),
        (
            "canary",
            f"{verdict['outcome']}: feedback {interval['estimate']:+.3f} "
            f"[{interval['low']:+.3f}, {interval['high']:+.3f}] at {100 * interval['level']:.0f} %",
        ),
        ("trace", " → ".join(step.rsplit(" ", 1)[0] for step in evidence["trace"]["steps"])),
        ("time", ", ".join(f"{name} {took:.0f} s" for name, took in evidence["seconds"].items())),
        (
            "in all",
            f"{sum(evidence['seconds'].values()) / 60:.1f} minutes, "
            f"{evidence['peak_memory_bytes'] / 2**30:.1f} GiB at the most",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _split(split: dict[str, int]) -> str:
    return " ".join(f"@{version}={count}" for version, count in split.items())


def _gap(check: dict[str, Any]) -> str:
    interval = check["interval"]
    return f"{check['verdict']} {interval['estimate']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"
