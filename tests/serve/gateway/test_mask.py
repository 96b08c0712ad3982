"""Answers are masked: the same text comes out however the network cut it, and little of it is held back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuneloop.registry.guard_policy import OutputGuards
from tuneloop.registry.redaction import find as personal
from tuneloop.serve.gateway.cutter import Cutter, Piece
from tuneloop.serve.gateway.mask import Find, Mask
from tuneloop.serve.guards import secrets

MOST = 1_024
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEA7bq9nYk3\n" * 70 + "-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJSUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkw" * 90 + ".dozjgNryP4J3jVmNHl0w5N"
SECRETS = {
    "ada@example.com": "<EMAIL_ADDRESS>",
    "4111 1111 1111 1111": "<CREDIT_CARD>",
    "GB82 WEST 1234 5698 7654 32": "<IBAN_CODE>",
    "ghp_a1B2c3D4e5F6a1B2c3D4e5F6a1B2c3D4e5F6": "<GITHUB-TOKEN>",
    PEM: "<PRIVATE-KEY>",
    JWT: "<JSON-WEB-TOKEN>",
}
TALK = [
    *(
        "Hello there, ",
        "well-known words; ",
        "ÜBER ",
        "naïve café ",
        "电话是",
        "3.14 ",
        "I ",
        "\n",
        "  ",
        "| a | 12 |\n",
    ),
    *("password: 9aF3kL0pQ7xZ2vB8\n", "key is ", "x" * 700 + " ", "1 " * 600, "(", ").", "@", "-----BEGIN ", "eyJ"),
]
text = st.lists(st.one_of(st.sampled_from([*TALK, *SECRETS]), st.text(max_size=20)), max_size=8).map("".join)
cuts = st.lists(st.integers(0, 9_000), max_size=10)


async def look(runs: Sequence[str]) -> list[list[Find]]:
    """What the gateway's own does, without a worker."""
    found = []
    for run in runs:
        here = [Find(one.start, one.end, f"<{one.kind.upper()}>") for one in secrets.find(run)]
        here += [Find(one.start, one.end, f"<{one.entity}>") for one in personal(run)]
        found.append(sorted(here, key=lambda one: (one.start, -one.end)))
    return found


def mask(keep_bytes: int = 100_000, **output: Any) -> Mask:
    return Mask(OutputGuards(**output), look, lambda _: None, keep_bytes)


def data(*events: dict[str, Any], done: bool = True) -> bytes:
    sent = [json.dumps(event, separators=(",", ":")) for event in events] + ["[DONE]"] * done
    return "".join(f"data: {one}\n\n" for one in sent).encode()


def chunk(index: int = 0, finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "chatcmpl-r", "object": "chat.completion.chunk", "created": 1, "model": "bot@1", "choices": [choice]}


def shown(*pushed: bytes, masked: Mask | None = None) -> list[dict[str, Any]]:
    """The events that come out."""
    masked = masked or mask()

    async def run() -> bytes:
        return b"".join([await masked.push(one) for one in pushed])

    lines = asyncio.run(run()).decode().split("\n\n")[:-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


def said(events: Sequence[dict[str, Any]], name: str = "content", index: int = 0) -> str:
    found = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice.get("delta", {}).get(name) or "" for choice in found)


