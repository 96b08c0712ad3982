"""The project's habits hold together: hooks and `make check`, licence and packages, the design and the verbs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import click
import yaml

from docs.documents import ROOT
from tuneloop.cli import main as front_door


def test_a_commit_is_checked_by_what_make_check_runs() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert recipe is not None
    made = {line.removesuffix(" .") for line in recipe[1].split("\n\t") if line.startswith(".venv/bin/")}
    made |= {recipe[1].split("\n")[0].strip().removesuffix(" .")}
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {hook["entry"] for repo in config["repos"] for hook in repo["hooks"]} == made
    assert {repo["repo"] for repo in config["repos"]} == {"local"}


def test_pre_commit_takes_the_hooks() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    subprocess.run(command, check=True, timeout=60)


def test_every_package_carries_the_licence_that_stands_in_the_root() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    packages = list(ROOT.glob("packages/*/pyproject.toml"))
    assert packages
    for package in packages:
        assert tomllib.loads(package.read_text(encoding="utf-8"))["project"]["license"] == "Apache-2.0"


def test_the_design_lists_exactly_the_verbs_there_are() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = design.partition("## How it is used")[2].partition("\n## ")[0]
    listed: dict[str, set[str]] = {}
    for span in re.findall(r"`(?:tuneloop )?([a-z]+(?: [A-Za-z·]+)*)`", section):
        verb, _, rest = span.partition(" ")
        listed.setdefault(verb, set()).update(part for part in rest.split(" ")[0].split("·") if part.islower())
    found = {
        name: set(verb.commands) if isinstance(verb, click.Group) else set()
        for name, verb in front_door.build().commands.items()
    }
    assert listed == found
