"""What of deploy/ runs without containers, run: Prometheus on real exporters, MLflow as compose starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.deployed import DEPLOY, RULES, compose, queries
from serve.gateway.faulty_engine import FaultyEngine
from serve.gateway.test_clients_that_leave import connect
from serve.gateway.world import Address, Got, make_world, until
from tests_support import alert_episode, free_port, publish_version, window_score
from tuneloop.monitor.metrics import Metrics as MonitorMetrics
from tuneloop.monitor.signals import DETECTORS, DETECTORS_OF_TRIALS
from tuneloop.monitor.standing import Standing, Waiting
from tuneloop.registry import Registry
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.deliveries.outbox import Backlog
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import utc_now
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway.admission.prices import Price


@contextmanager
def process(command: list[str], log: Path, **variables: str) -> Iterator[None]:
    """A program that runs meanwhile; its output is in the error when the test fails on it."""
    with log.open("w") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **variables})
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-2_000:]}") from error
    finally:
        running.terminate()
        running.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 (always http, on this machine)
            return bool(response.status == 200)
    except OSError:
        return False


def asked(url: str, **query: str) -> Any:
    """The data of one answer of Prometheus."""
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as response:  # noqa: S310
        return json.loads(response.read())["data"]


def export_monitor(stack: ExitStack, receivers: Mapping[str, Backlog]) -> int:
    """The monitor's metrics after a pass that judged every signal and found things standing; their port."""
    metrics, now, port = MonitorMetrics(), utc_now(), free_port()
    for signal in DETECTORS:
        metrics.judged(window_score(now, id=signal, signal=signal, request_ids=("req_1",)), now)
    for signal in DETECTORS_OF_TRIALS:
        metrics.compared(window_score(now, id=signal, signal=signal, version=2))
    metrics.receivers(receivers, len(receivers))
    metrics.untold([] if receivers else [alert_episode(now)])
    metrics.unjudged({("bot", "thumbs_down"): 60.0})
    metrics.stopped({"other": "deleted"})
    metrics.stands(
        Standing(
            {("bot", RolloutState.RUNNING): 1, ("other", RolloutState.PAUSED): 1},
            {"bot": 0.0},
            {"bot": 0.0},
            {("bot", "person"): Waiting(1, 60.0)},
        )
    )
    metrics.passed(now, [alert_episode(now)])
    server, thread = metrics.serve("127.0.0.1", port)
    stack.callback(thread.join, 10)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return port


