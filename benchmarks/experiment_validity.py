"""How often an experiment claims a difference that is not there, and how soon it finds one that is.

    .venv/bin/python benchmarks/experiment_validity.py [--quick | --only PARTS] [--json FILE]

Simulated tests go through the code that judges live ones (`tuneloop.registry.experiments`): 10,000 for each row (of
planned looks 100,000, whose promise is kept with less room; of bandits 200 runs, each of 10,000 units), seeds fixed.
A/A tests are looked at from 100 units an arm on, up to 197 times; beside them stands the t-test at each look, as a
dashboard shows it. A/B tests have a fixed one of the same power beside them. Writes
`benchmarks/results/experiment_validity.json` and five pictures. Takes ten minutes of one processor; `--only` replaces
single parts of the file, `--quick` (500 tests, half a minute) writes nothing. Exits 1 where a promise is not kept: more
than 5 % of A/A tests claim a difference, beyond what so many tests leave to chance, or a report judges otherwise than
the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiment_parts import bandit, false_positives, pictures, planned, power, split
from experiment_parts.simulation import ALPHA, binary, ratio, skewed, very_skewed
from tuneloop.registry.statistics.intervals import wilson

RESULTS = Path(__file__).parent / "results" / "experiment_validity.json"
PARTS = ("false_positives", "planned", "power", "split", "bandit")
Results = dict[str, Any]


def measure_false_positives(tests: int, folder: Path | None) -> Results:
    """A/A under continuous looking."""
    print(f"A/A: share of {tests:,} tests that ever claimed a difference (at most 5 % is the promise)")
    print(f"{'metric':32}{'looks':>7}{'sequence':>11}{'t-test at each look':>22}")
    made: tuple[Callable[[], false_positives.FalsePositives], ...] = (
        lambda: false_positives.aa("binary (5 %)", binary, tests, share=True),
        lambda: false_positives.aa_returning(tests),
        lambda: false_positives.aa("mean, skewness 6", skewed, tests, share=False),
        lambda: false_positives.aa("mean, skewness 33", very_skewed, tests, share=False),
        lambda: false_positives.aa(
            "mean, skewness 33, arms 1 : 9", very_skewed, tests, share=False, treated=1_000, times=9
        ),
        lambda: false_positives.aa("ratio (errors per request)", ratio, tests, share=True),
        lambda: false_positives.aa_quantile(tests),
    )
    rows = []
    for make in made:
        row = make()
        rows.append(row)
        print(f"{row.metric:32}{row.looks:7}{row.sequence:11.1%}{row.naive:22.1%}", flush=True)
    if folder is not None:
        pictures.draw_false_positives(rows, folder)
    return {"false_positives": [_without_curves(asdict(row)) for row in rows]}


def measure_planned(tests: int, folder: Path | None) -> Results:
    """A/A with planned looks."""
    print("\nA/A: share of tests with 5 planned looks that claimed a difference (at most 5 % is the promise)")
    print(f"{'metric':28}{'arms':>7}{'a look':>8}{'tests':>9}{'wrong':>8}{'95 %':>17}{'textbook':>10}")
    many, few = 10 * tests, {"a_look": 150, "times": 9}
    made: tuple[Callable[[], planned.PlannedLooks], ...] = (
        lambda: planned.aa("binary (5 %)", binary, many, 11, share=True),
        lambda: planned.aa("mean, skewness 6", skewed, many, 12, share=False),
        lambda: planned.aa("mean, skewness 33", very_skewed, many, 13, share=False),
        lambda: planned.aa("ratio (errors per request)", ratio, many, 14, share=True),
        lambda: planned.aa("binary (5 %)", binary, tests, 15, share=True, **few),
        lambda: planned.aa("mean, skewness 6", skewed, tests, 16, share=False, **few),
        lambda: planned.aa("mean, skewness 33", very_skewed, tests, 17, share=False, **few),
        lambda: planned.aa("ratio (errors per request)", ratio, tests, 18, share=True, **few),
        lambda: planned.aa_returning(tests, 19),
    )
    rows = []
    for make in made:
        row = make()
        rows.append(row)
        print(
            f"{row.metric:28}{row.arms:>7}{row.a_look:8}{row.tests:9,}{row.wrong:8.2%}"
            f"   [{row.low:.2%}, {row.high:.2%}]{row.textbook:10.2%}",
            flush=True,
        )
    if folder is not None:
        pictures.draw_planned(rows, folder)
    return {"planned": [asdict(row) for row in rows]}


def measure_power(tests: int, folder: Path | None) -> Results:
    """A/B, and whether a report judges like the tables."""
    print("\nA/B: 10 % against 10 % and so many parts of the declared effect of 2 points; units are of both arms")
    print(f"{'effect':>7} {'method':24}{'at most':>9}{'found':>8}{'mean units':>12}{'median':>9}{'interval holds':>16}")
    found = power.ab(tests)
    for one in found:
        print(
            f"{one.effect:7.1f} {one.method:24}{one.most_units:9,}{one.power:8.1%}{one.mean_units:12,.0f}"
            f"{one.median_units:9,.0f}{one.covers:16.1%}"
        )
    live = power.same_as_live(tests // 50)
    print(f"judged by a report's own code: {live['the same']:.0%} of {live['tests']:.0f} tests the same, look by look")
    if folder is not None:
        pictures.draw_power(found, folder)
    return {"found": [asdict(one) for one in found], "same_as_live": live}


def measure_split(tests: int, folder: Path | None) -> Results:
    """The split check, and the covariate."""
    mismatch = split.split_mismatch(tests)
    print("\nSplit check at 100,000 units, p < 0.001: how often results are hidden, by how far the split is off")
    computed = {name: split.split_power(share) for name, share in split.SPLITS.items()}
    for name, share in mismatch.items():
        print(f"  {name:30}{share:8.2%}   computed {computed[name]:8.2%}")
    gains = split.covariate_gain(tests)
    print("\nCovariate: variance left and false positives of one look, by its correlation with the metric")
    for name, gain in gains.items():
        print(f"  {name:6}{gain['variance_left']:8.1%}{gain['false_positives']:8.1%}")
    if folder is not None:
        pictures.draw_split(mismatch, folder)
    return {"split_mismatch": mismatch, "split_power_computed": computed, "covariate": gains}


def measure_bandit(tests: int, folder: Path | None) -> Results:
    """Regret, and what is claimed."""
    runs = tests // 50
    print(f"\nBandit: {runs} runs of 20 steps of 500 units; successes lost to the best arm (10, 10 and 13 %)")
    regret = bandit.bandits(runs, (0.10, 0.10, 0.13))
    same = bandit.bandits(runs, (0.10, 0.10, 0.10))
    print(f"{'shares':20}{'lost':>8}{'±':>6}{'difference found':>18}{'claimed where there is none':>29}")
    for lost, none in zip(regret, same, strict=True):
        print(f"{lost.shares:20}{lost.lost:8.1f}{lost.standard_error:6.1f}{lost.claimed:18.1%}{none.claimed:29.1%}")
    if folder is not None:
        pictures.draw_bandit(regret, folder)
    return {
        "bandit": [_without_curves(asdict(one)) for one in regret],
        "bandit_without_difference": [_without_curves(asdict(one)) for one in same],
    }


def broken_promises(results: Results, parts: Sequence[str]) -> list[str]:
    """What was promised of these parts and is not so: a share counts where its whole 95 % interval lies above it."""
    rows: list[tuple[str, float, int]] = []
    if "false_positives" in parts:
        rows += [
            (f"{row['metric']}, looked at all the time", row["sequence"], row["tests"])
            for row in results["false_positives"]
        ]
    if "planned" in parts:
        rows += [
            (f"{row['metric']}, arms {row['arms']}, planned looks", row["wrong"], row["tests"])
            for row in results["planned"]
        ]
    found = [
        f"{name}: {share:.2%} of {tests:,} tests claimed a difference, at most {ALPHA:.0%} are promised"
        for name, share, tests in rows
        if wilson(round(share * tests), tests).low > ALPHA
    ]
    if "power" in parts and (same := results["same_as_live"]["the same"]) < 1.0:
        found.append(f"a report's own code judges {1 - same:.1%} of the tests otherwise than the tables")
    return found


def _without_curves(row: Results) -> Results:
    return {name: value for name, value in row.items() if not name.endswith("curve")}


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 tests instead of 10,000; writes nothing")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure anew, of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    measures: dict[str, Callable[[int, Path | None], Results]] = {
        "false_positives": measure_false_positives,
        "planned": measure_planned,
        "power": measure_power,
        "split": measure_split,
        "bandit": measure_bandit,
    }
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in measures]:
        parser.error(f"--only: no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    folder = None if options.quick else options.json.parent
    results: Results = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
    for part in parts:
        results |= measures[part](500 if options.quick else 10_000, folder)
        if not options.quick:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if broken := broken_promises(results, parts):
        raise SystemExit("\n".join(broken))


if __name__ == "__main__":
    main()
