"""The `model` of a request is changed in the bytes: whatever a client writes, nothing else may change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.serve.gateway.splice import DuplicateKey, members

KEYS = st.sampled_from(["model", "messages", "stream", "mode\\l", 'x"model', "", "modèle"]) | st.text(max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(['"model":"x"', '\\"model\\":', "}{", "]", ',"model":"evil"', "\x00", "🐍"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
BODIES = st.dictionaries(KEYS, VALUES, max_size=6)
SPACE = st.text(alphabet=" \t\r\n", max_size=3)


@st.composite
def written(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """One of the many ways to write an object down: escapes or not, spaces anywhere."""

    def text(value: str) -> str:
        plain = json.dumps(value, ensure_ascii=draw(st.booleans()))
        return plain.replace("m", "\\u006d").replace("/", "\\/") if draw(st.booleans()) else plain

    def member(key: str, value: object) -> str:
        shown = json.dumps(value, indent=draw(st.none() | st.just(1)))
        return f"{draw(SPACE)}{text(key)}{draw(SPACE)}:{draw(SPACE)}{shown}"

    inner = f"{draw(SPACE)},".join(member(key, value) for key, value in body.items())
    return f"{draw(SPACE)}{{{inner}{draw(SPACE)}}}{draw(SPACE)}".encode()


@settings(max_examples=400, deadline=None)
@given(data=st.data(), body=BODIES, model=st.text(max_size=10))
def test_only_the_top_level_model_changes(data: st.DataObject, body: dict[str, Any], model: str) -> None:
    text = data.draw(written(body))
    changed = members(text).replaced({"model": json.dumps(model).encode(), "stream_options": b'{"include_usage":true}'})
    assert json.loads(changed) == body | {"model": model, "stream_options": {"include_usage": True}}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), body=BODIES)
def test_changing_nothing_changes_no_byte(data: st.DataObject, body: dict[str, Any]) -> None:
    text = data.draw(written(body))
    assert members(text).replaced({}) == text


@settings(max_examples=300, deadline=None)
@given(data=st.data(), body=BODIES.filter(bool))
def test_a_key_that_stands_twice_is_refused_wherever_it_stands(data: st.DataObject, body: dict[str, Any]) -> None:
    key = data.draw(st.sampled_from(sorted(body)))
    again = data.draw(VALUES)
    inner = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in body.items()]
    inner.insert(data.draw(st.integers(0, len(inner))), f"{json.dumps(key)}:{json.dumps(again)}")
    with pytest.raises(DuplicateKey):
        members(("{" + ",".join(inner) + "}").encode())


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":1,"model":12}',
        b'{"model":12,"model":1}',
        b'{"model":"a","model":"a"}',
        b'{"model":"a","\\u006dodel":"b"}',
        b'{"model":[1],"x":0,"model":[1,2]}',
        b'{"model":{},"model":[]}',
    ],
)
def test_duplicates_that_look_alike_are_refused(text: bytes) -> None:
    with pytest.raises(DuplicateKey):
        members(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b"{1:2}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        members(text)


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(RecursionError):
        members(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
