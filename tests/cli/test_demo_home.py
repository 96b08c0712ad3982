"""The demo empties its own folder and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests_support import alert_episode
from tuneloop.cli.demo.home import empty_home, look_again
from tuneloop.cli.main import main
from tuneloop.registry import Registry

ROOT = Path(__file__).parents[2]


def test_a_folder_that_no_demo_made_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(click.ClickException, match=r"was not made by the demo.*give --home a new or empty folder"):
        empty_home(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"bases", ".git", "thesis.tex"}


@pytest.mark.parametrize("before", [None, "", "bases"], ids=["new", "empty", "only bases"])
def test_a_folder_the_demo_filled_is_emptied_but_for_the_base(tmp_path: Path, before: str | None) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    if before is not None:
        (home / before).mkdir(parents=True)
    empty_home(home)
    (home / "bases" / "smollm2").mkdir(parents=True)
    (home / "logs").mkdir()
    (home / "logs" / "engine.log").touch()
    (home / "evidence.json").touch()
    (home / "link").symlink_to(elsewhere)
    for _ in range(2):
        empty_home(home)
        assert {path.name for path in home.iterdir()} == {"bases", ".tuneloop-demo"}
    assert (home / "bases" / "smollm2").is_dir()
    assert (elsewhere / "mine").exists()


def test_a_place_where_no_folder_can_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match=r"file.* cannot be made or emptied .*--home"):
        empty_home(tmp_path / "file" / "home")


def test_make_clean_removes_the_demo_and_no_other_state() -> None:
    said = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert ".tuneloop/demo" in said
    assert ".tuneloop" not in said


def test_what_a_demo_says_last_shows_its_state_with_any_verb(registry: Registry) -> None:
    registry.episodes.open(alert_episode(registry.clock(), id="ep_of_the_demo"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    line = look_again(registry.settings.home)
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert "ep_of_the_demo" in done.stdout


def test_a_demo_outside_the_repository_says_so_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tuneloop", "demo"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "the demo trains what comes with tuneloop's repository; cd there" in " ".join(
        capsys.readouterr().err.split()
    )
    assert list(tmp_path.iterdir()) == []


def test_who_asks_a_demo_to_stop_twice_leaves_nothing_running(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tuneloop.cli.demo import loop\n"
        "ask = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "def close(_):\n"
        "    ask()\n"
        "    print('all stopped')\n"
        "loop.Demo.run, loop.Demo.close = lambda _: ask(), close\n"
        "loop.run(Path(sys.argv[1]), Path(sys.argv[2]), quick=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "all stopped\n"
    assert "KeyboardInterrupt" in done.stderr
