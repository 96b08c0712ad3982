"""Processes: started with a log, watched, and stopped so that nothing is left behind, however stubborn."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psutil
import pytest

from tests_support import free_port
from tuneloop.cli import up
from tuneloop.cli.processes import Ended, Processes, wait_until

# A parent that will not end on SIGTERM, its child in a session of its own, and a grandchild; each writes its id.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
depth, folder = int(sys.argv[1]), sys.argv[2]
open(f"{folder}/pid{depth}.part", "w").write(str(os.getpid()))
os.rename(f"{folder}/pid{depth}.part", f"{folder}/pid{depth}")
if depth:
    subprocess.Popen([sys.executable, __file__, str(depth - 1), folder], start_new_session=depth == 2)
time.sleep(600)
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def processes(tmp_path: Path, said: list[str]) -> Iterator[Processes]:
    made = Processes(tmp_path / "logs", {"FROM_TEST": "yes"}, said.append, stop_timeout_s=0.5)
    yield made
    made.stop_all()


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *arguments]


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _soon(ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    wait_until("the test", ready, timeout_s)


def test_output_goes_to_a_log_whose_end_can_be_read(processes: Processes, said: list[str]) -> None:
    processes.start(
        "loud", _python("for n in range(30): print(f'line {n} \\N{SNOWMAN}')\nimport time; time.sleep(600)"), echo=True
    )
    _soon(lambda: "line 29" in processes.tail("loud"))
    assert processes.tail("loud").splitlines()[0] == "line 18 ☃"
    assert said[0].split(maxsplit=1) == ["loud", "line 0 ☃"]
    assert processes.tail("nobody") == ""
    assert processes.ended() == []


def test_one_that_ends_by_itself_is_told_once_with_its_last_words(processes: Processes) -> None:
    processes.start("brief", _python("import sys; print('port 8100 is taken', file=sys.stderr); sys.exit(7)"))
    found: list[Ended] = []

    def told() -> bool:
        found.extend(processes.ended())
        return bool(found)

    _soon(told)
    assert found == [Ended("brief", 7, "port 8100 is taken")]
    assert processes.ended() == []


def test_a_stray_byte_does_not_stop_the_reading(processes: Processes) -> None:
    processes.start("binary", _python("import os, time; os.write(1, b'\\xff\\n'); print('after'); time.sleep(600)"))
    _soon(lambda: processes.tail("binary").endswith("after"))


def test_a_polite_process_is_asked_and_ends_in_its_own_way(processes: Processes, said: list[str]) -> None:
    code = """
        import signal, sys, time
        def end(*_):
            print("closing the books", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(600)
    """
    process = processes.start("polite", _python(code), stop_timeout_s=60)
    _soon(lambda: processes.tail("polite") == "ready")
    processes.stop("polite")
    assert process.returncode == 0
    assert processes.tail("polite") == "ready\nclosing the books"
    assert said == []


def test_one_that_needs_longer_to_end_is_given_its_own_time(tmp_path: Path, said: list[str]) -> None:
    code = """
        import signal, sys, time
        def end(*_):
            time.sleep(2)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(600)
    """
    processes = Processes(tmp_path, {}, said.append, stop_timeout_s=0.5)
    process = processes.start("gateway", _python(code), stop_timeout_s=60)
    _soon(lambda: processes.tail("gateway") == "ready")
    processes.stop_all()
    assert process.returncode == 0
    assert said == []


def _a_base_and_free_ports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text("{}")
    for name in ("ENGINE", "GATEWAY", "API"):
        monkeypatch.setenv(f"TUNELOOP_{name}_PORT", str(free_port()))


def test_up_tells_of_a_wrong_base_and_every_taken_port_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _a_base_and_free_ports(tmp_path, monkeypatch)
    monkeypatch.setattr(up, "supervise", lambda *_, **__: pytest.fail("it has started something"))
    with socket.socket() as mine, socket.socket() as other:
        for held, name in ((mine, "GATEWAY"), (other, "API")):
            held.bind(("127.0.0.1", 0))
            held.listen(1)
            monkeypatch.setenv(f"TUNELOOP_{name}_PORT", str(held.getsockname()[1]))
        with pytest.raises(click.ClickException) as refused:
            up.run(tmp_path / "notbase", tmp_path)
    base, gateway, api = refused.value.message.splitlines()
    assert "notbase holds no config.json, so no base model; `tuneloop base RECIPE` makes one" in base
    assert "or set TUNELOOP_GATEWAY_PORT (port under [gateway] in tuneloop.toml)" in gateway
    assert "Address already in use; stop what listens there, or set TUNELOOP_API_PORT" in api


def test_up_gives_gateway_and_engine_the_time_their_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, float] = {}
    _a_base_and_free_ports(tmp_path, monkeypatch)
    monkeypatch.setenv("TUNELOOP_GATEWAY_DRAIN_S", "40")
    monkeypatch.setattr(up, "supervise", lambda _commands, _logs, *, patience_s: given.update(patience_s))
    up.run(tmp_path, tmp_path)
    expected = {"engine": 80, "gateway": 130, "monitor": 30, "worker": 30, "controller": 30, "api": 80}
    assert given == expected


def test_a_stubborn_process_is_killed_with_its_children_and_grandchildren(
    processes: Processes, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    processes.start("stubborn", [sys.executable, str(tmp_path / "stubborn.py"), "2", str(tmp_path)])
    files = [tmp_path / f"pid{depth}" for depth in range(3)]
    _soon(lambda: all(file.exists() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert not any(_gone(pid) for pid in pids)
    processes.stop("stubborn")
    assert said == ["stubborn did not end within 0 s: killed"]
    _soon(lambda: all(_gone(pid) for pid in pids))


def test_what_a_dead_process_left_running_in_its_session_is_ended_too(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    code = "import subprocess, sys; subprocess.Popen([sys.executable, sys.argv[1], '0', sys.argv[2]])"
    parent = processes.start("gone", _python(code, str(tmp_path / "stubborn.py"), str(tmp_path)))
    _soon(lambda: (tmp_path / "pid0").exists() and parent.poll() == 0)
    orphan = int((tmp_path / "pid0").read_text())
    assert not _gone(orphan)
    processes.stop_all()
    _soon(lambda: _gone(orphan))


def test_everything_stops_the_last_started_first(processes: Processes, tmp_path: Path) -> None:
    code = """
        import signal, sys, time
        def end(*_):
            open(sys.argv[1], "a").write(sys.argv[2])
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(600)
    """
    for name in "abc":
        processes.start(name, _python(code, str(tmp_path / "order"), name), stop_timeout_s=60)
    _soon(lambda: all(processes.tail(name) == "ready" for name in "abc"))
    processes.stop_all()
    assert (tmp_path / "order").read_text() == "cba"


def test_logs_that_cannot_be_written_are_one_clear_error_and_nothing_starts(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    processes = Processes(tmp_path / "file" / "logs", {}, said.append)
    with pytest.raises(
        click.ClickException, match=r"engine\.log cannot be written \(Not a directory\); give `tuneloop up` --logs"
    ):
        processes.start("engine", _python("open('started', 'w')"))
    assert processes.ended() == []


def test_a_name_is_taken_while_its_process_runs(processes: Processes) -> None:
    processes.start("one", _python("import time; time.sleep(600)"))
    with pytest.raises(ValueError, match="one is running already"):
        processes.start("one", _python(""))
    processes.stop("one")
    processes.start("one", _python("import time; time.sleep(600)"))


def test_a_verb_gives_what_it_printed_or_why_it_failed(processes: Processes, said: list[str]) -> None:
    assert "Usage:" in processes.run("--help")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        processes.run("promote", "nonsense", "--by", "ada", "--reason", "test")
    assert caught.value.returncode == 2
    assert caught.value.cmd == ["tuneloop", "promote", "nonsense", "--by", "ada", "--reason", "test"]
    assert "'nonsense' is not a version" in caught.value.stderr
    assert processes.ended() == []  # a verb is nobody's process to be missed
    assert said == []


def test_the_environment_of_the_group_reaches_its_processes_beside_our_own(processes: Processes) -> None:
    processes.start("env", _python("import os; print(os.environ['FROM_TEST'], 'PATH' in os.environ)"))
    _soon(lambda: processes.tail("env") == "yes True")


def test_memory_is_counted_over_everything_below(processes: Processes) -> None:
    before = processes.memory_bytes()
    processes.start("big", _python("data = b'x' * 300_000_000; print('ready', flush=True); input()"))
    processes.start(
        "wide", _python("data = b'x' * 300_000_000; print('ready', flush=True); import time; time.sleep(99)")
    )
    _soon(lambda: processes.tail("wide") == "ready")
    assert processes.memory_bytes() - before > 250_000_000


@pytest.mark.parametrize(
    ("failed", "message"), [(lambda: "it died", "^it: it died$"), (lambda: None, "^it: not after")]
)
def test_waiting_ends_with_the_reason(failed: Callable[[], str | None], message: str) -> None:
    with pytest.raises(TimeoutError, match=message):
        wait_until("it", lambda: False, 0.1, failed)


SUPERVISED = """
import sys
from pathlib import Path
from tuneloop.cli.up import supervise
commands = {name: [sys.executable, "-c", code] for name, code in zip(sys.argv[3::2], sys.argv[4::2])}
failure = supervise(commands, Path(sys.argv[1]), starting_s=float(sys.argv[2]))
print("failed:" if failure else "stopped", failure.name if failure else "", failure.tail if failure else "", flush=True)
"""


def _supervised(tmp_path: Path, starting_s: float, *commands: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SUPERVISED, str(tmp_path / "logs"), str(starting_s), *commands]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_one_that_cannot_start_stops_everything_with_its_last_lines(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    steady = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    waits = f"""
import os, time
while not os.path.exists({str(pid)!r}) or not os.path.getsize({str(pid)!r}):
    time.sleep(0.05)
raise SystemExit("taken")
"""
    with _supervised(tmp_path, 60.0, "steady", steady, "gateway", waits) as supervising:
        out, _ = supervising.communicate(timeout=60)
    assert "failed: gateway taken" in out
    assert _gone(int((tmp_path / "pid").read_text()))


def test_one_that_dies_later_is_started_again_however_soon_it_dies_then(tmp_path: Path) -> None:
    """It lives long enough once, then dies at once twice, and then stays: that is no reason to stop the others."""
    count = tmp_path / "count"
    code = f"""
import os, time
from pathlib import Path
runs = Path({str(count)!r})
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
if len(runs.read_text()) == 1:
    time.sleep(5)
elif len(runs.read_text()) == 4:
    time.sleep(600)
os._exit(9)
"""
    with _supervised(tmp_path, 4.0, "engine", code) as supervising:
        _soon(lambda: count.exists() and len(count.read_text()) == 4, timeout_s=120)
        supervising.send_signal(signal.SIGTERM)
        out, _ = supervising.communicate(timeout=60)
    assert supervising.returncode == 0
    assert [line.split("; ")[1] for line in out.splitlines() if "ended with 9" in line] == [
        "starting it again in 1 s",
        "starting it again in 2 s",
        "starting it again in 4 s",
    ]
    assert out.rstrip().endswith("stopped")


def test_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with _supervised(tmp_path, 60.0, "one", code) as supervising:
        _soon(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        began = time.monotonic()
        os.kill(supervising.pid, signal.SIGINT)
        out, _ = supervising.communicate(timeout=60)
    assert out.rstrip().endswith("stopped")
    assert time.monotonic() - began < 20
    assert _gone(int((tmp_path / "pid").read_text()))
