"""For whoever sees to capacity: how much is asked, how full gateways and engines are, what is refused for want of room.

The gateway's queue for a turn and its refusals are of all models together; the engines' own queue is vLLM's metric, and
time between tokens is both theirs and the gateway's.
"""

from __future__ import annotations

from tuneloop.monitor.boards.grafana import Board, Panel, Query, Row, quantiles, rate


def board() -> Board:
    """The dashboard."""
    return Board(
        "tuneloop-capacity",
        "tuneloop: capacity",
        "How much is asked, how full gateways and engines are, what is refused for want of room.",
        (
            Row("Demand", _DEMAND),
            Row("Gateways: the queue and the limits", _GATEWAYS),
            Row("Engines: how full", _FULL),
            Row("Engines: how fast", _FAST),
            Row("Engines: adapters that come and go", _SWAPS, across=2),
            Row("Work beside requests", _BESIDE),
        ),
        since="now-24h",
    )


_DEMAND = (
    Panel(
        "Requests by model",
        "reqps",
        (Query(f"sum by (model) ({rate('tuneloop_requests_total')})", "{{model}}"),),
        stacked=True,
    ),
    Panel(
        "Tokens by model",
        "short",
        (Query(f"sum by (model, kind) ({rate('tuneloop_tokens_total')})", "{{model}} {{kind}}"),),
        description="Per second, read (prompt) and written (completion).",
        stacked=True,
    ),
    Panel(
        "Tokens by owner",
        "short",
        (Query("sum by (owner) (rate(tuneloop_owner_tokens_total[$__rate_interval]))", "{{owner}}"),),
        description="Per second, of all models.",
        stacked=True,
    ),
    Panel(
        "Money by owner",
        "currencyUSD",
        (Query("3600 * sum by (owner) (rate(tuneloop_owner_spent_usd_total[$__rate_interval]))", "{{owner}}"),),
        description="An hour, of models that have a price.",
    ),
    Panel(
        "Requests by owner",
        "reqps",
        (
            Query(
                "sum by (owner, status) (rate(tuneloop_owner_requests_total[$__rate_interval]))", "{{owner}} {{status}}"
            ),
        ),
        description="Of all models; 429: a limit refused, 499: the client left first.",
    ),
    Panel(
        "Time to first token by owner",
        "s",
        (
            Query(
                "sum by (owner) (rate(tuneloop_owner_time_to_first_token_seconds_sum[$__rate_interval]))"
                " / sum by (owner) (rate(tuneloop_owner_time_to_first_token_seconds_count[$__rate_interval]))",
                "{{owner}}",
            ),
        ),
        description="Mean of the streams of all models, from arrival.",
    ),
    Panel(
        "Engine time asked for",
        "short",
        (Query(f"sum by (model) ({rate('tuneloop_request_seconds_sum')})", "{{model}}"),),
        description="Seconds of requests per second: how many are under way at once, on average (Little's law).",
        stacked=True,
    ),
)
_GATEWAYS = (
    Panel(
        "Waiting for a turn at the engines",
        "s",
        quantiles("tuneloop_queue_seconds", "", "", 0.5, 0.95, 0.99, chosen=""),
        description="Of those that waited, all models together.",
    ),
    Panel(
        "From arrival to the engine",
        "s",
        quantiles("tuneloop_engine_queue_seconds", "model, engine", "{{model}} {{engine}}", 0.5, 0.99),
        description="Limits, the turn, guards, and attempts before.",
    ),
    Panel(
        "Requests in flight and waiting",
        "short",
        (
            Query("sum by (instance) (tuneloop_requests_in_flight)", "{{instance}} in flight"),
            Query("sum by (instance) (tuneloop_requests_waiting)", "{{instance}} waiting"),
        ),
        description="In flight: they have their turn; at `max_in_flight` the next one waits.",
    ),
    Panel(
        "Refused because too many waited",
        "reqps",
        (Query("sum by (reason) (rate(tuneloop_shed_requests_total[$__rate_interval]))", "{{reason}}"),),
    ),
    Panel(
        "Refused by a limit of their key or its owner",
        "reqps",
        (Query("sum by (key, limit) (rate(tuneloop_limited_requests_total[$__rate_interval]))", "{{key}} {{limit}}"),),
    ),
    Panel(
        "Gateways that share the limits",
        "short",
        (
            Query("tuneloop_limits_gateways", "{{instance}} counts"),
            Query("tuneloop_limits_shared", "{{instance}} agreed (0: an even share each)"),
        ),
    ),
    Panel(
        "Second attempts",
        "reqps",
        (Query(f"sum by (model) ({rate('tuneloop_retries_total')})", "{{model}}"),),
    ),
)
_FULL = (
    Panel(
        "Requests in the engines",
        "short",
        (
            Query("vllm:num_requests_running", "running, {{instance}}"),
            Query("vllm:num_requests_waiting", "waiting, {{instance}}"),
        ),
    ),
    Panel("Key-value cache in use", "percentunit", (Query("vllm:kv_cache_usage_perc", "{{instance}}"),)),
    Panel(
        "Requests that had to begin anew",
        "short",
        (Query("increase(vllm:num_preemptions_total[$__rate_interval])", "{{instance}}"),),
        description="Preempted: the key-value cache was full.",
    ),
    Panel(
        "Prefix cache hits",
        "percentunit",
        (
            Query(
                "rate(vllm:prefix_cache_hits_total[$__rate_interval])"
                " / rate(vllm:prefix_cache_queries_total[$__rate_interval])",
                "{{instance}}",
            ),
        ),
        description="Share of the tokens of prompts.",
    ),
    Panel(
        "Waiting in the engines",
        "s",
        quantiles("vllm:request_queue_time_seconds", "instance", "{{instance}}", 0.5, 0.99, chosen=""),
    ),
    Panel(
        "Engines ready",
        "short",
        (Query("max by (engine) (tuneloop_engine_ready)", "{{engine}}"),),
        stacked=True,
    ),
)
_FAST = (
    Panel(
        "Time between tokens",
        "s",
        quantiles("vllm:inter_token_latency_seconds", "instance", "{{instance}}", 0.5, 0.95, 0.99, chosen=""),
        description="As the engines measure it, all versions together.",
    ),
    Panel(
        "Time between events of a stream",
        "s",
        quantiles("tuneloop_inter_token_seconds", "engine", "{{engine}}", 0.5, 0.99),
        description="As they come to the gateways.",
    ),
    Panel(
        "Time to first token",
        "s",
        quantiles("tuneloop_time_to_first_token_seconds", "engine", "{{engine}}", 0.5, 0.99),
        description="From arrival at a gateway, by the engine that answered.",
    ),
    Panel(
        "Tokens per second of an engine",
        "short",
        (
            Query("rate(vllm:prompt_tokens_total[$__rate_interval])", "read, {{instance}}"),
            Query("rate(vllm:generation_tokens_total[$__rate_interval])", "written, {{instance}}"),
        ),
    ),
    Panel(
        "First token of an engine",
        "s",
        quantiles("vllm:time_to_first_token_seconds", "instance", "{{instance}}", 0.5, 0.99, chosen=""),
    ),
)
_SWAPS = (
    Panel(
        "Adapters loaded, failed and unloaded",
        "short",
        (
            Query(
                "max by (engine, change) (increase(tuneloop_adapter_changes_total[$__rate_interval]))",
                "{{engine}} {{change}}",
            ),
        ),
        description="As the gateways see it, each of them the same.",
    ),
    Panel(
        "Until an adapter is ready",
        "s",
        (
            Query(
                "max by (engine) (rate(tuneloop_adapter_load_seconds_sum[$__rate_interval])"
                " / rate(tuneloop_adapter_load_seconds_count[$__rate_interval]))",
                "{{engine}}",
            ),
        ),
        description="Mean: fetch, turn, load, first token; to within `poll_s`, the engine's log has it exactly.",
    ),
)
_BESIDE = (
    Panel(
        "Time that guards take",
        "short",
        (Query(f"sum by (model) ({rate('tuneloop_guard_seconds_sum')})", "{{model}}"),),
        description="Seconds of judging per second, waiting for a worker included.",
    ),
    Panel(
        "Copies for shadows",
        "reqps",
        (Query(f"sum by (model, version) ({rate('tuneloop_shadow_requests_total')})", "{{model}}@{{version}}"),),
    ),
    Panel(
        "Written too slowly",
        "short",
        (
            Query("tuneloop_records_pending", "records in memory, {{instance}}"),
            Query("increase(tuneloop_records_spooled_total[$__rate_interval])", "records to disk, {{instance}}"),
            Query("increase(tuneloop_spans_dropped_total[$__rate_interval])", "traces lost, {{instance}}"),
        ),
    ),
)
