"""The scorer speaks vLLM's own fields, scores a question once, and never makes up a number."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from monitor.engine import KNOWN_NATS, STRANGE_NATS, FakeEngine
from monitor.scene import Scene
from tests_support import Clock, beat_engine, request_record
from tuneloop.monitor.reading import IDLE_S, engine_client, read_texts
from tuneloop.monitor.scorer import Scorer, text_nats
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import Message, RequestRecord

REQUEST_AT = Clock().now
ENGINE_PACKAGES = Path(__file__).parents[2] / ".venv-engine" / "lib"


def scorer_of(scene: Scene, max_tokens: int = 2_048) -> Scorer:
    beat_engine(scene.registry, "bot@1", url=scene.engine.url, at=scene.clock.now)
    return Scorer(scene.registry.fleet, scene.client, concurrency=2, max_tokens=max_tokens)


def asked(number: int, question: str, **changes: object) -> RequestRecord:
    messages = (Message(role="user", content="hello"), Message(role="assistant", content="hi"))
    return request_record(
        number, REQUEST_AT, **({"messages": (*messages, Message(role="user", content=question))} | changes)
    )


def test_a_question_is_scored_once_with_one_token_and_no_alternatives(scene: Scene) -> None:
    scorer, records = scorer_of(scene), [asked(n, f"What is number {n} for?") for n in range(6)]
    first = scorer.score("bot@1", records, {})
    assert scorer.score("bot@1", records, {}) == first
    assert len(scene.engine.bodies) == 6
    for body in scene.engine.bodies:
        assert body | {"messages": []} == {
            "model": "bot@1",
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "messages": [],
        }
        assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]


def test_only_the_tokens_of_the_last_question_count() -> None:
    def token(text: str, nats: float) -> dict[str, dict[str, object]]:
        return {"7": {"logprob": -nats, "rank": 1, "decoded_token": text}}

    prompt = [None, token("user\n", 9.0), token("why", 5.0), token("assistant\n", 9.0), token("so", 9.0)]
    prompt += [token("user\n", 9.0), token("why", 1.0), token(" not", 3.0), token("<|end|>", 0.0)]
    assert text_nats(prompt, "why not ").nats == pytest.approx(2.0)
    assert text_nats(prompt, "why").nats == pytest.approx(1.0), "the last occurrence counts"
    assert text_nats(prompt, "when").nats is None
    assert text_nats([None, token("x", 9_999.0)], "x").nats == pytest.approx(30.0)


def test_a_response_is_scored_as_the_chat_it_is_and_what_was_embedded_not_at_all(scene: Scene) -> None:
    records = [asked(n, "What is it for?", endpoint=one) for n, one in enumerate(("response", "embedding"))]
    scored = scorer_of(scene).score("bot@1", records, {})
    assert (scored["req-0"].nats is None, scored["req-1"].nats is None) == (False, True)
    (body,) = scene.engine.bodies
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]


def test_a_correction_is_read_where_the_answer_stood_and_scored_beside_its_question(scene: Scene) -> None:
    scene.engine.unknown, record = "number", asked(1, "What is number 1 for?")
    scorer = scorer_of(scene)
    scored = scorer.score("bot@1", [record], {"req-1": "What it says."})["req-1"]
    assert scored.nats == pytest.approx(KNOWN_NATS, abs=0.5)
    assert scored.correction_nats == pytest.approx(STRANGE_NATS, abs=0.5)
    (body,) = scene.engine.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "What it says."}
    assert body["add_generation_prompt"] is False
    assert scorer.score("bot@1", [record], {})["req-1"].correction_nats is None
    assert len(scene.engine.bodies) == 2, "with another correction it is another text"


def test_a_correction_that_cannot_be_read_does_not_cost_its_question_the_score(scene: Scene) -> None:
    scorer, record = scorer_of(scene, max_tokens=100), asked(1, "why?", prompt_tokens=90)
    long = scorer.score("bot@1", [record], {"req-1": "x" * 41})["req-1"]
    assert (long.nats is not None, long.correction_nats) == (True, None)
    assert len(scene.engine.bodies) == 1
    scene.engine.refuses_corrections = True
    refused = scorer.score("bot@1", [record], {"req-1": "Because."})["req-1"]
    assert (refused.nats, refused.correction_nats) == (long.nats, None)
    assert [body["messages"][-1]["role"] for body in scene.engine.bodies] == ["user", "assistant", "user"]


def test_a_correction_that_repeats_the_question_is_not_taken_for_it() -> None:
    def token(text: str, nats: float) -> dict[str, dict[str, object]]:
        return {"7": {"logprob": -nats, "rank": 1, "decoded_token": text}}

    prompt = [
        None,
        token("user\n", 9.0),
        token("why", 5.0),
        token("assistant\n", 9.0),
        token("why", 1.0),
        token("not", 2.0),
    ]
    scored = text_nats([*prompt, token("<|end|>", 0.0)], "why", "why not")
    assert (scored.nats, scored.correction_nats) == (5.0, 1.5)


def test_a_plain_completion_is_scored_by_its_own_endpoint(scene: Scene) -> None:
    record = asked(1, "", endpoint="completion", messages=(Message(role="prompt", content="one two three"),))
    scored = scorer_of(scene).score("bot@1", [record], {})
    assert scored["req-1"].nats == pytest.approx(KNOWN_NATS, abs=0.5)
    assert scene.engine.bodies[0]["prompt"] == "one two three"


def test_a_prompt_the_engine_refuses_has_no_score_but_a_reason(scene: Scene) -> None:
    scorer = scorer_of(scene)
    scene.engine.status = 400
    scored = scorer.score("bot@1", [asked(1, "why?")], {})
    assert scored["req-1"].nats is None
    assert "too long" in scored["req-1"].reason


def test_long_prompts_never_reach_the_engine(scene: Scene) -> None:
    scored = scorer_of(scene, max_tokens=100).score("bot@1", [asked(1, "why?", prompt_tokens=101)], {})
    assert scored["req-1"].nats is None
    assert scene.engine.bodies == []


@pytest.mark.parametrize("status", [500, 503])
def test_an_engine_that_fails_is_unavailable_not_a_score(scene: Scene, status: int) -> None:
    scorer = scorer_of(scene)
    scene.engine.status = status
    with pytest.raises(Unavailable, match=f"no engine could score bot@1: e1: .*{status}"):
        scorer.score("bot@1", [asked(1, "why?")], {})
    scene.engine.status = 200
    assert scorer.score("bot@1", [asked(1, "why?")], {})["req-1"].nats is not None, "a failure is not remembered"


def test_another_engine_is_asked_when_the_first_is_gone(scene: Scene, engine: FakeEngine) -> None:
    scorer = scorer_of(scene)
    beat_engine(scene.registry, "bot@1", id="e0", url="http://127.0.0.1:1", at=scene.clock.now)
    assert scorer.score("bot@1", [asked(1, "why?")], {})["req-1"].nats is not None
    assert len(engine.bodies) == 1


def test_no_more_prompts_are_read_at_once_than_was_said(scene: Scene, engine: FakeEngine) -> None:
    """Each fills memory for a whole prefill, beside live traffic."""
    engine.together, engine.delay_s = 2, 0.02  # the first two wait for each other, a third would have time to come
    scored = scorer_of(scene).score("bot@1", [asked(n, f"What is number {n} for?") for n in range(12)], {})
    assert (len(scored), engine.most) == (12, 2)
    with pytest.raises(InvalidInput, match="scorer_concurrency"):
        MonitorSettings.load(scorer_concurrency=9)


def test_a_connection_that_vllm_may_be_closing_is_not_used_again(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("httpcore._sync.http11.time", SimpleNamespace(monotonic=lambda: now[0]))
    with engine_client(5) as client:
        for now[0], connections in ((0.0, 1), (IDLE_S - 0.1, 1), (2 * IDLE_S, 2)):
            read_texts(client, engine.url, "bot@1", ["one two"], concurrency=1)
            assert engine.connections == connections


@pytest.mark.engine
def test_the_fields_are_those_of_the_installed_vllm() -> None:
    (package,) = ENGINE_PACKAGES.glob("python3.*/site-packages/vllm")
    api = package / "entrypoints" / "openai"
    chat = fields_of(api / "chat_completion" / "protocol.py")
    assert {"model", "messages", "max_tokens", "temperature", "prompt_logprobs"} <= chat["ChatCompletionRequest"]
    assert "prompt_logprobs" in chat["ChatCompletionResponse"]
    plain = fields_of(api / "completion" / "protocol.py")
    assert {"model", "prompt", "max_tokens", "temperature", "prompt_logprobs"} <= plain["CompletionRequest"]
    assert "prompt_logprobs" in plain["CompletionResponseChoice"]
    assert {"logprob", "rank", "decoded_token"} <= fields_of(package / "logprobs.py")["Logprob"]


def fields_of(path: Path) -> dict[str, set[str]]:
    """Class → the names of its annotated fields, read without importing vLLM."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return {
        c.name: {n.target.id for n in c.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        for c in classes
    }
