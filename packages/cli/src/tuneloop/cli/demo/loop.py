"""The ten steps, in order; each says what it did, and the first that fails ends the demo with its reason.

Everything goes through public verbs (`tuneloop …`, read as JSON) and the gateway's public API. State lives in one
folder, which a new run empties.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import httpx
import yaml

from tuneloop.cli.demo.evidence import Gathered, build, failures
from tuneloop.cli.demo.home import empty_home, look_again
from tuneloop.cli.demo.scale import FULL, QUICK, Scale
from tuneloop.cli.demo.table import closing_table
from tuneloop.cli.demo.traffic import Question, Traffic
from tuneloop.cli.processes import Processes, tuneloop_command, wait_until

MODEL = "python-helper"
PERPLEXITIES = {"perplexity", "correction_perplexity"}  # the monitor's signals of how hard the version finds its work
WHO = ("--by", "demo", "--reason")


class DemoError(Exception):
    """A step failed; the message says which and why."""

    exit_code = 1


def run(example: Path, home: Path, *, quick: bool) -> None:
    """Run the loop; raises DemoError when a step fails or something promised did not hold."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    demo = Demo(example, home, QUICK if quick else FULL)
    try:
        demo.run()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # who asks twice must not leave half of the processes running
        demo.close()


class Demo:
    """One run: its state folder, its processes, and what it gathered so far."""

    def __init__(self, example: Path, home: Path, scale: Scale) -> None:
        self._example, self._home, self._scale = example.resolve(), home.resolve(), scale
        empty_home(self._home)
        self._gateway = f"http://127.0.0.1:{(gateway_port := _free_port())}"
        self._engine = f"http://127.0.0.1:{(engine_port := _free_port())}"
        environment = {
            "TUNELOOP_HOME": str(self._home),
            "TUNELOOP_GATEWAY_PORT": str(gateway_port),
            "TUNELOOP_ENGINE_PORT": str(engine_port),
            "TUNELOOP_MONITOR_WINDOW": str(scale.window),
            "TUNELOOP_MONITOR_REFERENCE": str(scale.reference),
            "TUNELOOP_MONITOR_MEAN_RUN_LENGTH": str(scale.mean_run_length),
            "TUNELOOP_MONITOR_EVERY_S": "2",
        }
        self._processes = Processes(self._home / "logs", environment, click.echo)
        self._gathered = Gathered()
        self._drift_began = datetime.now(UTC)
        self._traffic: Traffic | None = None
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch_memory, daemon=True)
        self._watcher.start()

    def run(self) -> None:
        """Every step, then the report, the evidence and the table."""
        steps: list[tuple[str, Callable[[], str]]] = [
            ("base", self._prepare_base),
            ("data", self._build_data),
            ("train", self._train),
            ("register", self._register),
            ("serve", self._serve),
            ("traffic", self._send_traffic),
            ("drift", self._drift),
            ("retrain", self._retrain),
            ("canary", self._canary),
            ("trace", self._trace),
            ("report", self._report),
        ]
        for number, (name, step) in enumerate(steps, start=1):
            click.echo(f"\n[{number}/{len(steps)}] {name}")
            began = time.monotonic()
            try:
                said = step()
            except subprocess.CalledProcessError as error:
                reason = (error.stderr or error.stdout or "").strip() or f"exit code {error.returncode}"
                raise DemoError(f"step {number} ({name}): `{' '.join(error.cmd)}`: {reason}") from None
            except (DemoError, TimeoutError, httpx.HTTPError) as error:
                raise DemoError(f"step {number} ({name}): {error}") from error
            took = time.monotonic() - began
            self._gathered.seconds[name] = took
            click.echo(f"      {said} ({took:.0f} s)")
        self._conclude()

    def close(self) -> None:
        """Stop the traffic and every process."""
        self._closing.set()
        if self._traffic is not None:
            self._traffic.end()
        self._processes.stop_all()

    def _prepare_base(self) -> str:
        if self._scale.quick:
            self._example = shutil.copytree(
                self._example, self._home / "example", ignore=shutil.ignore_patterns("data")
            )
            recipe = yaml.safe_load(self._recipe.read_text(encoding="utf-8"))
            for section, changes in self._scale.recipe.items():
                recipe[section] |= changes
            self._recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            policy = yaml.safe_load(self._policy.read_text(encoding="utf-8"))
            self._policy.write_text(yaml.safe_dump(policy | self._scale.policy), encoding="utf-8")
        self._gathered.base = self._verb("base", str(self._recipe))
        return f"{self._gathered.base['name']}, {self._gathered.base['digest'][:19]}…"

    def _build_data(self) -> str:
        out = self._example / "data"
        command = [sys.executable, str(self._example / "build_data.py"), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        for name, rows in self._scale.rows.items():
            for path in out.glob(f"*/{name}.jsonl"):
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                path.write_text("".join(lines[:rows]), encoding="utf-8")
        checked = self._verb("data", "check", str(out / "stdlib" / "train.jsonl"))
        return f"{checked['rows']} training rows in {out}"

    def _train(self) -> str:
        self._processes.run("train", str(self._recipe), echo=True)
        return "version 1 is trained"

    def _register(self) -> str:
        engine = tuneloop_command("engine", "--base", self._gathered.base["folder"])
        self._processes.start("engine", engine, echo=True)  # vLLM takes a while, and what to serve the route will say
        with ThreadPoolExecutor(1) as pool:
            listed = pool.submit(self._verb, "versions", MODEL)
            self._processes.run("approve", f"{MODEL}@1", *WHO, "the first version, looked at")
            self._processes.run("promote", f"{MODEL}@1", *WHO, "the first version")
            self._processes.run("retraining", "policy", MODEL, "--set", str(self._policy), *WHO, "the demo's")
            [version] = listed.result()
        metrics = ", ".join(
            f"{name} {value:.3g}" for name, value in version["metrics"].items() if name.startswith("perpl")
        )
        return f"{MODEL}@1, {version['artifact_digest'][:19]}…, {metrics}; the route gives it 100 %"

    def _serve(self) -> str:
        self._processes.start("gateway", tuneloop_command("gateway"))
        wait_until("engine and gateway", self._ready, 300, self._someone_ended, every_s=2)
        self._processes.start("monitor", tuneloop_command("monitor"))
        secret = self._verb("key", "new", "--owner", "demo")["secret"]
        self._traffic = Traffic(self._gateway, secret, MODEL, max_tokens=self._scale.max_tokens)
        wait_until("the gateway to know the key", lambda: self._key_works(secret), 10)
        self._traffic.ask(self._questions("stdlib"), 2)
        self._no_failures()
        return f"gateway {self._gateway}, engine loaded {MODEL}@1, an openai client was answered"

    def _send_traffic(self) -> str:
        traffic = self._running_traffic()
        traffic.ask(self._questions("stdlib"), self._scale.quiet_requests)
        self._no_failures()
        return f"{traffic.tally.sent} questions about the standard library, {traffic.tally.corrections} corrections"

    def _drift(self) -> str:
        traffic = self._running_traffic()
        self._drift_began = datetime.now(UTC)
        traffic.begin(self._questions("sqlalchemy"), self._scale.drifting_users)
        requests: list[dict[str, Any]] = []

        def seen_and_filed() -> bool:
            requests[:] = self._verb("retraining", "list", "--model", MODEL)
            if not requests:
                return False
            [episode] = self._verb("alerts", "--model", MODEL)
            return not PERPLEXITIES.isdisjoint(episode["evidence"]["signals"])

        what = "a retraining request, and perplexity that rises"
        try:
            wait_until(what, seen_and_filed, self._scale.drift_timeout_s, self._someone_ended, every_s=5)
        finally:
            traffic.end()
        self._no_failures()
        self._gathered.retraining = requests[0]
        [alert] = self._verb("alerts", "--model", MODEL)
        self._gathered.episode = self._verb("alert", "show", alert["id"])
        request = self._gathered.retraining
        signals = ", ".join(self._gathered.episode["evidence"]["signals"])
        return f"alert {alert['id']} ({signals}), request {request['id']} with {request['rows']} corrections"

    def _retrain(self) -> str:
        request = self._gathered.retraining["id"]
        self._processes.run("retraining", "approve", request, *WHO, "the drift is real")
        worker = self._processes.start("worker", tuneloop_command("worker", "--once"), echo=True)
        timeout_s = self._scale.retrain_timeout_s
        wait_until("the retraining", lambda: worker.poll() is not None, timeout_s, self._someone_ended, every_s=0.5)
        self._processes.stop("worker")
        found = self._verb("retraining", "show", request)["request"]
        if found["state"] != "gated":
            raise DemoError(f"the retraining is {found['state']}: {found['outcome']}")
        self._gathered.gate = self._verb("gate", f"{MODEL}@2")
        return f"{MODEL}@2: gate {self._gathered.gate['verdict']}"

    def _canary(self) -> str:
        traffic = self._running_traffic()
        traffic.begin(self._questions("sqlalchemy") + self._questions("stdlib"))
        try:
            scale = self._scale
            options = {
                "--steps": "1000,5000,10000",
                "--hold-s": scale.hold_s,
                "--margin": scale.margin,
                "--error-margin": scale.error_margin,
                "--min-samples": scale.min_samples,
                "--give-up-s": scale.drift_timeout_s,
            }
            given = [str(part) for option in options.items() for part in option]
            start = ("rollout", "start", f"{MODEL}@2", *given, *WHO, "answers the drift", "--json")
            said = self._processes.run(*start)
            self._gathered.verdict = json.loads(said)
            time.sleep(self._scale.hold_s)
            self._processes.run("rollback", MODEL, *WHO, "a drill")
            time.sleep(self._scale.hold_s)
            self._processes.run("promote", f"{MODEL}@2", *WHO, "the drill is over")
            time.sleep(self._scale.hold_s)
        finally:
            traffic.end()
        self._no_failures()
        return (
            f"{MODEL}@2 serves everything after 10 %, 50 %, 100 %, one rollback and one roll-forward; no stream broke"
        )

    def _trace(self) -> str:
        request = self._running_traffic().tally.last_answered[f"{MODEL}@2"]
        wait_until(
            "the last record",
            lambda: any(r["id"] == request for r in self._verb("requests", MODEL, "--newest", "50")),
            15,
        )
        self._gathered.trace = self._verb("trace", request)
        return " → ".join(step["kind"] for step in self._gathered.trace)

    def _report(self) -> str:
        out = self._home / "report"
        gathered = self._gathered
        with ThreadPoolExecutor(2) as pool:  # a verb takes seconds, most of them to start
            drawn = pool.submit(self._processes.run, "report", MODEL, "--out", str(out))
            versions = pool.submit(self._verb, "versions", MODEL)
            routes = pool.submit(self._verb, "route", "history", MODEL)
            audit = pool.submit(self._verb, "audit", MODEL, "--limit", "1000")
            requests = pool.submit(self._verb, "requests", MODEL)
            windows = pool.submit(self._verb, "drift", "windows", MODEL)
            retraining = pool.submit(self._verb, "retraining", "show", gathered.retraining["id"])
        gathered.versions, gathered.routes, gathered.audit = versions.result(), routes.result(), audit.result()
        gathered.requests, gathered.windows = requests.result(), windows.result()
        gathered.retraining = retraining.result()["request"]
        drawn.result()
        return str(out / "report.html")

    def _conclude(self) -> None:
        self._closing.set()
        self._watcher.join()
        evidence = build(self._gathered, self._running_traffic().tally, self._drift_began)
        path = self._home / "evidence.json"
        path.write_text(json.dumps(evidence, indent=2), encoding="utf-8")
        click.echo("\n" + closing_table(evidence))
        click.echo(f"\nreport    {self._home / 'report' / 'report.html'}\nevidence  {path}")
        click.echo(f"state     {look_again(self._home)}")
        if wrong := failures(evidence):
            raise DemoError("not shown: " + "; ".join(wrong))

    @property
    def _recipe(self) -> Path:
        return self._example / "recipe.yaml"

    @property
    def _policy(self) -> Path:
        return self._example / "retraining.yaml"

    def _verb(self, *arguments: str) -> Any:
        return json.loads(self._processes.run(*arguments, "--json"))

    def _questions(self, domain: str) -> list[Question]:
        return Question.read(self._example / "data" / domain / "questions.jsonl")

    def _running_traffic(self) -> Traffic:
        assert self._traffic is not None, "the serve step makes it"
        return self._traffic

    def _no_failures(self) -> None:
        tally = self._running_traffic().tally
        if tally.failed:
            raise DemoError(f"{tally.failed} of {tally.sent} requests failed: {dict(tally.failures.most_common(3))}")

    def _ready(self) -> bool:
        try:  # a verb is a second of one core: not while vLLM needs it to start
            httpx.get(f"{self._engine}/health", timeout=5).raise_for_status()
        except httpx.HTTPError:
            return False
        now = self._verb("status")
        return bool(now["gateways"]) and any(engine["state"] == "ready" for engine in now["engines"])

    def _key_works(self, secret: str) -> bool:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.get(f"{self._gateway}/v1/models", headers=headers, timeout=5).status_code == httpx.codes.OK

    def _someone_ended(self) -> str | None:
        gone = [process for process in self._processes.ended() if process.code != 0]
        return f"{gone[0].name} ended with exit code {gone[0].code}:\n{gone[0].tail}" if gone else None

    def _watch_memory(self) -> None:
        while not self._closing.wait(3):
            self._gathered.peak_memory_bytes = max(self._gathered.peak_memory_bytes, self._processes.memory_bytes())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
