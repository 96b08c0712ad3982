"""What the documents show is what happens: Python blocks run, commands exist, marked blocks print what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from docs.documents import DOCUMENTS, ROOT, Command, consoles, name, tuneloop_lines
from tuneloop.cli import main as front_door

SYBIL = Sybil(parsers=[PythonCodeBlockParser()])
WITH_PYTHON = [path for path in DOCUMENTS if "```python\n" in path.read_text(encoding="utf-8")]
WITH_RUNS = [path for path in DOCUMENTS if any(console.runs for console in consoles(path))]
LINES = [(place, line) for document in DOCUMENTS for place, line in tuneloop_lines(document)]


@pytest.mark.parametrize("document", WITH_PYTHON, ids=name)
def test_python_blocks_run(document: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    examples = list(SYBIL.parse(document))
    assert examples
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_python_blocks_that_need_a_running_gateway_are_valid_python(document: Path) -> None:
    for block in re.finditer(r"^```python notest\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S):
        compile(block[1], name(document), "exec")


@pytest.mark.parametrize(("place", "line"), LINES, ids=[place for place, _ in LINES])
def test_every_command_exists_with_these_options(place: str, line: str) -> None:
    parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize(
    "line", ["tuneloop trian recipe.yaml", "tuneloop promote bot@1", "tuneloop status --jsno", "tuneloop alert shw x"]
)
def test_a_command_that_does_not_exist_would_be_seen(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(shlex.split(line)[1:])


@pytest.mark.parametrize("document", WITH_RUNS, ids=name)
def test_console_blocks_marked_to_run_print_what_they_say(document: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8", "TUNELOOP_HOME": str(tmp_path / ".tuneloop")}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for console in consoles(document):
        for command in console.commands if console.runs else ():
            check(command, tmp_path, environment)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_inside_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{name(document)}: {target}"


def test_every_runbook_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8")
    runbooks = {path.name for path in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == runbooks


def parse(arguments: list[str]) -> None:
    """Let click take the command line apart; a path that does not exist here is no fault of the document.

    Raises:
        click.UsageError: no such verb or option, a missing one, a value of the wrong kind.
    """
    command: click.Command = front_door.build()
    context = click.Context(command, info_name="tuneloop")
    while isinstance(command, click.Group):
        if not arguments or arguments[0] in {"--help", "--version"}:
            return
        given, *arguments = arguments
        found = command.get_command(context, given)
        if found is None:
            raise click.UsageError(f"no verb {given!r}")
        command, context = found, click.Context(found, parent=context, info_name=given)
    if "--help" in arguments:
        return
    try:
        command.make_context(command.name, arguments, parent=context.parent)
    except click.BadParameter as error:
        if "does not exist" not in str(error):
            raise


def check(command: Command, folder: Path, environment: dict[str, str]) -> None:
    """Run a command as a reader would and hold its output against the document; `…` there stands for anything."""
    done = subprocess.run(
        ["bash", "-c", command.line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    shown = ".*".join(re.escape(part) for part in command.output.strip().split("…"))
    assert re.fullmatch(shown, done.stdout.strip(), re.DOTALL), f"{command.place}: {command.line}\n{done.stdout}"
