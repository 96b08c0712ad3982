"""The signals of a champion: which problem each tells of, what it is tested by, and its part of the false-alarm budget.

Prompt drift, the perplexities (of questions, and of the answers users say they should have got), other answers and
worse ones tell of the same problem (the version no longer fits what it is asked) and share an episode. Latency is a
problem of its own, with the speed of answers and their time in the queue; and so are attacks, what else guards find,
corrections that nothing can be learned from, how often it is asked, a group of people that is treated worse (which may
stand for long, and no drift may be taken for it), and a served model that changed, which `canary_watch` looks for.
"""

from __future__ import annotations

from tuneloop.monitor.settings import MonitorSettings

PROMPT_DRIFT, PERPLEXITY, LATENCY = "prompt_drift", "perplexity", "latency"
CORRECTION_PERPLEXITY = "correction_perplexity"
PERPLEXITIES = (PERPLEXITY, CORRECTION_PERPLEXITY)
THUMBS_DOWN, REFUSALS, BROKEN_ANSWERS = "thumbs_down", "refusals", "broken_answers"
ANSWER_LENGTH, ANSWER_DRIFT = "answer_length", "answer_drift"
INVALID_FORMAT, CORRECTION_BLEU, PARITY = "invalid_format", "correction_bleu", "parity"  # where settings ask for them
QUALITIES = (
    *(THUMBS_DOWN, REFUSALS, BROKEN_ANSWERS, ANSWER_LENGTH),
    *(INVALID_FORMAT, CORRECTION_BLEU, ANSWER_DRIFT, PARITY),
)
TRAFFIC_SIGNALS = (PROMPT_DRIFT, *PERPLEXITIES, *QUALITIES)
SERVED_MODEL_CHANGE = "served_model_change"
REFERENCE_BLEU = "reference_bleu"
OF_SERVING = (SERVED_MODEL_CHANGE, REFERENCE_BLEU)  # of one version each, and one problem with nothing else
INJECTIONS = "injections"
TOKENS_PER_S, QUEUE_TIME, REQUEST_RATE = "tokens_per_s", "queue_time", "request_rate"  # where settings ask for them
PERSONAL_DATA, GUARD_BLOCKS = "personal_data", "guard_blocks"  # likewise
BAD_CORRECTIONS = "bad_corrections"  # likewise
SPEED = (LATENCY, TOKENS_PER_S, QUEUE_TIME)  # one problem: answers are late
THROUGHPUT = (TOKENS_PER_S, QUEUE_TIME, REQUEST_RATE)
GUARDED = (INJECTIONS, PERSONAL_DATA, GUARD_BLOCKS)  # shares of all requests, as guards have noted them
DETECTORS = {
    PROMPT_DRIFT: "all texts, words, neighbours and strangers, permutation test",
    PERPLEXITY: "rise of the mean, permutation test",
    CORRECTION_PERPLEXITY: "rise of the mean, permutation test",
    THUMBS_DOWN: "share of thumbs that point down, Fisher's exact test",
    REFUSALS: "share of answers that refuse, Fisher's exact test",
    BROKEN_ANSWERS: "share of answers that are empty or repeat themselves, Fisher's exact test",
    ANSWER_LENGTH: "mean of log lengths, permutation test, two-sided",
    INVALID_FORMAT: "share of answers that do not parse, Fisher's exact test",
    ANSWER_DRIFT: "all texts, words, neighbours and strangers, permutation test",
    CORRECTION_BLEU: "fall of the mean BLEU of answers against corrections, permutation test",
    PARITY: "refusals and lengths of answers by group of people, Fisher's exact and permutation tests, Holm",
    INJECTIONS: "share of requests that guards stopped or flagged as attacks, Fisher's exact test",
    LATENCY: "share of slow answers, exact binomial test",
    TOKENS_PER_S: "fall of the mean log of tokens a second, permutation test",
    QUEUE_TIME: "rise of the mean log of milliseconds in the queue, permutation test",
    REQUEST_RATE: "mean log of seconds between requests, permutation test, two-sided",
    PERSONAL_DATA: "share of requests in which guards found personal data or secrets, Fisher's exact test",
    GUARD_BLOCKS: "share of requests that guards stopped, Fisher's exact test",
    BAD_CORRECTIONS: "share of corrections that nothing can be learned from, Fisher's exact test",
    REFERENCE_BLEU: "fall of BLEU on fixed questions, paired approximate randomisation",
    SERVED_MODEL_CHANGE: "log-probabilities of fixed texts, exact permutation test of rounds",
}
OWN_REFERENCE = (  # what another version's says nothing of
    *(PROMPT_DRIFT, *PERPLEXITIES, ANSWER_LENGTH, ANSWER_DRIFT),
    *(REQUEST_RATE, BAD_CORRECTIONS),
)
# Of a challenger with a share, held against its champion at the same time (`challengers`); no part of the budget of
# false alarms, since they raise none.
TRIAL_REFUSALS, TRIAL_BROKEN_ANSWERS = "trial_refusals", "trial_broken_answers"
TRIAL_ANSWER_PERPLEXITY, TRIAL_CORRECTION_PERPLEXITY = "trial_answer_perplexity", "trial_correction_perplexity"
DETECTORS_OF_TRIALS = {  # the anchor, by whose scores windows are counted, is judged last
    TRIAL_ANSWER_PERPLEXITY: "mean nats of its own answers, always-valid sequence",
    TRIAL_CORRECTION_PERPLEXITY: "mean nats of corrections of its answers, always-valid sequence",
    TRIAL_BROKEN_ANSWERS: "share of answers that are empty or repeat themselves, always-valid sequence",
    TRIAL_REFUSALS: "share of answers that refuse, always-valid sequence",
}
TRIAL_ANCHOR = TRIAL_REFUSALS
ATTACK_GUARDS = ("injection", "hidden")  # as the gateway notes them in a record
_LIGHT = 0.25  # of the weight of a signal of drift


