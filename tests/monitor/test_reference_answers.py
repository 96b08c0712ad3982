"""Fixed questions with reference answers: a version that answers them worse than at first is told, in the budget."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from monitor.scene import Killed, Scene, failing
from tests_support import beat_engine
from tuneloop.monitor.bleu import _corpus, corpus_bleu, paired_fall
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.keeping import Keeper
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reference_answers import ReferenceAnswers, read_questions
from tuneloop.monitor.signals import REFERENCE_BLEU
from tuneloop.registry.episodes import resolved
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import Arm

WORDS = [f"word{n}" for n in range(40)]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=12))


def questions(folder: Path, n: int = 24) -> tuple[str, dict[str, str]]:
    """A set in a file, and what is to be answered to each."""
    rng = random.Random(5)
    wanted = {f"question {number}?": sentence(rng) for number in range(n)}
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in wanted.items()))
    return str(path), wanted


@pytest.fixture
def asked(scene: Scene, tmp_path: Path) -> ReferenceAnswers:
    """The loop of a fresh process, over an engine that answers nearly as it should; its baseline is frozen."""
    path, wanted = questions(tmp_path)
    scene.settings = scene.settings.model_copy(update={"reference_answers": {"bot": path}, "canary_every_s": 60.0})
    scene.engine.says = lambda question: f"well {wanted[question]}"
    made = fresh(scene)
    beat_engine(scene.registry, "bot@1", url=scene.engine.url, at=scene.clock.now)
    made.round()
    return made


def fresh(scene: Scene) -> ReferenceAnswers:
    stream = CanaryStream(scene.registry, scene.settings, scene.client, Metrics(), signal=REFERENCE_BLEU)
    return ReferenceAnswers(stream, scene.client)


def check(scene: Scene, made: ReferenceAnswers, records: int = 20) -> None:
    """Traffic earns a check, and it is made."""
    scene.usual(records)
    scene.clock.advance(60)
    beat_engine(scene.registry, "bot@1", url=scene.engine.url, at=scene.clock.now)
    made.round()


def verdicts(scene: Scene) -> list[str]:
    return [score.verdict for score in scene.scores(REFERENCE_BLEU)]


def test_an_unchanged_version_raises_nothing_and_is_asked_only_once_traffic_has_earned_it(
    scene: Scene, asked: ReferenceAnswers
) -> None:
    (first,) = scene.scores(REFERENCE_BLEU)
    assert first.detail["bleu"]["first"] == pytest.approx(92.0, abs=8)
    body = scene.engine.bodies[-1]
    assert (body["model"], body["temperature"]) == ("bot@1", 0.0)
    check(scene, asked, records=1)
    assert verdicts(scene) == ["none"], "one answer earns no check"
    check(scene, asked)
    assert verdicts(scene) == ["none", "none"]
    score = scene.scores(REFERENCE_BLEU)[1]
    assert score.p_value == 1.0
    assert score.detail["bleu"]["now"] == score.detail["bleu"]["first"]
    assert "tok:13a" in score.detail["signature"]
    assert scene.registry.episodes.all("bot") == []


def test_a_version_that_answers_worse_than_at_first_is_told_holds_training_back_and_ends_when_it_is_mended(
    scene: Scene, asked: ReferenceAnswers
) -> None:
    rng, before = random.Random(6), scene.engine.says
    scene.engine.says = lambda _question: sentence(rng)
    check(scene, asked)
    assert verdicts(scene) == ["none", "drift"]
    score = scene.scores(REFERENCE_BLEU)[1]
    assert 0 < score.detail["fall"][0] < score.statistic < score.detail["fall"][1]
    episode = scene.the_episode()
    assert (episode.signal, episode.severity) == (REFERENCE_BLEU, "ticket")
    assert episode.runbook == "docs/runbooks/reference_bleu.md"
    assert "answers fixed questions worse than at first (BLEU " in episode.evidence["summary"]
    assert episode.evidence["causes"][0]["kind"] == "served model"
    Keeper(scene.registry, scene.settings, watches_canaries=True).pursue("bot")
    assert "that is repaired in serving" in scene.the_episode().done[-1]
    scene.engine.says = before
    check(scene, asked)
    assert scene.the_episode().state == "open"
    check(scene, fresh(scene))  # another process goes on
    assert scene.the_episode().state == "resolved"


def test_traffic_that_drifts_meanwhile_is_another_episode(scene: Scene, asked: ReferenceAnswers) -> None:
    rng = random.Random(7)
    scene.engine.says = lambda _question: sentence(rng)
    check(scene, asked, records=60)
    scene.drifted(20)
    scene.watch(serves=("bot@1",))
    open_ones = scene.registry.episodes.all("bot", open_only=True)
    assert {episode.signal for episode in open_ones} == {REFERENCE_BLEU, "prompt_drift"}


def test_resolving_it_by_hand_accepts_what_serves(scene: Scene, asked: ReferenceAnswers) -> None:
    scene.engine.says = lambda _question: "It is another."
    check(scene, asked)
    episode = scene.the_episode()
    scene.registry.episodes.update(
        episode, resolved(episode, "meant", scene.clock()), by="ada", action="episode.resolve"
    )
    check(scene, asked)
    check(scene, asked)
    assert verdicts(scene) == ["none", "drift", "none", "none"]
    assert "rounds" in scene.scores(REFERENCE_BLEU)[2].detail, "a new baseline"


@pytest.mark.parametrize("fault", [Killed(), Unavailable("the database is away")])
def test_an_alarm_that_was_stored_and_not_acted_on_is_told_once_by_the_next_round(
    scene: Scene, asked: ReferenceAnswers, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, scene.engine.says = scene.engine.says, lambda _question: "It is another."
    with monkeypatch.context() as patched, suppress(Killed):
        patched.setattr(scene.registry.episodes, "open", failing(fault))
        check(scene, asked)
    assert (verdicts(scene), scene.registry.episodes.all("bot")) == (["none", "drift"], [])
    scene.engine.says = before  # repaired meanwhile
    made = fresh(scene)
    made.round()
    episode = scene.the_episode()
    assert (episode.state, episode.windows) == ("open", (scene.scores(REFERENCE_BLEU)[-1].id,))
    made.round()
    assert scene.the_episode() == episode
    scene.registry.episodes.resolve(episode.id, by="ada", reason="mended")
    made.round()
    assert scene.the_episode().state == "resolved"


def test_broken_answers_are_no_new_baseline_because_another_champion_came_and_went(
    scene: Scene, asked: ReferenceAnswers
) -> None:
    scene.engine.says = lambda _question: "It is another."
    check(scene, asked)
    scene.promote(2)
    Keeper(scene.registry, scene.settings, watches_canaries=True).end_replaced(scene.registry.routes.history("bot"))
    assert scene.the_episode().state == "resolved"
    scene.promote(1, reason="bot@2 is bad")
    check(scene, asked)
    assert verdicts(scene) == ["none", "drift", "drift"]
    assert [episode.state for episode in scene.registry.episodes.all("bot")] == ["open", "resolved"]


def test_an_engine_that_fails_concludes_nothing_and_is_left_alone_for_a_while(
    scene: Scene, asked: ReferenceAnswers, caplog: pytest.LogCaptureFixture
) -> None:
    scene.engine.status = 500
    check(scene, asked)
    assert "reference answers of bot, trying again in 60 s: " in caplog.text
    assert "does not answer as bot@1" in caplog.text
    assert verdicts(scene) == ["none"]
    scene.engine.status = 200
    asked.round()
    assert verdicts(scene) == ["none"], "not yet"
    check(scene, asked)
    assert verdicts(scene) == ["none", "none"]


def test_a_model_whose_engine_cannot_answer_keeps_no_other_from_being_asked(scene: Scene, tmp_path: Path) -> None:
    path, wanted = questions(tmp_path)
    scene.settings = scene.settings.model_copy(update={"reference_answers": {"bad": path, "bot": path}})
    scene.engine.says = lambda question: wanted[question]
    scene.registry.routes.write("bad", [Arm(version=1, weight_bp=10_000)], by="ada", reason="test", expected_revision=0)
    beat_engine(scene.registry, "bad@1", url="http://127.0.0.1:9", at=scene.clock.now, id="e0")
    beat_engine(scene.registry, "bot@1", url=scene.engine.url, at=scene.clock.now)
    fresh(scene).round()
    assert verdicts(scene) == ["none"]
    assert scene.registry.episodes.scores("bad", signal=REFERENCE_BLEU) == []


def test_one_answer_that_changed_is_no_alarm_and_equal_systems_never_differ() -> None:
    rng, drawn = np.random.default_rng(3), random.Random(3)
    wanted = [sentence(drawn) for _ in range(24)]
    first = [f"well {text}" for text in wanted]
    assert paired_fall(first, first, wanted, 0.01, rng).outcome.p_value == 1.0
    one = [*first[:-1], "nothing of it"]
    found = paired_fall(first, one, wanted, 0.01, rng)
    assert found.outcome.p_value > 0.4, "it might as well have been the first that was other"
    assert found.first == pytest.approx(corpus_bleu(first, wanted))
    assert found.now == pytest.approx(corpus_bleu(one, wanted))


def test_systems_that_are_alike_differ_at_most_as_often_as_the_level_says() -> None:
    rng, drawn, alarms = np.random.default_rng(4), random.Random(4), 0
    wanted = [sentence(drawn) for _ in range(20)]

    def system() -> list[str]:
        return [" ".join(w if drawn.random() < 0.7 else "other" for w in text.split()) for text in wanted]

    for _ in range(40):
        alarms += paired_fall(system(), system(), wanted, 0.05, rng).outcome.alarm
    assert alarms <= 7, "binomial 1e-3 bound of 40 trials at 5 %"


@pytest.mark.parametrize(
    "text", ["", "a", "the cat", "a cat sat on the mat", "on mat the sat", "the cat sat on the mat and sat and sat"]
)
def test_bleu_of_counts_is_sacrebleus(text: str) -> None:
    texts, wanted = [text, "quite so"], ["the cat sat on the mat", "quite another thing to say"]
    found = paired_fall(texts, wanted, wanted, 0.5, np.random.default_rng(1))
    assert found.first == pytest.approx(corpus_bleu(texts, wanted))
    assert found.now == pytest.approx(100.0)


def test_counting_warns_of_nothing_and_says_how_it_counts(caplog: pytest.LogCaptureFixture) -> None:
    _corpus.cache_clear()  # as in a fresh process, which has not scored anything yet
    found = paired_fall(["a cat", "no"], ["a cat", "no"], ["a cat sat", "no"], 0.5, np.random.default_rng(1))
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert [record.message for record in caplog.records] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "questions.jsonl:2: not a line of JSON"),
        ('{"question": "q", "answer": " "}', 'questions.jsonl:2: write {"question"'),
        ("[1]", 'questions.jsonl:2: write {"question"'),
    ],
)
def test_a_line_that_is_no_question_with_an_answer_is_named(tmp_path: Path, line: str, said: str) -> None:
    path, _ = questions(tmp_path)
    rows = Path(path).read_text().splitlines()
    rows[1] = line
    Path(path).write_text("\n".join(rows))
    with pytest.raises(InvalidInput) as refused:
        read_questions(Path(path))
    assert said in str(refused.value)


def test_too_few_questions_are_refused_before_anything_is_asked(tmp_path: Path, scene: Scene) -> None:
    path, _ = questions(tmp_path, n=19)
    scene.settings = scene.settings.model_copy(update={"reference_answers": {"bot": path}})
    with pytest.raises(InvalidInput, match="19 questions; a set holds 20 to 200"):
        fresh(scene)
    assert isinstance(scene.client, httpx.Client)
