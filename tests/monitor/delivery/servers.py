"""Receivers that are really there: an HTTP server and an SMTP server that note what they are told."""

from __future__ import annotations

import base64
import socketserver
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_string, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Told:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class HttpReceiver:
    """Answers with `status` and `answer_headers`, after `before_answer` was called with what came."""

    url: str = ""
    status: int = 200
    answer_headers: dict[str, str] = field(default_factory=dict)
    before_answer: Callable[[Told], None] = lambda _told: None
    told: list[Told] = field(default_factory=list)

    def ids(self) -> list[str]:
        """The delivery of each request, in order."""
        return [told.headers["tuneloop-delivery"] for told in self.told]


@contextmanager
def http_receiver() -> Iterator[HttpReceiver]:
    """A server on a free port."""
    receiver = HttpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                return  # who sent it was killed; nobody can read half of it
            told = Told(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            receiver.told.append(told)
            receiver.before_answer(told)
            self.send_response(receiver.status)
            for name, value in {"Content-Length": "0", **receiver.answer_headers}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 (their names there)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class MailReceiver:
    """What an SMTP server was told: who logged in, over what, and the mails."""

    port: int = 0
    ca_file: str = ""
    refuses: set[str] = field(default_factory=set)
    puts_off: set[str] = field(default_factory=set)  # refuses for a while
    reached: list[list[str]] = field(default_factory=list)  # addresses of each mail
    logins: list[tuple[str, str, bool]] = field(default_factory=list)  # user, password, encrypted
    mails: list[EmailMessage] = field(default_factory=list)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for `localhost` that signs itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


class _SmtpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    receiver: MailReceiver
    context: ssl.SSLContext

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not trust the certificate ends the connection; that is its right."""


class _Smtp(socketserver.StreamRequestHandler):
    """One conversation."""

    server: _SmtpServer

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self) -> None:
        self.to: list[str] = []
        self.say("220 localhost ready")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "QUIT":
                self.say("221 bye")
                return
            self.answer(verb, line)

    def finish(self) -> None:
        super().finish()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.close()  # the server only knows the one it was wrapped around

    def answer(self, verb: str, line: str) -> None:
        encrypted = isinstance(self.request, ssl.SSLSocket)
        if verb == "EHLO":
            self.say("250-localhost")
            self.say("250 AUTH PLAIN" if encrypted else "250 STARTTLS")
        elif verb == "STAR":
            self.say("220 go ahead")
            self.rfile.close()
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
            self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
        elif verb == "AUTH":
            _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
            self.server.receiver.logins.append((user, password, encrypted))
            self.say("235 welcome")
        elif verb == "RCPT" and any(f"<{address}>" in line for address in self.server.receiver.refuses):
            self.say("550 nobody here")
        elif verb == "RCPT" and any(f"<{address}>" in line for address in self.server.receiver.puts_off):
            self.say("450 try again later")
        elif verb == "RCPT":
            self.to.append(line[line.index("<") + 1 : line.index(">")])
            self.say("250 fine")
        elif verb == "DATA":
            self.server.receiver.reached.append(self.to)
            self.say("354 go on")
            lines = list(iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), "."))
            text = "\n".join(line.removeprefix(".") if line.startswith("..") else line for line in lines)
            self.server.receiver.mails.append(message_from_string(text, policy=policy.default))
            self.say("250 taken")
        else:
            self.say("250 fine")


@contextmanager
def mail_receiver(folder: Path) -> Iterator[MailReceiver]:
    """An SMTP server that speaks STARTTLS and takes any password."""
    cert, key = certificate(folder)
    receiver = MailReceiver(ca_file=str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    server = _SmtpServer(("127.0.0.1", 0), _Smtp)
    server.receiver, server.context = receiver, context
    receiver.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
