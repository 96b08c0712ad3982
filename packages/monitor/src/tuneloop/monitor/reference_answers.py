"""Fixed questions with the answers they should get, asked of the engines that serve a champion.

Canary texts see that a served model moved; they say nothing of whether it is worse, and nothing of its chat template.
These do, as far as BLEU can: a version's first answers are frozen, and later ones are held against them, question by
question. The version and the questions are the same, so a fall is a fault of serving. Answers take an engine far longer
than canary texts, so this is a loop of its own, in a thread of its own: no window waits for it. A check is made where
traffic has earned its level, as the canaries' are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tuneloop.monitor.bleu import corpus_bleu, paired_fall
from tuneloop.monitor.canary_episodes import StreamEpisodes
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.clocks import SetRight
from tuneloop.monitor.detectors import Outcome, window_alpha
from tuneloop.monitor.scorer import Stopped
from tuneloop.monitor.signals import REFERENCE_BLEU, budget_share
from tuneloop.registry.errors import InvalidInput, TuneloopError, Unavailable
from tuneloop.registry.files import cannot_read
from tuneloop.registry.nouns import EngineState, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")
FEWEST, MOST = 20, 200  # questions of a set: of fewer no deal is rare enough
LEAST_ALPHA = 1e-4  # of a check: less, and so many deals would have to be made that it takes minutes
MAX_TOKENS = 256  # of an answer


@dataclass(frozen=True)
class QuestionSet:
    """Questions and the answers they should get."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Answers to other questions cannot be compared."""
        return sha256(json.dumps([self.questions, self.answers]).encode()).hexdigest()


