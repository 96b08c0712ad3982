"""The life of an alert episode, as pure steps: opened by a window, joined by signals that agree, resolved. When it is
over says `clearing`.

One problem is one episode: while it is open, further windows and related signals add evidence to it and open
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from tuneloop.monitor.outliving import outlives, signals_of
from tuneloop.monitor.signals import (
    ANSWER_DRIFT,
    BAD_CORRECTIONS,
    BROKEN_ANSWERS,
    CORRECTION_BLEU,
    DETECTORS,
    GUARD_BLOCKS,
    INJECTIONS,
    INVALID_FORMAT,
    LATENCY,
    OF_SERVING,
    PARITY,
    PERPLEXITIES,
    PERPLEXITY,
    PERSONAL_DATA,
    PROMPT_DRIFT,
    QUALITIES,
    QUEUE_TIME,
    REFERENCE_BLEU,
    REFUSALS,
    SERVED_MODEL_CHANGE,
    THROUGHPUT,
    THUMBS_DOWN,
    TOKENS_PER_S,
    problem_of,
)
from tuneloop.monitor.where import told
from tuneloop.registry.evidence import findings_of, part_of, summary_of, window_of
from tuneloop.registry.nouns import AlertEpisode, WindowScore, version_name

MAX_WINDOWS = 50  # an episode keeps the first windows that raised it; later ones are found by time
_RUNBOOKS = dict.fromkeys(QUALITIES, "answer_quality") | dict.fromkeys(THROUGHPUT, "throughput")
_RUNBOOKS |= dict.fromkeys((PERSONAL_DATA, GUARD_BLOCKS), "guard_rates")
RUNBOOKS = {signal: f"docs/runbooks/{_RUNBOOKS.get(signal, signal)}.md" for signal in DETECTORS}
_KEPT = (
    *("words", "examples", "nats", "total_ms", "ttft_ms", "shares", "characters", "engines", "requests"),
    *("bleu", "worst", "means"),
)
PAGES = (LATENCY, INJECTIONS, SERVED_MODEL_CHANGE)  # users are hurt, whatever else is seen
_SHARES = {
    THUMBS_DOWN: "gives more answers that users dislike",
    REFUSALS: "gives more answers that refuse",
    BROKEN_ANSWERS: "gives more answers that are empty or repeat themselves",
    INVALID_FORMAT: "gives more answers that do not parse",
    INJECTIONS: "is attacked: it is asked more that guards stop or flag",
    PERSONAL_DATA: "is asked, or gives, more personal data or secrets",
    GUARD_BLOCKS: "has more of its requests stopped by guards",
    BAD_CORRECTIONS: "gets more corrections that nothing can be learned from",
}


def opened(score: WindowScore, at: datetime, pages: Sequence[str] = PAGES) -> AlertEpisode:
    """The episode a window's alarm opens; the same window always gives the same id. `pages` are signals that page."""
    evidence = {
        "summary": summary(score),
        "since": score.window_start.isoformat(),
        "window_digest": sha256("\n".join(score.request_ids).encode()).hexdigest(),
        "mean_run_length": score.detail["mean_run_length"],
        "reference": score.detail["reference"],
        "signals": {score.signal: _finding(score)},
    }
    return AlertEpisode(
        id="ep_" + sha256(score.id.encode()).hexdigest()[:12],
        model=score.model,
        version=score.version,
        signal=score.signal,
        detector=DETECTORS[score.signal],
        severity="page" if score.signal in pages else "ticket",
        state="open",
        opened_at=at,
        updated_at=at,
        windows=(score.id,),
        evidence=evidence,
        runbook=RUNBOOKS[score.signal],
    )


