"""What processes log, as an object a line: nothing can forge a line, and what an exception says stays out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_PROCESS = """
import logging
from tuneloop.registry.logs import set_up
from tuneloop.registry.settings import RegistrySettings
set_up(RegistrySettings.load().log_format, gateway_id="gw")
log = logging.getLogger("here")
log.info("one\\n{\\"level\\": \\"ERROR\\"}\\u2028two", extra={"request_id": "req_1", "prompt": "Zanzibar"})
def deep(n):
    if n:
        deep(n - 1)
    raise ValueError("Zanzibar")
try:
    try:
        deep(100)
    except ValueError as error:
        raise KeyError("cloves") from error
except KeyError:
    log.exception("failed %s", "x" * 10_000)
logging.getLogger("alembic").info("quiet")
"""


def _logged(folder: Path, form: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS],
        env={"PYTHONPATH": ":".join(sys.path), "TUNELOOP_LOG_FORMAT": form},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_json_is_one_object_a_line_without_what_exceptions_say(tmp_path: Path) -> None:
    logged = _logged(tmp_path, "json")
    told, failed = map(json.loads, logged.splitlines())
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "INFO",
        "logger": "here",
        "message": 'one\n{"level": "ERROR"}\u2028two',
        "gateway_id": "gw",
        "request_id": "req_1",
    }
    assert failed["exception"]["types"] == ["KeyError", "ValueError"]
    assert failed["exception"]["places"][-1].endswith(" <module>")
    assert (failed["level"], len(failed["message"])) == ("ERROR", 4_000)
    assert "Zanzibar" not in logged
    assert "cloves" not in logged


def test_text_is_for_a_terminal(tmp_path: Path) -> None:
    logged = _logged(tmp_path, "text")
    assert " INFO here one" in logged
    assert "quiet" not in logged