def whole(answer: str) -> str:
    body = {"id": "r", "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}}]}
    masked = json.loads(asyncio.run(mask().whole(json.dumps(body).encode())))
    content = masked["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def parts(answer: str, at: Sequence[int]) -> list[str]:
    return [answer[a:b] for a, b in pairwise([0, *sorted(min(cut, len(answer)) for cut in at), len(answer)])]


@settings(max_examples=60, deadline=None)
@given(answer=text, at=cuts)
@example(answer=f"My key: {PEM} and {JWT}, bye", at=list(range(0, 4_000, 7)))
@example(answer="1 " * 600 + "ada@example.com", at=[1, 2, 3, 1_199, 1_205])
def test_a_stream_cut_anywhere_says_what_the_whole_says(answer: str, at: list[int]) -> None:
    pieces = [chunk(content=piece) for piece in parts(answer, at)]
    assert said(shown(*(data(piece, done=False) for piece in pieces), data(chunk(finish="stop")))) == whole(answer)


@settings(max_examples=100, deadline=None)
@given(answer=text, at=cuts)
def test_less_is_held_back_than_the_policy_says(answer: str, at: list[int]) -> None:
    cutter, given_out = Cutter(MOST, leave_out=True), 0
    for taken in parts(answer, at):
        before = given_out
        given_out += sum(len(piece.text) for piece in cutter.push(taken))
        assert given_out >= before
    assert len(answer) - given_out < MOST
    given_out += sum(len(piece.text) for piece in cutter.end())
    assert given_out == len(answer)


@settings(max_examples=100, deadline=None)
@given(answer=text, at=cuts)
@example(answer="1 " * 600 + "plain", at=[1_000, 1_199])
def test_the_same_pieces_are_looked_at_wherever_the_text_is_cut(answer: str, at: list[int]) -> None:
    def pieces(pushed: Sequence[str]) -> list[Piece]:
        cutter = Cutter(MOST, leave_out=True)
        every = [piece for part in pushed for piece in cutter.push(part)]
        return [piece for piece in (*every, *cutter.end()) if piece.look]

    assert pieces(parts(answer, at)) == pieces([answer])


@pytest.mark.parametrize("before", [MOST // 2 - 14, MOST // 2 - 6, MOST // 2])
def test_what_lies_across_the_windows_of_a_long_run_is_masked_whole(before: int) -> None:
    filled, more = ("~ " * MOST)[-before:], " ~" * MOST
    answer = f"{filled}ada@example.com{more}"
    assert whole(answer) == f"{filled}<EMAIL_ADDRESS>{more}"


@pytest.mark.parametrize("secret", SECRETS, ids=SECRETS.values())
@pytest.mark.parametrize("around", ["Here: {} ok.", "{}", "the ({}), and", "1 2 3 4 5 , {}\nmore"])
def test_what_is_secret_or_personal_is_not_shown(secret: str, around: str) -> None:
    answer = around.format(secret)
    events = [data(chunk(content=letter), done=False) for letter in answer]
    assert said(shown(*events, data(chunk(finish="stop")))) == around.format(SECRETS[secret])


def test_plain_words_pass_as_soon_as_they_end() -> None:
    masked = mask()
    events = [shown(data(chunk(content=piece), done=False), masked=masked) for piece in ("The ca", "t sat", " down")]
    assert [said(one) for one in events] == ["The ", "cat ", "sat "]


def test_every_text_of_every_choice_is_masked_by_itself() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "mail", "arguments": ""}}
    events = [
        chunk(0, role="assistant", content=""),
        chunk(0, content="write to ada@exa"),
        chunk(1, content="no secret is he"),
        chunk(0, content="mple.com"),
        chunk(1, content="re", reasoning_content="bob@exam"),
        chunk(0, tool_calls=[call]),
        chunk(0, tool_calls=[{"index": 0, "function": {"arguments": '{"to": "eve@exam'}}]),
        chunk(1, finish="stop", reasoning_content="ple.com"),
        chunk(0, tool_calls=[{"index": 0, "function": {"arguments": 'ple.com"}'}}]),
        chunk(0, finish="tool_calls"),
    ]
    out = shown(data(*events))
    assert (said(out), said(out, index=1)) == ("write to <EMAIL_ADDRESS>", "no secret is here")
    assert said(out, "reasoning_content", 1) == "<EMAIL_ADDRESS>"
    calls = [one for event in out for one in event["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(one["function"].get("arguments", "") for one in calls) == '{"to": "<EMAIL_ADDRESS>"}'
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("c1", "mail")
    assert [event["choices"][0]["finish_reason"] for event in out][-1] == "tool_calls"


def test_what_is_held_back_comes_before_the_end_where_an_engine_gives_no_finish() -> None:
    out = shown(data(chunk(content="the end")))
    assert said(out) == "the end"
    assert (out[-1]["model"], out[-1]["choices"][0]["finish_reason"]) == ("bot@1", None)


def token(said_by: str) -> dict[str, Any]:
    return {"content": [{"token": said_by, "logprob": -0.5, "bytes": list(said_by.encode()), "top_logprobs": []}]}


def test_log_probabilities_come_with_their_text_and_go_where_it_is_masked() -> None:
    tokens = ["Write ", "to ", "ada", "@example", ".com ", "now", "", "é"]
    events = [chunk(content=one, logprobs=token(one), token_ids=[1]) for one in tokens]
    events = [event | {"choices": [event["choices"][0] | {"token_ids": [7]}]} for event in events]
    out = shown(*(data(event, done=False) for event in events), data(chunk(finish="stop")))
    spelt = [one["token"] for e in out for one in (e["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert (said(out), spelt) == ("Write to <EMAIL_ADDRESS> nowé", ["Write ", "to ", "now", "", "é"])
    assert not any("token_ids" in event["choices"][0] for event in out)
    body = {"choices": [{"index": 0, "message": {"content": one}, "logprobs": token(one)} for one in ("fine", PEM)]}
    body["choices"][1]["index"] = 1
    masked = json.loads(asyncio.run(mask().whole(json.dumps(body).encode())))
    assert [choice["logprobs"] for choice in masked["choices"]] == [token("fine"), None]


def test_completions_are_masked_and_their_token_lists_joined() -> None:
    def event(said_now: str, finish: str | None = None) -> dict[str, Any]:
        logprobs = {"tokens": [said_now], "token_logprobs": [-1.0], "top_logprobs": [None], "text_offset": [0]}
        return {"choices": [{"index": 0, "text": said_now, "logprobs": logprobs, "finish_reason": finish}]}

    out = shown(data(event("all go"), event("od, 4111 1111 "), event("1111 1111"), event(" yes", "length")))
    choices = [one["choices"][0] for one in out]
    assert "".join(choice["text"] for choice in choices) == "all good, <CREDIT_CARD> yes"
    assert [token for c in choices for token in (c["logprobs"] or {"tokens": []})["tokens"]] == ["all go", " yes"]


def test_flagged_text_passes_as_it_is_and_what_cannot_be_read_does_not() -> None:
    async def flags(runs: Sequence[str]) -> list[list[Find]]:
        return [[Find(one.start, one.end, None) for one in here] for here in await look(runs)]

    flagged = Mask(OutputGuards(secrets="flag", personal="flag"), flags, lambda _: None, 0)
    out = shown(data(chunk(content=f"ada@example.com {PEM}"), chunk(finish="stop")), masked=flagged)
    assert said(out) == f"ada@example.com {PEM}"
    assert asyncio.run(mask().push(b": ping\n\n")) == b": ping\n\n"
    for bad in (
        b"data: {nope\n\n",
        b"event: x\n\n",
        b'data: {"choices":[3]}\n\n',
        b'data: {"choices":[{"index":"a"}]}\n\n',
    ):
        with pytest.raises(ValueError, match=r"."):
            asyncio.run(mask().push(bad))


def test_what_is_kept_for_the_record_is_masked_and_bounded() -> None:
    masked = mask(keep_bytes=300)
    shown(data(chunk(content="ada@example.com "), *[chunk(content="word ") for _ in range(20)]), masked=masked)
    assert b"ada@" not in b"".join(masked.kept)
    assert 300 <= sum(map(len, masked.kept)) < 600
