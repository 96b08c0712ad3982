"""deploy/compose.yaml: what can be known of it without a Docker engine.

Its form against the compose specification's own schema; its settings, verbs, secrets and ports against the code. That
the images build is not shown here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from deploy.deployed import DEPLOY, ROOT, compose, python_tool, run
from tests_support import free_port
from tuneloop.cli import main as front_door
from tuneloop.cli import up
from tuneloop.cli.sections import sections

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("tuneloop/")}
PROCESSES = {name: service for name, service in OURS.items() if name != "mlflow"}


def environment(service: dict[str, Any], secrets: Path) -> dict[str, str]:
    """The service's variables as its container gets them; secrets lie in a folder of this machine."""
    filled = {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in service["environment"].items()}
    return {name: value.replace("/run/secrets", str(secrets)) for name, value in filled.items()}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    run(str(DEPLOY / "make-secrets"), tmp_path / "secrets")
    return tmp_path / "secrets"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_file_is_valid_by_the_compose_specification(name: str) -> None:
    python_tool("check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / name)


def test_the_schema_check_would_see_a_misspelt_key(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace("healthcheck:", "healthchek:"))
    with pytest.raises(AssertionError, match="healthchek"):
        python_tool("check_jsonschema", "--builtin-schema", "vendor.compose-spec", broken)


def test_the_gpu_file_changes_services_that_exist() -> None:
    assert compose("compose.gpu.yaml")["services"].keys() <= OURS.keys()


def test_the_same_processes_run_as_with_tuneloop_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: dict[str, list[str]] = {}
    monkeypatch.setattr(up, "supervise", lambda found, _logs, **_: commands.update(found))
    for name in ("ENGINE", "GATEWAY", "API"):
        monkeypatch.setenv(f"TUNELOOP_{name}_PORT", str(free_port()))
    (tmp_path / "config.json").write_text("{}")  # a base, as far as is looked at before anything starts
    up.run(tmp_path, tmp_path)
    assert PROCESSES.keys() == commands.keys()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_command_is_a_verb_that_takes_these_arguments(name: str) -> None:
    verb, *arguments = PROCESSES[name]["command"]
    command = front_door.build().commands[verb]
    assert command.make_context(verb, arguments, click.Context(front_door.build())).args == []


@pytest.mark.parametrize("name", PROCESSES)
def test_every_variable_is_a_setting_and_takes_its_value(
    name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment(PROCESSES[name], secrets)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    read = set()
    for section in sections().values():
        read |= {origin for _, origin in section.load().origins().values()}
    assert variables.keys() <= read, "nothing reads these"


def test_processes_find_each_other_where_they_listen(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for service in PROCESSES.values():
        for variable, value in environment(service, secrets).items():
            monkeypatch.setenv(variable, value)
    known = {name: section.load() for name, section in sections().items()}
    assert known["engine"].public_url == f"http://engine:{known['engine'].port}"
    assert known["engine"].local_url == f"http://127.0.0.1:{known['engine'].port}"
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped} == {
        "gateway": [f"gateway:{known['gateway'].port}"],
        "monitor": [f"monitor:{known['monitor'].metrics_port}"],
        "engine": [f"engine:{known['engine'].port}"],
    }
    for name in ("gateway", "engine", "monitor", "api"):
        port = getattr(known[name], "metrics_port" if name == "monitor" else "port")
        assert f"http://127.0.0.1:{port}/" in SERVICES[name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_is_given_the_time_it_takes_to_end(name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(PROCESSES[name], secrets).items():
        monkeypatch.setenv(variable, value)
    assert float(PROCESSES[name]["stop_grace_period"].removesuffix("s")) >= sections()[name].load().stop_timeout_s


def test_only_the_gateway_is_reachable_from_outside() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.pop("gateway") == ["8100:8100"]
    assert published.keys() == {"api", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert compose()["networks"]["inside"]["internal"]
    assert all(
        SERVICES[name]["networks"] == ["inside"] for name in ("postgres", "mlflow", "engine", "monitor", "controller")
    )


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_checked_restarted_and_unprivileged(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+[\w.-]*", service["image"]), "an image is pinned by its tag"
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert name in {"worker", "controller"} or service["healthcheck"]["test"][0] == "CMD"  # those two listen nowhere


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_reach_a_service_as_files_that_it_mounts(name: str) -> None:
    service = SERVICES[name]
    text = str([service.get("environment", {}), service.get("command", [])])
    assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(service.get("secrets", []))
    named = {key for key in service.get("environment", {}) if re.search("PASSWORD|SECRET|DATABASE_URL", key)}
    assert all(key.endswith("_FILE") for key in named)


def test_make_secrets_makes_exactly_the_secrets_and_keeps_them(secrets: Path) -> None:
    declared = {Path(entry["file"]).name for entry in compose()["secrets"].values()}
    made = {path.name: path.read_text(encoding="utf-8") for path in secrets.iterdir()}
    assert made.keys() - {".gitignore"} == declared
    assert secrets.stat().st_mode & 0o777 == 0o700, "nobody else on the server may enter"
    assert all((secrets / name).stat().st_mode & 0o777 == 0o444 for name in declared), "a container's user reads them"
    for name in ("database_url", "mlflow_database_url"):
        assert f":{made['postgres_password']}@postgres:5432/" in made[name]
    run(str(DEPLOY / "make-secrets"), secrets)
    assert {path.name: path.read_text(encoding="utf-8") for path in secrets.iterdir()} == made


def test_what_is_mounted_from_the_repository_is_there() -> None:
    mounts = [str(mount) for service in SERVICES.values() for mount in service.get("volumes", [])]
    paths = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")[0] for mount in mounts]
    assert all((DEPLOY / path).exists() for path in paths if path.startswith("."))
    named = {path for path in paths if not path.startswith(".")}
    assert named == compose()["volumes"].keys()


def test_the_images_are_built_from_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    targets = {service["build"]["target"] for service in OURS.values()}
    assert targets <= set(re.findall(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE))
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE):
        for path in copied.split():
            assert (ROOT / path).exists()
            assert f"!{path}" in ignored
    for target in set(re.findall(r"\.venv\S*/\.\w+", text)):
        assert f"\n{target.rstrip(';')}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_no_image_runs_as_root() -> None:
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for stage in stages:
        name = stage.partition("\n")[0].rpartition(" ")[2]
        if name in {"project", "engine"}:
            assert re.findall(r"^USER (\d+)$", stage, flags=re.MULTILINE)[-1] == "10001"