def takes(episode: AlertEpisode, score: WindowScore, group_s: float) -> bool:
    """Whether an alarm belongs to an open episode: it has that signal or problem already, or was seen close to it.

    `group_s` is how far apart in time two problems of a model may be and still be one: from the first window that
    raised a signal, or from the last. A served model that changed is one with nothing else, and of one version: whoever
    restarts an engine must not take a drift for over, nor the other way round. Nor is a group of people that is treated
    worse: that may stand while drifts come and go. One that outlives its version takes in only what it goes on for.
    """
    if episode.signal in OF_SERVING or score.signal in OF_SERVING:
        return episode.signal == score.signal and episode.version == score.version
    if PARITY in (episode.signal, score.signal):
        return episode.signal == score.signal
    if outlives(episode):
        return not set(signals_of(episode)).isdisjoint(problem_of(score.signal))
    findings = findings_of(episode)
    if {episode.signal, *findings} & set(problem_of(score.signal)):
        return True
    margin = timedelta(seconds=group_s)
    return group_s > 0 and any(
        score.window_start <= window[1] + margin and score.window_end >= window[0] - margin
        for finding in findings.values()
        for window in (window_of(finding), window_of(part_of(finding, "last")))
        if window is not None
    )


def taker(episodes: Iterable[AlertEpisode], score: WindowScore, group_s: float) -> AlertEpisode | None:
    """The open episode an alarm belongs to; one with its own signal or problem before one that was merely close."""
    found = [episode for episode in episodes if episode.state != "resolved" and takes(episode, score, group_s)]
    return next((e for e in found if takes(e, score, 0)), found[0] if found else None)


def joined(episode: AlertEpisode, score: WindowScore, at: datetime, pages: Sequence[str] = PAGES) -> AlertEpisode:
    """The episode with one more window of evidence; the same episode when it has that window. One that has enough of
    them keeps only how long it goes on.

    When prompts changed *and* the model finds them or their true answers harder, or users dislike its answers and the
    answers have changed too, users are likely hurt: the ticket becomes a page. So it does when a signal joins that
    pages by itself; where it is a page already, that is told as well.
    """
    findings = findings_of(episode)
    agrees = score.signal in findings
    full = agrees and len(episode.windows) >= MAX_WINDOWS
    if score.id in episode.windows or (full and not _goes_on(findings[score.signal], score)):
        return episode
    evidence = episode.evidence
    if agrees:
        finding = findings[score.signal]
        if _goes_on(finding, score):
            finding = finding | {"last": _times(score)}
        if not full and (engines := part_of(finding, "engines")):
            added = _moved if score.signal == SERVED_MODEL_CHANGE else _added
            finding = finding | {"engines": added(engines, score.detail["engines"])}
        if not full and not finding.get("slices"):  # a later window may show where
            finding = finding | _where(score, finding.get("looked", 0) + 1)
        evidence = evidence | {"signals": findings | {score.signal: finding}}
    else:
        too = {"pages_too": True} if score.signal in pages and episode.severity == "page" else {}
        both = summary_of(episode), summary(score)
        evidence = evidence | {
            "summary": "; ".join(both[::-1] if score.signal == INJECTIONS else both),  # an attack explains the rest
            "signals": findings | {score.signal: _finding(score) | too},
        }
    raised = {*findings, score.signal}
    hurt = (PROMPT_DRIFT in raised and raised & set(PERPLEXITIES)) or (THUMBS_DOWN in raised and len(raised) > 1)
    severity = "page" if hurt or score.signal in pages else episode.severity
    windows = episode.windows if full else (*episode.windows, score.id)
    return episode.model_copy(update={"windows": windows, "evidence": evidence, "severity": severity, "updated_at": at})


def ended_by_person(episode: AlertEpisode) -> bool:
    """Whether somebody said that what was seen is right as it is; what the monitor ended itself says so."""
    return episode.resolved_at is not None and not {"cleared", "champion"} & episode.evidence.keys()


def _goes_on(finding: Mapping[str, Any], score: WindowScore) -> bool:
    """Whether a window is later than all that a finding knows of."""
    known = [window for window in (window_of(finding), window_of(part_of(finding, "last"))) if window is not None]
    return all(score.window_end > end for _, end in known)


