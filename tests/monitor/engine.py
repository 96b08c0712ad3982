"""A small HTTP server that answers as vLLM does when asked for `prompt_logprobs`; strange questions are unlikely."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATE = ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}")
_TOKEN = re.compile(r"\s*\S+|\s+$")
KNOWN_NATS, STRANGE_NATS, TEMPLATE_NATS = 2.0, 6.0, 0.001


@dataclass
class FakeEngine:
    """What the server was asked, and how it is to behave."""

    url: str = ""
    strange: str = "numpy"  # questions with this word are hard
    unknown: str = "numpy"  # and so are the answers of questions with this one
    status: int = 200
    refuses_corrections: bool = False
    delay_s: float = 0.0
    moved: float = 0.0  # nats by which every token is less likely than it was
    more: Callable[[str, str], float] = lambda _name, _question: 0.0  # nats added to each token, for noise or bias
    says: Callable[[str], str] = lambda _question: "It does."  # what it answers
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    together: int = 1  # nothing is answered before so many were under way at once
    most: int = 0  # that ever were
    _under_way: int = 0
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """One request more is under way."""
        with self._arrived:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self._arrived.notify_all()
            assert self._arrived.wait_for(lambda: self.most >= self.together, 10), f"no {self.together} came together"
        try:
            yield
        finally:
            with self._arrived:
                self._under_way -= 1

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a chat or a plain completion."""
        self.bodies.append(body)
        chat = path == "/v1/chat/completions"
        turns = body["messages"] if chat else [{"role": "user", "content": body["prompt"]}]
        corrected = turns[-1]["role"] == "assistant"
        question = turns[-2 if corrected else -1]["content"]
        tokens = _TOKEN.findall(TEMPLATE[0 if chat else 1].format(question))
        answer_at = len(tokens)
        tokens += _TOKEN.findall(f"{turns[-1]['content']} <|im_end|>") if corrected else []
        positions: list[Any] = [None]
        for index, token in enumerate(tokens[1:], 1):
            strange = (self.unknown in question) if index >= answer_at else (self.strange in question)
            nats = STRANGE_NATS if strange else KNOWN_NATS
            value = TEMPLATE_NATS if "<|im" in token else nats + (len(token) % 5) / 10
            value += self.moved + self.more(body["model"], question)
            positions.append({str(1_000 + index): {"logprob": -value, "rank": 1, "decoded_token": token}})
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": self.says(question)}}
        return (
            {"choices": [choice], "prompt_logprobs": positions}
            if chat
            else {"choices": [choice | {"prompt_logprobs": positions}]}
        )


@contextmanager
def fake_engine() -> Iterator[FakeEngine]:
    """The server, for as long as the block lasts."""
    engine = FakeEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65_536  # one packet per answer; two would wait 40 ms for an acknowledgement

        def setup(self) -> None:
            engine.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with engine.at_work():
                answer, status = engine.answer(self.path, body), engine.status
                if engine.refuses_corrections and body["messages"][-1]["role"] == "assistant":
                    status = 400
                if status != 200:
                    answer = {"error": {"message": "too long"}}
                time.sleep(engine.delay_s)
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
