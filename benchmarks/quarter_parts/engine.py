"""An engine that reads texts with a small real language model, and somebody who takes deliveries.

The model is an interpolated word bigram, trained for each version on what that version was trained on; it answers
over HTTP as vLLM does when asked for `prompt_logprobs`. What it says of a text is computed, never set.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")
_CHAT = "<|im_start|>{role}\n{content}<|im_end|>\n"
_KINDS = 10_000  # words there may be: what an unknown one is shared out among
_MIX = (0.55, 0.40, 0.05)  # bigram, unigram, unknown


class Bigram:
    """P(word | the word before), from counts of texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._words: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        for text in texts:
            words = ["", *(token.strip().lower() for token in _TOKEN.findall(text))]
            self._words.update(words)
            self._pairs.update(pairwise(words))
        self._total = sum(self._words.values())

    def logprob(self, before: str, word: str) -> float:
        """In nats."""
        by_pair, by_word, unknown = _MIX
        seen = self._words[before]
        p = by_pair * (self._pairs[before, word] / seen if seen else 0.0)
        return math.log(p + by_word * self._words[word] / self._total + unknown / _KINDS)


@dataclass
class Engine:
    """The models it serves, by version name."""

    url: str = ""
    models: dict[str, Bigram] = field(default_factory=dict)
    read: int = 0

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What vLLM answers with `prompt_logprobs: 0`."""
        self.read += 1
        chat = path == "/v1/chat/completions"
        prompt = "".join(_CHAT.format(**turn) for turn in body["messages"]) if chat else body["prompt"]
        tokens, model = _TOKEN.findall(prompt), self.models[body["model"]]
        words = [token.strip().lower() for token in tokens]
        positions: list[Any] = [None]
        for index in range(1, len(tokens)):
            value = model.logprob(words[index - 1], words[index])
            positions.append({str(index): {"logprob": value, "rank": 1, "decoded_token": tokens[index]}})
        choice: dict[str, Any] = {"index": 0}
        if chat:
            return {"choices": [choice], "prompt_logprobs": positions}
        return {"choices": [choice | {"prompt_logprobs": positions}]}


@contextmanager
def served(answer: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Iterator[str]:
    """An HTTP server that answers JSON with JSON, for as long as the block lasts; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65_536  # one packet per answer; two would wait 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            payload = json.dumps(answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
