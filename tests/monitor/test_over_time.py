"""What the report says of records: each is counted once, and what is not there is not taken for zero."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests_support import request_record
from tuneloop.monitor.report.over_time import SPANS, Spans, between_tokens_ms, guards, heat_map, speed
from tuneloop.monitor.report.slices import LEAST, slices_of
from tuneloop.registry.nouns import Feedback, RequestRecord
from tuneloop.registry.statistics.intervals import wilson

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def records(*told: dict[str, Any], apart_s: float = 60.0) -> list[RequestRecord]:
    """One after the other."""
    return [request_record(n, BEGAN + timedelta(seconds=n * apart_s), **fields) for n, fields in enumerate(told)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e8), min_size=1, max_size=60), st.floats(0.001, 9_000))
def test_every_answer_is_in_one_cell_of_the_heat_map_between_its_bounds(times: list[float], apart_s: float) -> None:
    asked = records(*({"total_ms": ms} for ms in times), apart_s=apart_s)
    spans = Spans.of(asked)
    held = heat_map(spans, asked)
    assert held is not None
    assert len(held.starts) == len(held.answers) == spans.n <= SPANS
    assert sum(map(sum, held.answers)) == len(times)
    assert held.bounds_ms[0] <= min(times)
    assert max(times) < held.bounds_ms[-1]
    assert list(held.bounds_ms) == sorted(set(held.bounds_ms))
    for row, low, high in zip(zip(*held.answers, strict=True), held.bounds_ms, held.bounds_ms[1:], strict=False):
        assert sum(row) == sum(low <= ms < high for ms in times)


def test_requests_that_nobody_answered_make_no_heat_map() -> None:
    asked = records({"status": 503})
    assert heat_map(Spans.of(asked), asked) is None


@pytest.mark.parametrize(
    "changes",
    [{"stream": False}, {"status": 503}, {"ttft_ms": None}, {"completion_tokens": 1}, {"completion_tokens": None}],
    ids=str,
)
def test_only_a_whole_stream_of_two_tokens_has_a_time_between_them(changes: dict[str, Any]) -> None:
    stream = {"stream": True, "ttft_ms": 100.0, "total_ms": 400.0, "completion_tokens": 4}
    (whole, other) = records(stream, stream | changes)
    assert (between_tokens_ms(whole), between_tokens_ms(other)) == (100.0, None)


def test_a_time_without_requests_has_no_waiting_time_and_no_share() -> None:
    asked = records({"queue_ms": 4.0}, *({"status": 503} for _ in range(3)), {"guards": {"secrets": "block: token"}})
    spans = Spans.of(asked)
    found = speed(spans, asked)
    assert [middle is None for middle in found.queue_ms] == [False, *[True] * (spans.n - 1)]
    told = guards(spans, asked)
    assert told is not None
    assert sum(told.requests) == 5
    assert told.shares["stopped by a guard"] == told.shares["personal data or secrets found"] == wilson(1, 5)
    assert guards(spans, asked[:4]) is None


def test_a_slice_that_is_too_small_says_so_and_short_prompts_stand_first() -> None:
    many = [{"prompt_tokens": tokens} for tokens in (*[20] * LEAST, *[600] * (LEAST - 1), 5_000)]
    asked = records(*many)
    down = Feedback(id="f", request_id=asked[0].id, at=BEGAN, thumb="down", correction=" ")
    short, long, longest = (one for one in slices_of(asked, {asked[0].id: [down]}) if one.field == "length of prompt")
    assert [one.value for one in (short, long, longest)] == ["1–32 tokens", "513–2,048 tokens", "2,049 tokens or more"]
    assert (short.failed, long.failed) == (wilson(0, LEAST), None)
    assert (short.thumbs_down, short.corrected) == (None, wilson(0, LEAST)), (
        "one thumb tells nothing; a blank corrects nothing"
    )