def signals_of(settings: MonitorSettings) -> tuple[str, ...]:
    """The streams watched for each model; the false-alarm budget is shared by all of them."""
    watched = {SERVED_MODEL_CHANGE: settings.canary_every_s > 0, REFERENCE_BLEU: bool(settings.reference_answers)}
    return (*windowed(settings), *(signal for signal in OF_SERVING if watched[signal]))


def windowed(settings: MonitorSettings) -> tuple[str, ...]:
    """Those of them that are judged window by window, in this order."""
    asked_for = {
        INVALID_FORMAT: bool(settings.answer_formats),
        CORRECTION_BLEU: settings.correction_bleu,
        ANSWER_DRIFT: settings.answer_drift,
        BAD_CORRECTIONS: settings.bad_corrections,
        PARITY: settings.parity_windows > 0,
        LATENCY: settings.watches_latency,
        **dict.fromkeys(THROUGHPUT, settings.throughput),
        **dict.fromkeys((PERSONAL_DATA, GUARD_BLOCKS), settings.guard_rates),
    }
    watched = (*TRAFFIC_SIGNALS, *GUARDED, LATENCY, *THROUGHPUT, BAD_CORRECTIONS)
    return tuple(signal for signal in watched if asked_for.get(signal, True))


def problem_of(signal: str) -> tuple[str, ...]:
    """The signals that tell of the same problem, this one included."""
    of_drift = tuple(name for name in TRAFFIC_SIGNALS if name != PARITY)
    return next((problem for problem in (of_drift, SPEED) if signal in problem), (signal,))


def budget_share(signal: str, settings: MonitorSettings) -> float:
    """A stream's part of the false-alarm budget; the parts of all streams of a model make one (a weighted Bonferroni).

    What tells of a drift, or of lateness, gets four times as much as each way in which answers can be worse, and as
    the canaries, what guards count, how fast answers come and what users correct, which need less: a change of the
    served model, or a campaign, is seen at any level.
    """
    lighter = {*QUALITIES, *GUARDED, *THROUGHPUT, *OF_SERVING, BAD_CORRECTIONS} - {ANSWER_DRIFT}
    weights = {name: _LIGHT if name in lighter else 1.0 for name in signals_of(settings)}
    return weights[signal] / sum(weights.values())
