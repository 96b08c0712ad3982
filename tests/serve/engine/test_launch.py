"""vLLM is started with a guard against each of its known defects, and without our secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tuneloop.monitor import reading
from tuneloop.registry.errors import InvalidInput
from tuneloop.serve.engine import client as agent_client
from tuneloop.serve.engine.launch import Device, Launch, build, check_room, check_weights, refuse_key
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.gateway import client as gateway_client
from tuneloop.serve.gateway.settings import GatewaySettings


def launch(
    device: Device = "cpu", *, cores: int = 2, theirs: Mapping[str, str] | None = None, **changes: object
) -> Launch:
    return build(
        EngineSettings.load(**changes),
        base=Path("/bases/small"),
        served_as="small",
        python=Path("/env/bin/python"),
        device=device,
        cores=cores,
        plugins=Path("/home/plugins"),
        environment={
            "PATH": "/bin",
            "TUNELOOP_DATABASE_URL": "postgresql://u:secret@h/d",
            "PYTHONPATH": "/ours",
            "VLLM_PLUGINS": "theirs",
            **(theirs or {}),
        },
    )


def options(launch: Launch) -> dict[str, str]:
    """Option → what follows it."""
    text = " ".join(launch.command)
    return {name: value.strip() for name, value in re.findall(r"--([a-z-]+)((?: (?!--)\S+)*)", text)}


def test_the_command_carries_the_guards() -> None:
    given = options(launch())
    assert given["lora-target-modules"].split() == [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ]
    assert given["api-server-count"] == "1"
    assert given["served-model-name"] == "small"
    assert (given["max-loras"], given["max-cpu-loras"]) == ("6", "16")
    assert int(given["max-num-batched-tokens"]) >= int(given["max-model-len"])
    assert given["host"] == "127.0.0.1"


@pytest.mark.parametrize(("patience_s", "given"), [(60, "60"), (1.2, "2"), (0.5, "1"), (0, "0")])
def test_vllm_finishes_what_is_running_for_as_long_as_the_agent_waits_and_not_less(
    patience_s: float, given: str
) -> None:
    """vLLM counts whole seconds, and 0 is that it aborts what is running."""
    assert options(launch(drain_timeout_s=patience_s))["shutdown-timeout"] == given


def test_what_asks_an_engine_lets_go_of_an_idle_connection_before_vllm_does_whatever_an_operator_set() -> None:
    closes_s = int(launch(theirs={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "1"}).environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"])
    assert max(gateway_client.IDLE_S, agent_client.IDLE_S, reading.IDLE_S) < closes_s


def test_tools_are_read_as_the_base_writes_them_if_somebody_says_how() -> None:
    assert "--tool-call-parser" not in launch().command
    command = " ".join(launch(tool_call_parser="hermes").command)
    assert "--enable-auto-tool-choice --tool-call-parser hermes" in command


def test_an_engine_for_its_base_alone_makes_no_room_for_adapters() -> None:
    given = options(launch(max_loras=0))
    assert not [name for name in given if "lora" in name]
    assert "enforce-eager" in given
    assert "enforce-eager" not in options(launch("gpu", max_loras=0)) | options(launch())
    assert EngineSettings.load(max_loras=0).usable_slots == 0
    with pytest.raises(InvalidInput, match="holds 0 adapters and max_loras is 0"):
        check_room(EngineSettings.load(max_loras=0), loaded=0)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ('{"quantization_config": {"format": "int-quantized"}}', True),
        ('{"quantization_config": {"format": "pack-quantized"}}', False),
        ('{"quantization_config": null}', False),
        ("{}", False),
        ("[]", False),
        ("no json", False),
    ],
)
def test_adapters_on_8_bit_weights_are_refused_before_vllm_ends_of_them(
    tmp_path: Path, config: str, *, refused: bool
) -> None:
    (tmp_path / "config.json").write_text(config)
    check_weights(tmp_path, EngineSettings.load(), "gpu")
    check_weights(tmp_path, EngineSettings.load(max_loras=0), "cpu")
    if refused:
        with pytest.raises(InvalidInput, match="serve it alone with --max-loras 0"):
            check_weights(tmp_path, EngineSettings.load(), "cpu")
    else:
        check_weights(tmp_path, EngineSettings.load(), "cpu")


def test_on_few_cores_vllm_computes_on_all_unless_somebody_bound_it() -> None:
    bind = "VLLM_CPU_OMP_THREADS_BIND"
    assert launch(cores=2).environment[bind] == "nobind"
    assert bind not in launch(cores=16).environment
    assert bind not in launch("gpu", cores=2).environment
    assert launch(cores=2, theirs={bind: "1"}).environment[bind] == "1"


def test_a_machine_without_a_gpu_gets_its_variables_and_no_other_does() -> None:
    cpu, gpu = launch("cpu"), launch("gpu")
    assert cpu.environment["TORCHDYNAMO_DISABLE"] == "1"
    assert cpu.environment["PYTHONPATH"] == "/home/plugins"
    assert not {"TORCHDYNAMO_DISABLE", "VLLM_CPU_KVCACHE_SPACE", "PYTHONPATH"} & gpu.environment.keys()
    assert cpu.environment["VLLM_PLUGINS"] == "theirs,tuneloop_engine_guard"
    assert options(gpu)["gpu-memory-utilization"] == "0.9"
    assert "gpu-memory-utilization" not in options(cpu)
    for made in (cpu, gpu):
        assert made.environment["HF_HUB_OFFLINE"] == "1"
        assert made.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def test_vllm_never_sees_our_secrets() -> None:
    assert "secret" not in str(launch().environment)
    assert launch().environment["PATH"] == "/bin"


def test_what_would_open_vllm_is_not_inherited() -> None:
    opens = {
        "VLLM_LORA_RESOLVER_CACHE_DIR": "/adapters",
        "VLLM_LORA_RESOLVER_HF_REPO_LIST": "somebody/anything",
        "VLLM_SERVER_DEV_MODE": "1",
    }
    made = launch(theirs=opens | {"VLLM_LOGGING_LEVEL": "DEBUG"}).environment
    assert not opens.keys() & made.keys()
    assert made["VLLM_LOGGING_LEVEL"] == "DEBUG", "the rest is the operator's"


def test_a_key_that_no_gateway_would_send_is_refused_rather_than_taken_away() -> None:
    with pytest.raises(InvalidInput, match=r"VLLM_API_KEY is set: .* unset it and keep the engine"):
        refuse_key({"VLLM_API_KEY": "k"})
    refuse_key({"VLLM_API_KEY": ""})


def test_one_slot_stays_reserved() -> None:
    settings = EngineSettings.load(max_loras=3)
    check_room(settings, loaded=1)
    with pytest.raises(InvalidInput, match="--max-loras 4"):
        check_room(settings, loaded=2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_loras": 1}, "max_loras 1 leaves no slot, one stays reserved; give 2, or 0 for none"),
        ({"max_loras": -1}, "max_loras"),
        ({"max_loras": 20}, "max_cpu_loras 16 is below max_loras 20"),
        ({"max_lora_rank": 12}, "max_lora_rank"),
        ({"id": "a/b"}, "id 'a/b'"),
        ({"pins": ("bot@1", "bot@2"), "max_loras": 2}, "2 pins need max_loras 3 or more"),
        ({"pins": ("bot",)}, "'bot' is not a version"),
        ({"tool_call_parser": "a --b"}, "tool_call_parser"),
    ],
)
def test_settings_that_would_break_a_guard_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        EngineSettings.load(**wrong)


def test_an_engine_that_listens_everywhere_is_reached_locally_and_advertises_its_host() -> None:
    settings = EngineSettings.load(host="0.0.0.0", port=9)  # noqa: S104 (what is tested)
    assert settings.local_url == "http://127.0.0.1:9"
    assert "0.0.0.0" not in settings.public_url  # noqa: S104 (what is tested)
    assert EngineSettings.load(advertise_url="http://e1:9/").public_url == "http://e1:9"


def test_an_ipv6_address_stands_in_brackets_in_every_url() -> None:
    engine = EngineSettings.load(host="::1", port=9)
    assert engine.local_url == engine.public_url == "http://[::1]:9"
    assert GatewaySettings.load(host="::1", port=9).url == "http://[::1]:9"


def test_the_engine_environment_is_looked_for_upwards(tmp_path: Path) -> None:
    python = tmp_path / ".venv-engine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert EngineSettings.load().engine_python(below) == python
    with pytest.raises(InvalidInput, match="make setup"):
        EngineSettings.load(python=str(tmp_path / "none")).engine_python(below)


def test_away_from_the_checkout_the_engine_environment_beside_this_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, away = tmp_path / "checkout", tmp_path / "away"
    away.mkdir()
    monkeypatch.setattr("sys.prefix", str(checkout / ".venv"))
    with pytest.raises(InvalidInput, match=f"at or above {away} or in {checkout}"):
        EngineSettings.load().engine_python(away)
    python = checkout / ".venv-engine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert EngineSettings.load().engine_python(away) == python


def test_a_missing_base_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--base FOLDER"):
        EngineSettings.load().base_folder()
    with pytest.raises(InvalidInput, match="is not a folder"):
        EngineSettings.load(base=str(tmp_path / "none")).base_folder()
