"""An engine's events on their way to a client: the same result however the network cuts them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.faulty_engine import Seen, answer, events
from tuneloop.serve.gateway.sse import Relay
from tuneloop.serve.gateway.transcript import answer_text

SEEN = Seen(
    "/v1/chat/completions", {"x-request-id": "r"}, {"model": "bot@2", "stream_options": {"include_usage": True}}
)


def stream(*, seen: Seen = SEEN) -> tuple[list[dict[str, Any]], bytes]:
    found = list(events(seen, 3))
    texts = [json.dumps(event, separators=(",", ":")) for event in found] + ["[DONE]"]
    return found, "".join(f"data: {text}\n\n" for text in texts).encode()


def relay(*, wants_usage: bool = False, keep_bytes: int = 100_000) -> Relay:
    return Relay(engine_name="bot@2", asked="bot", wants_usage=wants_usage, keep_bytes=keep_bytes)


@given(cuts=st.lists(st.integers(0, 1_500), max_size=12), wants_usage=st.booleans())
def test_events_come_out_whole_and_renamed_wherever_the_network_cuts(cuts: list[int], wants_usage: bool) -> None:
    sent, text = stream()
    passed = relay(wants_usage=wants_usage)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [passed.push(text[start:end]) for start, end in pairwise(edges)]
    assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
    got = b"".join(pieces).decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    expected = [event | {"model": "bot"} for event in (sent if wants_usage else sent[:-1])]
    assert [json.loads(event.removeprefix("data: ")) for event in got] == expected
    assert passed.done
    assert passed.usage is not None
    assert (passed.usage.prompt_tokens, passed.usage.completion_tokens) == (7, 3)


def test_text_that_looks_like_json_is_not_touched() -> None:
    passed = relay()
    out = passed.push(stream()[1]).decode()
    assert r"{\"model\":\"bot@2\"}" in out
    assert r"\"choices\":[] " in out
    assert out.count('"model":"bot@2"') == 0


def test_the_transcript_is_what_the_engine_said() -> None:
    passed = relay()
    passed.push(b": a comment that keeps the connection alive\n\n" + stream()[1])
    whole = answer(SEEN, 3)
    assert answer_text(passed.kept) == whole["choices"][0]["message"]["content"]
    assert answer_text([json.dumps(whole).encode()]) == whole["choices"][0]["message"]["content"]
    plain = Seen("/v1/completions", SEEN.headers, SEEN.body)
    passed = relay()
    passed.push(stream(seen=plain)[1])
    assert answer_text(passed.kept) == answer(plain, 3)["choices"][0]["text"]
    assert answer_text([json.dumps(answer(plain, 3)).encode()]) == answer(plain, 3)["choices"][0]["text"]
    assert answer_text([]) is None


def test_a_long_answer_is_kept_only_up_to_the_limit() -> None:
    passed = relay(keep_bytes=200)
    text = stream()[1]
    assert len(passed.push(text)) > 500
    assert 200 <= sum(map(len, passed.kept)) < 400


def test_an_event_without_end_is_an_error() -> None:
    passed = relay()
    for _ in range(8):
        passed.push(b"x" * 1_000_000)
    with pytest.raises(ValueError, match="8000000 bytes"):
        passed.push(b"x")
