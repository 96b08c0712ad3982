"""A small real HTTP server that answers as vLLM does, and fails on request in the ways engines fail.

The real vLLM is used wherever its answers matter; this one stands in where a fault must come at a known moment.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

Fault = Literal[
    "none",
    "dies_before_first_byte",
    "dies_once_announced",
    "dies_in_mid_stream",
    "ends_without_done",
    "never_answers",
    "silent_in_mid_stream",
    "silent_after_done",
    "error_as_first_event",
    "error_as_later_event",
    "status_400",
    "status_404",
    "no_such_path",
    "status_500",
    "status_503",
    "absurd",
    "choices_that_are_none",
]


@dataclass
class Seen:
    """One request as the engine got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class FaultyEngine:
    """An engine on a port of its own; `fault` applies to requests from now on, `faults_left` to so many of them."""

    id: str
    fault: Fault = "none"
    faults_left: int = 1_000_000
    words: int = 5
    pause_s: float = 0.0  # between two events
    quotes: str = ""  # at the end of what an error says
    says: tuple[str, ...] = ()  # instead of words, an event each; to the first tool of a request, if it has any
    seen: list[Seen] = field(default_factory=list)
    left: int = 0  # clients that went away while it was at work
    at_work: int = 0
    health_asked: int = 0
    url: str = ""

    def start(self) -> None:
        """Listen."""
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
            started.set()

        def run() -> None:
            self._loop.run_until_complete(listen())
            self._loop.run_forever()
            self._loop.run_until_complete(self._close())
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(5)

    def stop(self) -> None:
        """Die: every connection is reset, the port refuses."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    async def _close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or this engine dies
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        if first.startswith("GET /health "):  # whatever its fault, as a server does whose engine is busy
            self.health_asked += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return True
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.seen.append(Seen(first.split(" ")[1], headers, body))
        fault: Fault = self.fault if self.faults_left > 0 else "none"
        self.faults_left -= fault != "none"
        self.at_work += 1
        work = asyncio.ensure_future(self._answer(writer, self.seen[-1], fault))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not isinstance(work.exception(), ConnectionError):
                return work.result()
            self.left += 1
            return False
        finally:
            self.at_work -= 1
            for task in (work, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, ConnectionError):
                    await task

    async def _answer(self, writer: asyncio.StreamWriter, seen: Seen, fault: Fault) -> bool:
        if fault == "never_answers":
            await asyncio.sleep(3600)
        if fault == "dies_before_first_byte":
            writer.transport.abort()
            return False
        if fault == "no_such_path" or fault.startswith("status_"):
            status = 404 if fault == "no_such_path" else int(fault.removeprefix("status_"))
            said = {
                "message": f"said the engine with {status}{self.quotes}",
                "type": "X",
                "param": "stop",
                "code": status,
            }
            told: Any = {"detail": "Not Found"} if fault == "no_such_path" else {"error": said}  # each as vLLM does
            await _whole(writer, status, json.dumps(told).encode())
            return True
        if fault == "absurd" or (fault == "choices_that_are_none" and not seen.body.get("stream")):
            await _whole(writer, 200, b"\x00\xff not json" if fault == "absurd" else b'{"choices":[5]}')
            return True
        if not seen.body.get("stream"):
            await asyncio.sleep(self.pause_s * self.words)
            await _whole(writer, 200, _json(answer(seen, self.words, self.says)))
            return True
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        async for event in self._events(seen, fault):
            if not event:
                writer.transport.abort()
                return False
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
        if fault == "silent_after_done":
            await asyncio.sleep(3600)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _events(self, seen: Seen, fault: Fault) -> AsyncIterator[bytes]:
        error = b'data: {"error":{"message":"out of memory","type":"InternalServerError","param":null,"code":500}}\n\n'
        if fault == "error_as_first_event":
            yield error
            yield b"data: [DONE]\n\n"
            return
        if fault == "choices_that_are_none":
            yield b'data: {"choices":[5]}\n\n'
        dies_at = 6 if "responses" in seen.path else 2
        for number, event in enumerate(events(seen, self.words, self.says)):
            if number == 2 and fault == "dies_once_announced":  # a response, before it has said anything
                yield b""
            if number == dies_at and fault == "dies_in_mid_stream":
                yield b""
            if number == 2 and fault == "ends_without_done":
                return
            if number == 2 and fault == "silent_in_mid_stream":
                await asyncio.sleep(3600)
            if number == 2 and fault == "error_as_later_event":
                yield error
                break
            named = f"event: {event['type']}\n".encode() if "responses" in seen.path else b""
            yield named + b"data: " + _json(event) + b"\n\n"
            await asyncio.sleep(self.pause_s)
        if "responses" not in seen.path:
            yield b"data: [DONE]\n\n"


def text_of(seen: Seen, words: int) -> Iterator[str]:
    """What the engine says, word by word; it holds what could fool a search in the bytes."""
    model = seen.body["model"]
    return chain([f'{{"model":"{model}"}} ', '"choices":[] ', "é\n\n"], (f"w{n} " for n in range(words)))


def _head(seen: Seen, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if "chat" in seen.path else "embd" if "embeddings" in seen.path else "cmpl"
    return {
        "id": f"{prefix}-{seen.headers['x-request-id']}",
        "object": kind,
        "created": 1_700_000_000,
        "model": seen.body["model"],
    }


def _usage(words: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "total_tokens": 7 + words, "completion_tokens": words}


def answer(seen: Seen, words: int, says: Sequence[str] = ()) -> dict[str, Any]:
    """A whole answer, as vLLM shapes it."""
    text = "".join(says or text_of(seen, words))
    if "embeddings" in seen.path:
        given = seen.body["input"]
        texts = [given] if isinstance(given, str) else given
        vectors = [_vector([0.5, len(text)], seen.body.get("encoding_format")) for text in texts]
        data = [{"index": at, "object": "embedding", "embedding": one} for at, one in enumerate(vectors)]
        return _head(seen, "list") | {"data": data, "usage": _usage(0)}
    if "responses" in seen.path:
        return _response(seen, "completed", [_message(text, "completed")], _used(words))
    if "chat" in seen.path:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        why = "stop"
        if says and (tools := seen.body.get("tools")):
            message, why = message | {"content": None, "tool_calls": [_call(tools[0], text)]}, "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": why}
        return _head(seen, "chat.completion") | {"choices": [choice], "usage": _usage(words)}
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return _head(seen, "text_completion") | {"choices": [choice], "usage": _usage(words)}


def events(seen: Seen, words: int, says: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A streamed answer, as vLLM shapes it: the usage event only when it was asked for."""
    if "responses" in seen.path:
        yield from _response_events(seen, words, says)
        return
    chat = "chat" in seen.path
    head = _head(seen, "chat.completion.chunk" if chat else "text_completion")
    if chat:
        yield head | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    tools = seen.body.get("tools") if chat and says else None
    if tools:
        yield head | {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0} | _call(tools[0], "")]}}]}
    for word in says or text_of(seen, words):
        said: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
        if tools:
            said = {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": word}}]}}
        yield head | {"choices": [{"index": 0, **said, "finish_reason": None}]}
    if tools:
        yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    if (seen.body.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": _usage(words)}


def _vector(numbers: list[float], encoding: str | None) -> list[float] | str:
    return base64.b64encode(struct.pack("<2f", *numbers)).decode() if encoding == "base64" else numbers


def _call(tool: dict[str, Any], arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}


def _used(words: int) -> dict[str, Any]:
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {"input_tokens": 7, "output_tokens": words, "total_tokens": 7 + words} | details


def _message(text: str, status: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = (
        [{"type": "output_text", "text": text, "annotations": [], "logprobs": None}] if text else []
    )
    return {"id": "msg_1", "content": content, "role": "assistant", "status": status, "type": "message"}


def _response(seen: Seen, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
    body = seen.body
    said = {name: body.get(name) for name in ("instructions", "metadata")}
    return {"id": body["request_id"], "created_at": 1_700_000_000, **said} | {
        "model": body["model"],
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "none",
        "tools": [],
        "status": status,
        "usage": usage,
    }


def _response_events(seen: Seen, words: int, says: Sequence[str]) -> Iterator[dict[str, Any]]:
    """As vLLM sends them: announced, item and part opened, pieces, each closed with its whole text, the response."""
    pieces = list(says or text_of(seen, words))
    text = "".join(pieces)
    here: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    found: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(seen, "in_progress", [], None)},
        {"type": "response.in_progress", "response": _response(seen, "in_progress", [], None)},
        {"type": "response.output_item.added", "output_index": 0, "item": _message("", "in_progress")},
        here | {"type": "response.content_part.added", "part": part | {"text": ""}},
        *(here | {"type": "response.output_text.delta", "delta": piece, "logprobs": []} for piece in pieces),
        here | {"type": "response.output_text.done", "text": text, "logprobs": []},
        here | {"type": "response.content_part.done", "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": _message(text, "completed")},
        {
            "type": "response.completed",
            "response": _response(seen, "completed", [_message(text, "completed")], _used(len(pieces))),
        },
    ]
    yield from (event | {"sequence_number": number} for number, event in enumerate(found))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


async def _whole(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
    )
    await writer.drain()
