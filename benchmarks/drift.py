"""Drift: what the detectors see, how soon, how often they cry wolf and what they cost, beside Evidently's defaults.

    .venv/bin/python benchmarks/drift.py [--json FILE] [--rounds 8] [--pairs 14] [--only power,scalars,peers,cost]
    .venv/bin/python benchmarks/drift.py --draw     # the pictures anew, from the figures there are

Text is what the machine holds: synopses of the distribution's packages by section, docstrings by library; each topic
against its nearest neighbour. Evidently is installed into a scratch environment (`--scratch`, 700 MB); without a
network its column is left out and the table says so; it takes ten seconds of a core for a window, so it has `--peer-s`
seconds and the table holds the streams it has finished by then. Writes `benchmarks/results/drift.json` and a picture.
Takes about half an hour on two cores; `--only` replaces single parts of the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drift_parts import corpus, cost, curves, peers, picture, power, scalars
from drift_parts.corpus import Pair

RESULTS = Path(__file__).parent / "results" / "drift.json"
DOCS = Path(__file__).parents[1] / "docs"
PARTS = ("power", "scalars", "peers", "cost")


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=8, help="windows of each pair and mix; streams of each change")
    parser.add_argument("--pairs", type=int, default=14, help="pairs of neighbouring topics, spread over all there are")
    parser.add_argument("--replays", type=int, default=400, help="of each scalar stream")
    parser.add_argument("--peer-s", type=float, default=360.0, help="what Evidently may take of the time")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--scratch", type=Path, default=Path(".cache/drift-peers"))
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw the figures there are")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(options.json.read_text(encoding="utf-8")), options.json)
        return
    texts = corpus.topics()
    pairs = spread(corpus.neighbours(texts), options.pairs)
    lengths = [len(text) for text in texts[pairs[0].usual]]
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "power": lambda: power.measure(texts, pairs, options.rounds),
        "scalars": lambda: scalars.measure(lengths, options.replays),
        "peers": lambda: peers.measure(texts, pairs, options.scratch, options.rounds, options.peer_s),
        "cost": lambda: cost.measure(texts, pairs[0]),
    }
    results: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
    results = {part: results[part] for part in PARTS if part in results}
    for part in options.only.split(","):
        results[part] = measures[part]()
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tell(part, results[part])
    draw(results, options.json)


def draw(results: dict[str, Any], file: Path) -> None:
    """The curves of the documents, and the picture beside the figures once every part is measured."""
    for path in curves.draw(results, DOCS):
        print(path)
    if set(PARTS) <= set(results):
        picture.draw(results, file.with_suffix(".png"))
        print(file.with_suffix(".png"))


def spread(pairs: list[Pair], many: int) -> list[Pair]:
    """`many` of the pairs, evenly through their order."""
    return [pairs[i * len(pairs) // many] for i in range(many)] if len(pairs) > many else pairs


def tell(part: str, found: dict[str, Any]) -> None:
    """Print one part."""
    print(f"== {part}")
    for name, value in found.items():
        if isinstance(value, list):
            for row in value:
                print("  " + ", ".join(f"{key} {held}" for key, held in row.items()))
        elif isinstance(value, dict):
            for key, held in value.items():
                print(f"  {key}: {held}")
        else:
            print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
