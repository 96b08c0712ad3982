"""The front door: every verb is there at once, exit codes mean what they say, and a bug looks like a bug."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import click
import pytest

from tuneloop.cli import main as front_door

VERBS = {
    *("demo", "up", "status", "trace", "requests", "report", "alerts", "alert", "models", "versions", "compare"),
    *(
        "show",
        "card",
        "experiment",
        "guard",
        "gate",
        "approve",
        "sign",
        "promote",
        "rollback",
        "route",
        "rollout",
        "retraining",
    ),
    *("train", "recipe", "data", "key", "token", "feedback"),
    *("config", "engine", "gateway", "monitor", "worker", "controller", "api", "audit", "db"),
}
HEAVY = [
    "fastapi",
    "uvicorn",
    "torch",
    "transformers",
    "mlflow",
    "trl",
    "vllm",
    "presidio_analyzer",
    "matplotlib",
    "openai",
]


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_help_lists_every_verb_with_one_line() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tuneloop.cli", "--help"], check=True, capture_output=True, text=True
    ).stdout
    listed = dict(re.findall(r"^  ([a-z]+) +(\S.*)$", said.partition("Verbs:")[2], flags=re.MULTILINE))
    assert listed.keys() >= VERBS
    for name, verb in front_door.build().commands.items():
        line = verb.get_short_help_str(1_000)
        assert 10 <= len(line) <= 110, name


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import json, sys, time\n"
        "began = time.process_time()\n"
        "from tuneloop.cli.main import build\n"
        "names = list(build().commands)\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "print(json.dumps([names, heavy, time.process_time() - began]))"
    )
    names, heavy, cpu_s = json.loads(_python(code))
    assert set(names) >= VERBS
    assert heavy == []
    assert cpu_s < 3  # of processor time: how busy the machine is does not count


def test_json_stands_alone_on_standard_output_whatever_libraries_print() -> None:
    code = (
        "import os, sys\n"
        "from tuneloop.cli import main\n"
        "from tuneloop.registry import printing\n"
        "import click\n"
        "@click.command('chatty')\n"
        "@printing.json_option\n"
        "def chatty(as_json):\n"
        "    print('a library says hello')\n"
        "    os.system('echo a child says hello')\n"
        "    printing.emit({'answer': 'ü'}, as_json, 'text')\n"
        "main.tuneloop.add_command(chatty)\n"
        "sys.argv = ['tuneloop', 'chatty', '--json']\n"
        "main.main()"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(said.stdout) == {"answer": "ü"}
    assert "a library says hello" in said.stderr
    assert "a child says hello" in said.stderr


def test_the_verbs_stand_in_the_order_people_meet_them() -> None:
    group = front_door.build()
    group.add_command(click.Command("aaa-somebody-elses", help="A verb of another package."))
    try:
        listed = group.list_commands(click.Context(group))
    finally:
        del group.commands["aaa-somebody-elses"]
    assert listed[:3] == ["demo", "up", "status"]
    assert listed[-1] == "aaa-somebody-elses"  # unknown here, so after all that are known
    assert sorted(set(front_door.ORDER)) == sorted(front_door.ORDER)


class _Says(Exception):
    """An error as the packages raise them."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("what is wrong; what to do next")
        self.exit_code = exit_code


def _main(monkeypatch: pytest.MonkeyPatch, verb: click.Command, *arguments: str) -> int | str | None:
    """What `tuneloop VERB …` ends with when this is the only verb."""
    group = click.Group(commands={"verb": verb})
    monkeypatch.setattr(front_door, "build", lambda: group)
    monkeypatch.setattr(sys, "argv", ["tuneloop", *arguments])
    with pytest.raises(SystemExit) as stopped:
        front_door.main()
    return stopped.value.code


@pytest.mark.parametrize("exit_code", [1, 2, 3])
def test_an_error_on_purpose_is_one_paragraph_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exit_code: int
) -> None:
    @click.command()
    def verb() -> None:
        raise _Says(exit_code)

    assert _main(monkeypatch, verb, "verb") == exit_code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "tuneloop: what is wrong; what to do next\n")


def test_a_verb_that_does_its_work_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def verb() -> None:
        """Do nothing."""

    assert _main(monkeypatch, verb, "verb") == 0
    assert _main(monkeypatch, verb, "verb", "--help") == 0


@pytest.mark.parametrize("arguments", [("nonsense",), ("verb", "--nonsense"), ("verb", "too", "many")])
def test_wrong_usage_ends_with_2_and_says_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    @click.command()
    def verb() -> None:
        """Do nothing."""

    assert _main(monkeypatch, verb, *arguments) == 2
    assert "Usage:" in capsys.readouterr().err


def test_an_argument_that_is_no_text_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.argument("name")
    def verb(name: str) -> None:
        """Never reached."""
        raise AssertionError(name)

    assert _main(monkeypatch, verb, "verb", os.fsdecode(b"b\xff")) == 2
    assert "b\\udcff is not UTF-8 text" in capsys.readouterr().err


def test_ctrl_c_is_no_error_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def verb() -> None:
        raise KeyboardInterrupt

    assert _main(monkeypatch, verb, "verb") == 130
    assert capsys.readouterr().err.strip() == "stopped"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def verb() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(front_door, "build", lambda: click.Group(commands={"verb": verb}))
    monkeypatch.setattr(sys, "argv", ["tuneloop", "verb"])
    with pytest.raises(ZeroDivisionError) as caught:
        front_door.main()
    assert "verb" in [entry.name for entry in caught.traceback]


def test_the_console_script_itself_ends_with_the_errors_code(tmp_path: object) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop.cli", "promote", "not-a-version", "--by", "ada", "--reason", "test"],
        capture_output=True,
        text=True,
        cwd=str(tmp_path),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tuneloop: 'not-a-version' is not a version")
    assert time.monotonic() - began < 30