def _added(one: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Counts of both, by name: which engine is slow shows the clearer the more windows tell of it."""
    none = (0, 0)
    pairs = {name: zip(one.get(name, none), other.get(name, none), strict=True) for name in sorted({*one, *other})}
    return {name: [sum(pair) for pair in both] for name, both in pairs.items()}


def _moved(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What each engine read when it was first found changed, else what it read last."""
    first = {name: reading for name, reading in one.items() if reading["alarm"]}
    return dict(sorted((one | other | first).items()))


def is_news(score: WindowScore, past: Sequence[AlertEpisode]) -> bool:
    """Whether an alarm may open an episode: not when a resolved one has dealt with that window already."""
    return not any(
        score.id in episode.windows or (episode.resolved_at is not None and score.at < episode.resolved_at)
        for episode in past
    )


def summary(score: WindowScore) -> str:
    """One line for the person who is woken up."""
    name, detail = version_name(score.model, score.version), score.detail
    if score.signal in (PROMPT_DRIFT, ANSWER_DRIFT):
        words = [f"{w['word']!r} {w['reference']:.0%} → {w['window']:.0%}" for w in detail.get("words", [])[:3]]
        what = "is asked other questions" if score.signal == PROMPT_DRIFT else "gives other answers"
        return f"{name} {what} than before" + (f" ({', '.join(words)})" if words else "")
    if score.signal in PERPLEXITIES:
        nats, what = detail["nats"], "its questions" if score.signal == PERPLEXITY else "the answers users want"
        return f"{name} finds {what} harder ({nats['reference']:.2f} → {nats['window']:.2f} nats per token)"
    if score.signal in _SHARES:
        shares = detail["shares"]
        worst = f", most of them {detail['worst']}" if "worst" in detail else ""
        return f"{name} {_SHARES[score.signal]} ({shares['reference']:.0%} → {shares['window']:.0%}{worst})"
    if score.signal in (*QUALITIES, REFERENCE_BLEU, *THROUGHPUT):
        said = _of_throughput(score.signal, detail) if score.signal in THROUGHPUT else _of_answers(score.signal, detail)
        return f"{name} {said}"
    if score.signal == SERVED_MODEL_CHANGE:
        moved = [f"{key} by {found['statistic']:.3f}" for key, found in detail["engines"].items() if found["alarm"]]
        return f"{name} is no longer the model it was: fixed texts read otherwise on {', '.join(moved)} nats per token"
    return (
        f"{name} is slow: {score.statistic:.0%} of answers over the objective, p95 {detail['total_ms']['p95']:.0f} ms"
    )


def _of_answers(signal: str, detail: Mapping[str, Any]) -> str:
    """What is told of answers by no share."""
    if signal == PARITY:
        return f"treats groups of people unlike: {detail['worst']}"
    if signal == REFERENCE_BLEU:
        was, now = detail["bleu"]["first"], detail["bleu"]["now"]
        return f"answers fixed questions worse than at first (BLEU {was:.1f} → {now:.1f})"
    if signal == CORRECTION_BLEU:
        bleu = detail["bleu"]
        return f"answers further from what users want (BLEU {bleu['reference']:.1f} → {bleu['window']:.1f})"
    was, now = detail["characters"]["reference"], detail["characters"]["window"]
    return f"gives answers of another length (median {was:.0f} → {now:.0f} characters)"


def _of_throughput(signal: str, detail: Mapping[str, Any]) -> str:
    was, now = detail["means"]["reference"], detail["means"]["window"]
    said = f"geometric mean {was:.3g} → {now:.3g}"
    if signal == TOKENS_PER_S:
        return f"writes fewer tokens a second ({said})"
    if signal == QUEUE_TIME:
        return f"keeps requests waiting longer ({said} ms in the queue)"
    return f"is asked {'less' if now > was else 'more'} often ({said} s between requests)"


def _times(score: WindowScore) -> dict[str, str]:
    return {"window_start": score.window_start.isoformat(), "window_end": score.window_end.isoformat()}


def _finding(score: WindowScore) -> dict[str, Any]:
    kept = {key: score.detail[key] for key in _KEPT if key in score.detail}
    return (
        {
            "window": score.id,
            **_times(score),
            "detector": DETECTORS[score.signal],
            "n": score.n,
            "statistic": score.statistic,
            "threshold": score.threshold,
            "p_value": score.p_value,
        }
        | kept
        | _where(score, 1)
    )


def _where(score: WindowScore, look: int) -> dict[str, Any]:
    """What a signal's `look`-th window tells of where it sits, and that it was looked at; nothing of one that was not
    asked."""
    if "slices" not in score.detail:
        return {}
    return {"slices": told(score.detail["slices"], look), "looked": look}