def start_prometheus(stack: ExitStack, folder: Path, targets: Mapping[str, list[str]]) -> str:
    """Prometheus with the files of `deploy/`, looking every second; its address."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:  # vLLM itself is not here: its metrics are held against its source elsewhere
        urls = targets.get(job["job_name"], ["http://127.0.0.1:1"])
        job["static_configs"] = [{"targets": [url.removeprefix("http://") for url in urls]}]
    for path in RULES:
        (folder / path.name).write_text(path.read_text(encoding="utf-8"))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}"]
    stack.enter_context(process(command, folder / "prometheus.log"))
    return address


def provoke(gateway: Address, engines: Sequence[FaultyEngine], limited: str) -> None:
    """What counters count that an ordinary request does not touch: guards, the queue, limits; a second attempt next."""
    until(lambda: gateway.chat().status == 200, 40, "the guards' worker is warm")
    for engine in engines:
        engine.fault, engine.faults_left = "never_answers", 1
    assert gateway.chat(logit_bias={"1": 1}).status == 400  # by a guard
    blocker = connect(gateway, stream=False)
    until(lambda: sum(engine.at_work for engine in engines) == 1, 20)
    for engine in engines:
        engine.fault = "none"
    assert gateway.chat().error["code"] == "overloaded"
    blocker.close()
    until(lambda: gateway.chat().status == 200, 20, "the gateway lets somebody in again")
    assert {Address(gateway.url, limited).chat().status for _ in range(2)} == {200, 429}
    engines[0].fault, engines[0].faults_left = "dies_before_first_byte", 1  # a second attempt, at the other engine
    engines[1].fault = "none"


def test_prometheus_fills_every_rule_and_panel_from_real_exporters(tmp_path: Path) -> None:
    with ExitStack() as stack:
        world = make_world(RegistrySettings(home=tmp_path / "home"), stack)
        engines = [world.engine(name, "bot@1", "bot@2") for name in ("e1", "e2")]
        world.engine("e3", "bot@3", "shadowed@1")
        world.route((2, 5_000), (1, 5_000), (3, 0), shadow=3)
        world.route((1, 10_000), model="unserved")
        world.route((1, 10_000), (2, 0), model="shadowed", shadow=2)  # which no engine serves
        guarded = GuardPolicy(banned_parameters=("logit_bias",))
        world.registry.policies.set("bot", guarded, by="test", reason="test")
        hurried = GuardPolicy(deadline_ms=10)  # too little for a long text
        world.registry.policies.set("unserved", hurried, by="test", reason="test")
        secret, _ = world.registry.keys.new("team", by="test", limits=KeyLimits(requests_per_minute=1))
        prices = {"bot": Price(prompt_usd_per_million=Decimal(1), completion_usd_per_million=Decimal(2))}
        gateway = world.gateway(max_in_flight=1, queue_timeout_s=0.5, guard_workers=1, prices=prices)
        # One of them tells nobody itself, so that the episode is Prometheus' to tell.
        monitors = [export_monitor(stack, receivers) for receivers in ({}, {"pager": Backlog(30.0, 1)})]
        targets = {"gateway": [gateway.url], "monitor": [f"http://127.0.0.1:{port}" for port in monitors]}

        address = start_prometheus(stack, tmp_path, targets)
        api = f"http://{address}/api/v1"
        until(lambda: answers(f"http://{address}/-/ready"), 60, "Prometheus is ready")

        provoke(gateway, engines, secret)
        long, numbers = " ".join(f"word{number}" for number in range(10_000)), count()

        def served(**asked: Any) -> None:
            """One at a time is let in, and the one before may still be leaving."""
            until(lambda: gateway.chat(**asked).status == 200, 20, "a request finds its turn")

        def too_long() -> Got:
            """Another each time: a verdict that comes too late is remembered."""
            return gateway.chat(model="unserved", text=f"{next(numbers)} {long}")

        def traffic() -> None:
            for number in range(6):
                served(unit=f"user-{number}", stream=number % 2 == 0)
            served(text="write to ada@example.com")  # which a guard redacts
            served(model="shadowed")
            assert gateway.chat(model="unserved").status == 503
            until(lambda: too_long().error["code"] == "guards_unavailable", 20)

        def unnamed() -> set[str]:
            """The queries that find nothing, or no series with a label they are called by."""
            traffic()
            ours = [query for query in queries() if not query.is_of_vllm]
            found = {one.expr: asked(f"{api}/query", query=one.expr)["result"] for one in ours}
            labels = {expr: set().union(*(series["metric"] for series in result)) for expr, result in found.items()}
            return {one.expr for one in ours if not found[one.expr] or not one.called_by <= labels[one.expr]}

        quiet = {'ALERTS{alertstate="firing"}', "changes(tuneloop_route_revision[1m]) > 0"}
        until(lambda: unnamed() <= quiet, 90, "every query of the dashboards finds what it is called by")
        loaded = [rule for group in asked(f"{api}/rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in loaded} == {"ok"}
        assert asked(f"{api}/query", query="tuneloop_registry_up")["result"][0]["value"][1] == "1"

        def episode() -> dict[str, Any] | None:
            found: list[dict[str, str]] = [alert["labels"] for alert in asked(f"{api}/alerts")["alerts"]]
            return next((labels for labels in found if labels["alertname"] == "EpisodeOpen"), None)

        alert = until(episode, 60, "the open episode alerts")
        assert (alert["severity"], alert["model"]) == ("page", "bot")


def test_mlflow_as_compose_starts_it_keeps_versions_in_postgresql(tmp_path: Path, postgres: Any) -> None:
    service = compose()["services"]["mlflow"]
    port = free_port()
    secrets, artifacts = tmp_path / "secrets", tmp_path / "artifacts"
    secrets.mkdir()
    (secrets / "mlflow_database_url").write_text(postgres.new_database())
    (line,) = service["command"]
    for inside, here in {
        "$$": "$",
        "/run/secrets": str(secrets),
        "/var/lib/tuneloop/artifacts": str(artifacts),
        "0.0.0.0": "127.0.0.1",  # noqa: S104 (what compose says, replaced)
        "5000": str(port),
        "exec mlflow": f"exec {Path(sys.executable).with_name('mlflow')}",
    }.items():
        assert inside in line
        line = line.replace(inside, here)
    line = re.sub(r"--workers \d", "--workers 1", line)
    url = f"http://127.0.0.1:{port}"
    settings = RegistrySettings(home=tmp_path / "home", mlflow_uri=url, database_url=postgres.new_database())
    with process([*service["entrypoint"], line], tmp_path / "mlflow.log", **service["environment"]):
        until(lambda: answers(f"{url}/health"), 90, "MLflow answers")
        with Registry.open(settings) as registry:
            version = publish_version(registry, tmp_path / "made")
            fetched = registry.versions.fetch(version, tmp_path / "fetched")
        assert (fetched / "adapter_model.safetensors").is_file()
        assert list(artifacts.rglob("adapter_model.safetensors")), "the server keeps the files, not the client"
        foreign = urllib.request.Request(f"{url}/", headers={"host": "elsewhere"})  # noqa: S310 (http, on this machine)
        with pytest.raises(OSError, match="403"):
            urllib.request.urlopen(foreign, timeout=5)  # noqa: S310 (the same)
