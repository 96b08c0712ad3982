"""The pictures of the documents show the figures there are: none is older than what was measured last."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIGURES: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "drift.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def curves() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from drift_parts import curves
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return curves


def shown(path: Path) -> tuple[list[str], list[str]]:
    """The digest of the figures that a picture says it is of, and its words."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"figures ([0-9a-f]{64})", text), re.findall(r"<text[^>]*>([^<]+)</text>", text)


def test_the_curves_of_drift_are_those_of_the_newest_figures_and_stand_in_the_page(curves: Any, tmp_path: Path) -> None:
    drawn = curves.draw(FIGURES, tmp_path)
    assert {path.name for path in drawn} == {path.name for path in DOCS.glob("drift_*.svg")}
    page = (DOCS / "drift.md").read_text(encoding="utf-8")
    for path in drawn:
        assert f"]({path.name})" in page
        assert shown(DOCS / path.name) == shown(path), "draw them anew: .venv/bin/python benchmarks/drift.py --draw"
        assert shown(path)[0]


def test_another_figure_is_another_picture(curves: Any, tmp_path: Path) -> None:
    changed = json.loads(json.dumps(FIGURES))
    changed["power"]["shares"]["four looks"]["20%"] += 0.01
    changed["power"]["alpha"] = 0.02
    (power,) = curves.draw({"power": changed["power"]}, tmp_path)
    digest, words = shown(power)
    assert digest != shown(DOCS / power.name)[0]
    assert "false alarms allowed: 2 %" in words