def read_questions(path: Path) -> QuestionSet:
    """A set from a file, one `{"question": …, "answer": …}` a line.

    Raises:
        InvalidInput: the file cannot be read, holds too few or too many, or a line is not of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, "name a file of questions in reference_answers of [monitor]") from None
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{path}:{number}: not a line of JSON: {error}") from None
        question, answer = (row.get(name) if isinstance(row, dict) else None for name in ("question", "answer"))
        if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
            raise InvalidInput(f'{path}:{number}: write {{"question": "…", "answer": "…"}}, both with text')
        rows.append((question, answer))
    if not FEWEST <= len(rows) <= MOST:
        raise InvalidInput(f"{path}: {len(rows)} questions; a set holds {FEWEST} to {MOST}")
    return QuestionSet(tuple(q for q, _ in rows), tuple(a for _, a in rows))


class ReferenceAnswers:
    """Asks the questions of every model that has some; `client` asks, `stopping` is asked before every question."""

    def __init__(self, stream: CanaryStream, client: httpx.Client) -> None:
        self._stream, self._episodes, self._client = stream, StreamEpisodes(stream), client
        self._settings, self._registry = stream.settings, stream.registry
        self._share = budget_share(REFERENCE_BLEU, stream.settings)
        self._sets = {model: read_questions(Path(path)) for model, path in stream.settings.reference_answers.items()}
        self._set_right = SetRight(stream.registry.clock)
        self._left_alone: dict[str, datetime] = {}  # model whose engine failed → until when

    def run(self, wait: Callable[[float], object]) -> None:
        """Round after round until `stopping`; nothing that goes wrong ends it."""
        while not self._stream.stopping():
            try:
                self.round()
            except Stopped:
                return
            except TuneloopError as error:
                log.warning("reference answers, trying again in %.0f s: %s", self._settings.every_s, error)
            except Exception:  # without it nothing is checked: whatever this was, it is tried again
                log.exception("reference answers, trying again in %.0f s", self._settings.every_s)
            wait(self._settings.every_s)

    def round(self) -> None:
        """Look at every model that has questions once; one that fails is left alone for a while, and stops no other.

        Raises:
            Unavailable: the database does not answer.
            Stopped: told to end while an engine was answering; nothing is concluded from that round.
        """
        for model, route in self._registry.routes.current_all().items():
            until = self._left_alone.get(model)
            if model in self._sets and (until is None or self._registry.clock() >= until):
                self._looked_at(model, route.champion)

    def _looked_at(self, model: str, version: int) -> None:
        try:
            self._episodes.take_up(self._stream.newest(model, version))
            engines = self._registry.fleet.serving(version_name(model, version))
            if engines:
                self._look(model, version, engines[0], self._sets[model])
            return
        except Stopped:
            raise
        except TuneloopError as error:
            log.warning("reference answers of %s, trying again in %.0f s: %s", model, self._pause_s, error)
        except Exception:  # a surprise about one model must not leave the others unasked
            log.exception("reference answers of %s, trying again in %.0f s", model, self._pause_s)
        self._left_alone[model] = self._registry.clock() + timedelta(seconds=self._pause_s)

    @property
    def _pause_s(self) -> float:
        """Between two looks at one model."""
        return self._settings.canary_every_s or self._settings.every_s

    def _look(self, model: str, version: int, engine: EngineState, asked: QuestionSet) -> None:
        newest, began = self._stream.newest(model, version), self._registry.clock()
        if newest is None or self._stream.wants_baseline(newest, asked.digest):
            answers = self._answers(engine, version_name(model, version), asked)
            bleu = corpus_bleu(answers, asked.answers)
            detail = {"rounds": [answers], "canaries": asked.digest, "bleu": {"first": round(bleu, 2)}}
            quiet = Outcome(0.0, 0.0, 1.0, 0.0, 0)
            self._stream.store(model, version, newest, ("none", quiet, detail), n=len(answers), start=began)
            return
        newest = self._set_right(newest)
        if began < newest.window_end + timedelta(seconds=self._pause_s):
            return
        gamma = self._settings.mean_run_length
        answered = self._registry.traffic.window(
            model, since=newest.window_end, version=version, oldest=max(self._settings.window, self._needed)
        )
        alpha = window_alpha(len(answered), gamma, 1) * self._share
        if alpha >= LEAST_ALPHA:  # otherwise traffic must earn more first
            self._check(newest, engine, asked, len(answered), alpha)

    @property
    def _needed(self) -> int:
        """Records that earn the level of one check."""
        return int(LEAST_ALPHA * self._settings.mean_run_length / self._share) + 1

    def _check(self, newest: WindowScore, engine: EngineState, asked: QuestionSet, n: int, alpha: float) -> None:
        model, version = newest.model, newest.version
        frozen = self._stream.baseline_of(newest)
        answers = self._answers(engine, version_name(model, version), asked)
        seed = int(sha256(f"{newest.id}{frozen.id}".encode()).hexdigest()[:16], 16)
        (first,) = frozen.detail["rounds"]
        found = paired_fall(first, answers, asked.answers, alpha, np.random.default_rng(seed))
        detail: dict[str, Any] = {
            "unit": "BLEU lost since the version's first answers",
            "alpha": alpha,
            "baseline": frozen.id,
            "bleu": {"first": round(found.first, 2), "now": round(found.now, 2)},
            "fall": [round(value, 2) for value in found.fall],
            "signature": found.signature,
            "engine": engine.id,
            "reference": {
                "digest": asked.digest,
                "n": len(first),
                "what": "answers to fixed questions",
                "from": frozen.window_start.isoformat(),
                "to": frozen.window_end.isoformat(),
            },
        }
        verdict = "drift" if found.outcome.alarm else "none"
        judged = (verdict, found.outcome, detail)
        score = self._stream.store(model, version, newest, judged, n=n, start=newest.window_end)
        if score.verdict == "drift":
            self._episodes.raised(score)
        self._episodes.end_quiet(model, version)

    def _answers(self, engine: EngineState, name: str, asked: QuestionSet) -> list[str]:
        """What an engine answers, each as the likeliest text.

        Raises:
            Unavailable: it failed; the message names it.
            Stopped: `stopping` said so.
        """

        def answer(question: str) -> str:
            if self._stream.stopping():
                raise Stopped
            body = {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0.0}
            try:
                response = self._client.post(
                    engine.url.rstrip("/") + "/v1/chat/completions", json=body | {"max_tokens": MAX_TOKENS}
                )
                response.raise_for_status()
                return str(response.json()["choices"][0]["message"]["content"] or "")
            except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError) as error:
                said = f"{engine.url} does not answer as {name}: {type(error).__name__}: {error}"
                raise Unavailable(said) from error

        return self._all(answer, asked.questions)

    def _all(self, answer: Callable[[str], str], questions: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(self._settings.scorer_concurrency) as pool:
            waiting = [pool.submit(answer, question) for question in questions]
            try:
                return [future.result() for future in waiting]
            except (Unavailable, Stopped):
                pool.shutdown(cancel_futures=True)
                raise
