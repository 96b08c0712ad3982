"""Grafana dashboards: who is on call, who owns a model, who sees to capacity; written by `tuneloop alert dashboards`.

Pure: the same objectives give the same bytes. Every signal the monitor knows has a panel, so a new one is drawn once
they are written anew. Names of metrics are those that gateway, monitor and vLLM export; tests/deploy puts every query
to a real Prometheus on real exporters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tuneloop.monitor.boards import capacity, model_owner, on_call
from tuneloop.monitor.slo import Slo


def dashboards(objectives: Mapping[str, Slo]) -> dict[str, str]:
    """Name of a file → the dashboard in it."""
    boards = (on_call.board(objectives), model_owner.board(), capacity.board())
    return {f"{board.uid.removeprefix('tuneloop-')}.json": _text(board.as_json()) for board in boards}


def _text(found: dict[str, object]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
