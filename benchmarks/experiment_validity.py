"""How often an experiment claims a difference that is not there, and how soon it finds one that is.

    .venv/bin/python benchmarks/experiment_validity.py [--quick | --draw-split]

Simulated tests go through the code that judges live ones (`tuneloop.registry.experiments`): 10,000 for each row, seeds
fixed. A/A tests are looked at from 100 units an arm on, up to 197 times; beside them stands the t-test at each look,
as a dashboard shows it. A/B tests have a fixed test of the same power beside them. Writes
`benchmarks/results/experiment_validity.json` and four pictures. Takes seven minutes of one processor (`--quick`: 500
tests, half a minute, writes nothing; `--draw-split`: draws the split check's picture anew from what the file holds).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import chi2, ncx2, norm

from tuneloop.registry.experiments.analysis import Compared, analyse
from tuneloop.registry.experiments.conduct import proposed
from tuneloop.registry.experiments.declaration import Declaration, Primary
from tuneloop.registry.experiments.effect import (
    Difference,
    Floats,
    Indices,
    Sums,
    difference,
    part_of,
    quantile_part,
    radii,
)
from tuneloop.registry.experiments.gather import Evidence, LeftOut, Stratum, Stream
from tuneloop.registry.experiments.planning import fixed_units, sequence_units, sequential_units
from tuneloop.registry.experiments.spending import boundaries
from tuneloop.registry.experiments.split_check import MISMATCH, mismatch_p_value

ALPHA, POWER, CHUNK = 0.05, 0.8, 250
ARM = 5_000  # units of each arm at the last look
LOOKS: Indices = np.arange(100, ARM + 1, 25)
SPLIT_UNITS = 100_000
SPLITS = {
    "none": 0.5,
    "1 % relative (50.5 : 49.5)": 0.505,
    "1 point (51 : 49)": 0.51,
}  # how far it is off: one arm's share
RESULTS = Path(__file__).parent / "results"
Draw = Callable[[np.random.Generator, int], tuple[Floats, Floats]]  # (numerators, denominators): tests × units


@dataclass(frozen=True)
class FalsePositives:
    """Of A/A tests, the share that ever claimed a difference."""

    metric: str
    tests: int
    looks: int
    sequence: float
    planned: float | None  # five looks, O'Brien–Fleming type
    naive: float  # a t-test at each look
    naive_curve: list[float]  # by look
    sequence_curve: list[float]


@dataclass(frozen=True)
class Found:
    """Of A/B tests with a true effect, how many were found, and after how many units of both arms."""

    effect: float  # in parts of the declared one
    method: str
    most_units: int
    power: float
    mean_units: float
    median_units: float
    covers: float  # the share whose interval, where the test ended, holds the truth


@dataclass(frozen=True)
class Regret:
    """What shares cost against giving everybody the best arm from the start."""

    shares: str
    lost: float  # successes
    standard_error: float
    claimed: float  # the share of runs that claimed a difference
    curve: list[float]  # by step


def tau(variance: float) -> float:
    """The effect a fixed test of `ARM` units an arm finds with 80 % power."""
    return float(norm.isf(ALPHA / 2) + norm.isf(1 - POWER)) * math.sqrt(2 * variance / ARM)


def at_looks(y: Floats, x: Floats, looks: Indices) -> Sums:
    """The sums of the first so many units, for each look."""

    def total(values: Floats) -> Floats:
        return np.asarray(values.cumsum(-1)[..., looks - 1])

    nothing = np.zeros((*y.shape[:-1], len(looks)))
    n = np.broadcast_to(looks.astype(float), nothing.shape)
    return Sums(n, total(y), total(x), nothing, total(y * y), total(x * x), nothing, total(y * x), nothing, nothing)


def chunks(tests: int, seed: int) -> Iterator[tuple[np.random.Generator, int]]:
    """Generators of their own for so many tests at a time."""
    for number, start in enumerate(range(0, tests, CHUNK)):
        yield np.random.default_rng([seed, number]), min(CHUNK, tests - start)


def binary(rng: np.random.Generator, tests: int) -> tuple[Floats, Floats]:
    """One rated answer a unit, 5 % thumbs-down."""
    return rng.binomial(1, 0.05, (tests, ARM)).astype(float), np.ones((tests, ARM))


def skewed(rng: np.random.Generator, tests: int) -> tuple[Floats, Floats]:
    """Log-normal latencies with σ = 1: skewness 6.2."""
    return rng.lognormal(0, 1, (tests, ARM)), np.ones((tests, ARM))


def very_skewed(rng: np.random.Generator, tests: int) -> tuple[Floats, Floats]:
    """Log-normal with σ = 1.5: skewness 33."""
    return rng.lognormal(0, 1.5, (tests, ARM)), np.ones((tests, ARM))


def ratio(rng: np.random.Generator, tests: int) -> tuple[Floats, Floats]:
    """Errors per request: units with 1 to some 20 requests and an error rate of their own, 8 % in the mean."""
    asked = rng.geometric(0.25, (tests, ARM))
    return rng.binomial(asked, rng.beta(0.8, 9.2, (tests, ARM))).astype(float), asked.astype(float)


def ever(found: Difference, effect: float) -> tuple[Floats, Floats]:
    """For each test and look, whether the sequence, and the t-test, have claimed a difference by then."""
    beyond = abs(found.estimate) > radii(found.spread, alpha=ALPHA, effect=effect)
    naive = abs(found.estimate) > norm.isf(ALPHA / 2) * np.sqrt(found.spread)
    return np.logical_or.accumulate(beyond, 1), np.logical_or.accumulate(naive, 1)


def row_of(metric: str, tests: int, curves: Floats, planned: float | None = None) -> FalsePositives:
    """How many had claimed a difference by each look, by the sequence and by the t-test, as a row."""
    sequence, naive = ([float(v) for v in side] for side in curves / tests)
    return FalsePositives(metric, tests, len(naive), sequence[-1], planned, naive[-1], naive, sequence)


def aa(metric: str, draw: Draw, tests: int, *, share: bool) -> FalsePositives:
    """A/A tests of a mean or a ratio whose units come one after the other."""
    curves, planned = np.zeros((2, len(LOOKS))), 0
    bounds, fifths = np.array(boundaries([k / 5 for k in range(1, 6)], ALPHA)), np.arange(1, 6) * ARM // 5
    for rng, count in chunks(tests, 1):
        arms = [at_looks(*draw(rng, count), LOOKS) for _ in range(2)]
        found = difference([(part_of(arms[0]), part_of(arms[1]))], share=share)
        effect = tau(float(found.variance_control[:, -1].mean()))
        curves += [side.sum(0) for side in ever(found, effect)]
        places = np.searchsorted(LOOKS, fifths)
        z = abs(found.estimate[:, places]) / np.sqrt(found.spread[:, places])
        planned += int((z > bounds).any(1).sum())
    return row_of(metric, tests, curves, planned / tests)


def aa_returning(tests: int, *, units: int = 1_000, looks: int = 40) -> FalsePositives:
    """A/A tests whose units come back: every look adds requests of old units and of new ones."""
    curves = np.zeros((2, looks))
    for rng, count in chunks(tests, 2):
        shape = (2, count, units)
        begins = rng.integers(0, looks, shape)
        liking, pace = rng.beta(1, 9, shape), rng.gamma(1.0, 0.5, shape)
        down, rated = np.zeros(shape), np.zeros(shape)
        ever_wrong = np.zeros((2, count), dtype=bool)
        for look in range(looks):
            now = rng.poisson(pace) * (begins <= look) + (begins == look)
            down += rng.binomial(now, liking)
            rated += now
            there = rated > 0
            if there.sum(-1).min() < 100:
                continue
            x = there.astype(float)
            y = np.divide(down, rated, out=np.zeros(shape), where=there)
            sums = [replace(Sums.of(y[arm], x[arm], np.zeros_like(y[arm])), n=x[arm].sum(-1)) for arm in (0, 1)]
            found = difference([(part_of(sums[0]), part_of(sums[1]))], share=True)
            effect = tau(0.02) * math.sqrt(ARM / units)
            ever_wrong[0] |= abs(found.estimate) > radii(found.spread, alpha=ALPHA, effect=effect)
            ever_wrong[1] |= abs(found.estimate) > norm.isf(ALPHA / 2) * np.sqrt(found.spread)
            curves[:, look] += ever_wrong.sum(1)
    return row_of("binary, units that return", tests, curves)


def aa_quantile(tests: int, *, units: int = 1_500) -> FalsePositives:
    """A/A tests of a 95th percentile, from units with one to some ten requests each and a pace of their own."""
    looks = np.linspace(units // 10, units, 20).astype(int)
    curves = np.zeros((2, len(looks)))
    for rng, count in chunks(tests, 3):
        for _ in range(count):
            arms = []
            for _arm in range(2):
                requests = rng.geometric(0.5, units)
                unit = np.repeat(np.arange(units), requests)
                values = np.exp(np.repeat(rng.normal(0, 0.5, units), requests) + rng.normal(0, 0.5, len(unit)))
                ends = np.searchsorted(unit, looks)
                arms.append([quantile_part(values[:end], unit[:end], 0.95) for end in ends])
            wrong = np.zeros(2, dtype=bool)
            for look, (control, treatment) in enumerate(zip(*arms, strict=True)):
                found = difference([(control, treatment)], share=False)
                estimate, spread = abs(float(found.estimate)), found.spread
                wrong[0] |= estimate > float(radii(spread, alpha=ALPHA, effect=0.35))
                wrong[1] |= estimate > norm.isf(ALPHA / 2) * math.sqrt(float(spread))
                curves[:, look] += wrong
    return row_of("95th percentile", tests, curves)


def ab(tests: int, *, base: float = 0.10, effect: float = 0.02) -> list[Found]:
    """A/B tests of a binary metric, whose declared effect is 2 points, with true effects of a half to twice that."""
    spread = 2 * sum(p * (1 - p) for p in (base, base + effect))
    fixed = fixed_units(spread, effect, alpha=ALPHA, power=POWER)
    planned = sequential_units(spread, effect, 5, alpha=ALPHA, power=POWER)
    most = sequence_units(spread, effect, alpha=ALPHA, power=POWER)
    looks = np.unique(np.concatenate([np.arange(100, most // 2, 25), [most // 2]]))
    fifths = np.ceil(np.arange(1, 6) * planned / 10).astype(int)
    bounds = np.array(boundaries([k / 5 for k in range(1, 6)], ALPHA))
    rows: list[Found] = []
    for part in (0.5, 1.0, 1.5, 2.0):
        ends: dict[str, list[Floats]] = {}
        for rng, count in chunks(tests, 4):
            values = [rng.binomial(1, p, (count, most // 2)).astype(float) for p in (base, base + part * effect)]
            for method, at, reach in (
                ("one look at the end", np.array([fixed // 2]), np.array([norm.isf(ALPHA / 2)])),
                ("planned looks (5)", fifths, bounds),
                ("always-valid sequence", looks, None),
            ):
                sums = [at_looks(v, np.ones_like(v), at) for v in values]
                found = difference([(part_of(sums[0]), part_of(sums[1]))], share=True)
                if reach is None:
                    width = radii(found.spread, alpha=ALPHA, effect=effect)
                else:
                    width = reach * np.sqrt(found.spread)
                beyond = abs(found.estimate) > width
                end = np.where(beyond.any(1), beyond.argmax(1), len(at) - 1)
                holds = (abs(found.estimate - part * effect) <= width)[np.arange(count), end]
                ends.setdefault(method, []).append(np.array([beyond.any(1), 2 * at[end], holds], dtype=float))
        for method, parts in ends.items():
            decided, units, covers = np.concatenate(parts, axis=1)
            limit = {"one look at the end": fixed, "planned looks (5)": planned}.get(method, most)
            mean, median = float(units.mean()), float(np.median(units))
            rows.append(Found(part, method, limit, float(decided.mean()), mean, median, float(covers.mean())))
    return rows


def split_power(share: float, units: int = SPLIT_UNITS) -> float:
    """The computed power of the split check where one of two equal arms gets this share: χ² off its centre."""
    off_centre = units * (2 * share - 1) ** 2
    return float(ncx2.sf(chi2.isf(MISMATCH, 1), 1, off_centre) if off_centre else MISMATCH)


def split_mismatch(tests: int, units: int = SPLIT_UNITS) -> dict[str, float]:
    """How often a split that is off is found among 100,000 units, and a true one is taken for off."""
    found = {}
    for number, (name, share) in enumerate(SPLITS.items()):
        first = np.random.default_rng([5, number]).binomial(units, share, tests)
        found[name] = (
            sum(mismatch_p_value([[n, units - n]], [[5_000, 5_000]]) < MISMATCH for n in first.tolist()) / tests
        )
    return found


def covariate_gain(tests: int, *, units: int = 1_000) -> dict[str, dict[str, float]]:
    """By the correlation of metric and covariate: variance left, and false positives of a single look."""
    gains: dict[str, dict[str, float]] = {}
    for correlation in (0.0, 0.5, 0.7, 0.9):
        left, wrong = 0.0, 0
        for rng, count in chunks(tests, 6):
            known = rng.normal(size=(2, count, units))
            noise = rng.normal(size=known.shape)
            y, x = correlation * known + math.sqrt(1 - correlation**2) * noise, np.ones_like(known)
            found, plain = (
                difference([(part_of(Sums.of(y[0], x[0], c[0])), part_of(Sums.of(y[1], x[1], c[1])))], share=False)
                for c in (known, 0 * known)
            )
            left += float((found.spread / plain.spread).sum())
            wrong += int((abs(found.estimate) > norm.isf(ALPHA / 2) * np.sqrt(found.spread)).sum())
        gains[f"{correlation:g}"] = {"variance_left": left / tests, "false_positives": wrong / tests}
    return gains


def evidence_of(
    y: Sequence[Floats], arm: Sequence[Indices], stratum: Sequence[Indices], shares: Sequence[tuple[int, ...]]
) -> Evidence:
    """Units with one value each, in order of time and in pieces, as `gather` would give them."""
    values, arms = np.concatenate(y), len(shares[0])
    units = np.arange(len(values))
    stream = Stream(at_s=units.astype(float), unit=units, value=values, count=np.ones(len(values)))
    strata = tuple(Stratum((number + 1,), share) for number, share in enumerate(shares))
    numbers, nothing = tuple(range(1, arms + 1)), np.zeros(len(values))
    arm_of, stratum_of = np.concatenate(arm), np.concatenate(stratum)
    return Evidence(numbers, strata, arm_of, stratum_of, nothing, (0,) * arms, (stream,), LeftOut())


def declared(arms: int, floor_bp: int, effect: float, *, bandit: bool) -> Declaration:
    """A declaration for simulated arms; the first is the control."""
    share = 10_000 // arms
    return Declaration(
        model="bot",
        hypothesis="simulated",
        arms={version: share if version < arms else 10_000 - share * (arms - 1) for version in range(1, arms + 1)},
        control=1,
        primary=Primary(kind="binary", measure="thumbs_up", goal="higher", minimum_effect=effect),
        mode="bandit" if bandit else "test",
        floor_bp=floor_bp,
    )


def same_as_live(tests: int) -> dict[str, float]:
    """A/B tests judged by `analyse`, as a report does it: whether the verdicts are those of the rows above."""
    agree = decided = 0
    for number in range(tests):
        rng = np.random.default_rng([7, number])
        arm = rng.integers(0, 2, 6_000)
        y = rng.binomial(1, np.where(arm == 1, 0.13, 0.10)).astype(float)
        plan, evidence = declared(2, 1_000, 0.02, bandit=False), evidence_of([y], [arm], [0 * arm], [(5_000, 5_000)])
        [compared] = analyse(plan, evidence, started_s=0.0, until_s=len(y) - 1.0).compared
        agree += _crossings(y, arm, compared) == [look.decides for look in compared.looks]
        decided += compared.looks[-1].decides
    return {"tests": tests, "the same": agree / tests, "decided": decided / tests}


def _crossings(y: Floats, arm: Indices, compared: Compared) -> list[bool]:
    crossed = []
    for look in compared.looks:
        sides = [y[: look.units][arm[: look.units] == one] for one in (0, 1)]
        parts = [part_of(Sums.of(side, np.ones_like(side), np.zeros_like(side))) for side in sides]
        found = difference([(parts[0], parts[1])], share=True)
        crossed.append(bool(abs(found.estimate) > radii(found.spread, alpha=ALPHA, effect=0.02)))
    return crossed


def bandits(runs: int, rates: tuple[float, ...], *, steps: int = 20, each: int = 500) -> list[Regret]:
    """Regret (successes lost to the best arm) of the bandit by its floor, against equal shares; and how it judges."""
    rows: list[Regret] = []
    arms = len(rates)
    for floor_bp in (0, 100, 500, 1_000, 2_000):
        plan = declared(arms, max(floor_bp, 100), 0.02, bandit=True)
        regret = np.zeros((runs, steps))
        claims = 0
        for run in range(runs):
            rng = np.random.default_rng([8, run])
            shares, y, arm, stratum = [tuple(plan.arms.values())], [], [], []
            for step in range(steps):
                now = rng.choice(arms, each, p=np.array(shares[-1]) / sum(shares[-1]))
                arm.append(now)
                y.append(rng.binomial(1, np.array(rates)[now]).astype(float))
                stratum.append(np.full(each, len(shares) - 1))
                regret[run, step] = (max(rates) - np.array(rates)[now]).sum()
                if floor_bp and step < steps - 1:
                    evidence = evidence_of(y, arm, stratum, shares)
                    wanted = tuple(proposed(plan, evidence, 1e9, seed=run * steps + step).split.values())
                    shares += [wanted] if wanted != shares[-1] else []
            evidence = evidence_of(y, arm, stratum, shares)
            found = analyse(plan, evidence, started_s=0.0, until_s=1e9)
            claims += any(look.decides for compared in found.compared for look in compared.looks)
        curve = regret.cumsum(1).mean(0)
        name, error = (
            f"bandit, floor {floor_bp / 100:g} %" if floor_bp else "equal",
            regret.sum(1).std() / math.sqrt(runs),
        )
        rows.append(Regret(name, float(curve[-1]), float(error), claims / runs, [float(v) for v in curve]))
    return rows


def draw(false_positives: list[FalsePositives], found: list[Found], regret: list[Regret]) -> None:
    """One picture for each of the three questions."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e8eb"}
    with mpl.rc_context(style | {"legend.frameon": False, "font.size": 9}):
        figure = Figure(figsize=(8, 3.6), layout="constrained", dpi=110)
        axes = figure.subplots()
        for row, colour in zip(false_positives, colours, strict=False):
            place = np.linspace(0, 1, len(row.naive_curve))
            axes.plot(place, row.naive_curve, color=colour, lw=1, ls="--")
            axes.plot(place, row.sequence_curve, color=colour, lw=1.8, label=row.metric)
        axes.axhline(ALPHA, color="#23272f", lw=1)
        axes.annotate("5 %", (0.0, ALPHA), xytext=(2, 3), textcoords="offset points")
        axes.set(xlabel="looks so far (1: all)", ylabel="A/A tests that ever\nclaimed a difference", ylim=(0, None))
        axes.set_title("solid: always-valid sequence; dashed: a t-test at each look", loc="left", fontsize=9)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        figure.savefig(RESULTS / "experiment_validity_false_positives.png")

        figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=110)
        left, right = figure.subplots(1, 2)
        for method, colour in zip(dict.fromkeys(row.method for row in found), colours, strict=False):
            own = [row for row in found if row.method == method]
            effects = [row.effect for row in own]
            left.plot(effects, [row.power for row in own], "o-", color=colour, label=method)
            right.plot(effects, [row.mean_units for row in own], "o-", color=colour)
        left.set(xlabel="true effect, in parts of the declared one", ylabel="found", ylim=(0, 1.03))
        right.set(
            xlabel="true effect, in parts of the declared one", ylabel="units until it ended, mean", ylim=(0, None)
        )
        left.legend(loc="lower right")
        figure.savefig(RESULTS / "experiment_validity_power.png")

        figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=110)
        axes = figure.subplots()
        for one, colour in zip(regret, colours, strict=False):
            axes.plot(np.arange(1, len(one.curve) + 1) * 500, one.curve, color=colour, label=one.shares)
        axes.set(xlabel="units", ylabel="successes lost to the best arm", ylim=(0, None))
        axes.legend()
        figure.savefig(RESULTS / "experiment_validity_bandit.png")


def draw_split(mismatch: dict[str, float]) -> None:
    """How often the split check hides results, simulated on the computed curve."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e8eb"}
    with mpl.rc_context(style | {"legend.frameon": False, "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=110)
        axes = figure.subplots()
        off = np.linspace(0, 0.012, 121)
        for units, colour in ((10_000, "#56B4E9"), (SPLIT_UNITS, "#0072B2"), (1_000_000, "#009E73")):
            curve = [split_power(0.5 + float(points), units) for points in off]
            axes.plot(100 * off, curve, color=colour, lw=1.8, label=f"{units:,} units, computed")
        seen = [(100 * (SPLITS[name] - 0.5), share) for name, share in mismatch.items()]
        axes.plot(
            *zip(*seen, strict=True), "o", color="#D55E00", label=f"{SPLIT_UNITS:,} units, simulated", clip_on=False
        )
        axes.set(
            xlabel="points by which one arm's share is off 50 %",
            ylabel="results hidden",
            ylim=(0, 1.03),
            xlim=(0, None),
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        figure.savefig(RESULTS / "experiment_validity_split.png")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 tests instead of 10,000; writes nothing")
    parser.add_argument("--draw-split", action="store_true", help="draw the split check from the kept results only")
    options = parser.parse_args()
    quick = options.quick
    if options.draw_split:
        draw_split(json.loads((RESULTS / "experiment_validity.json").read_text(encoding="utf-8"))["split_mismatch"])
        return
    tests, runs = (500, 10) if quick else (10_000, 200)

    print(f"A/A: share of {tests:,} tests that ever claimed a difference (at most 5 % is the promise)")
    print(f"{'metric':28}{'looks':>7}{'sequence':>11}{'5 planned':>11}{'t-test at each look':>22}")
    rows: list[FalsePositives] = []
    made: tuple[Callable[[], FalsePositives], ...] = (
        lambda: aa("binary (5 %)", binary, tests, share=True),
        lambda: aa_returning(tests),
        lambda: aa("mean, skewness 6", skewed, tests, share=False),
        lambda: aa("mean, skewness 33", very_skewed, tests, share=False),
        lambda: aa("ratio (errors per request)", ratio, tests, share=True),
        lambda: aa_quantile(tests),
    )
    for make in made:
        row = make()
        rows.append(row)
        planned = "-" if row.planned is None else f"{row.planned:.1%}"
        print(f"{row.metric:28}{row.looks:7}{row.sequence:11.1%}{planned:>11}{row.naive:22.1%}", flush=True)

    print("\nA/B: 10 % against 10 % and so many parts of the declared effect of 2 points; units are of both arms")
    print(f"{'effect':>7} {'method':24}{'at most':>9}{'found':>8}{'mean units':>12}{'median':>9}{'interval holds':>16}")
    found = ab(tests)
    for one in found:
        print(
            f"{one.effect:7.1f} {one.method:24}{one.most_units:9,}{one.power:8.1%}{one.mean_units:12,.0f}"
            f"{one.median_units:9,.0f}{one.covers:16.1%}"
        )
    live = same_as_live(20 if quick else 200)
    print(f"judged by a report's own code: {live['the same']:.0%} of {live['tests']:.0f} tests the same, look by look")

    mismatch = split_mismatch(tests)
    print("\nSplit check at 100,000 units, p < 0.001: how often results are hidden, by how far the split is off")
    for name, share in mismatch.items():
        print(f"  {name:30}{share:8.2%}   computed {split_power(SPLITS[name]):8.2%}")

    gains = covariate_gain(tests)
    print("\nCovariate: variance left and false positives of one look, by its correlation with the metric")
    for name, gain in gains.items():
        print(f"  {name:6}{gain['variance_left']:8.1%}{gain['false_positives']:8.1%}")

    print(f"\nBandit: {runs} runs of 20 steps of 500 units; successes lost to the best arm (10, 10 and 13 %)")
    regret = bandits(runs, (0.10, 0.10, 0.13))
    same = bandits(runs, (0.10, 0.10, 0.10))
    print(f"{'shares':20}{'lost':>8}{'±':>6}{'difference found':>18}{'claimed where there is none':>29}")
    for lost, none in zip(regret, same, strict=True):
        print(f"{lost.shares:20}{lost.lost:8.1f}{lost.standard_error:6.1f}{lost.claimed:18.1%}{none.claimed:29.1%}")
    if quick:
        return
    draw(rows, found, regret)
    draw_split(mismatch)
    results = {
        "false_positives": [asdict(row) | {"naive_curve": None, "sequence_curve": None} for row in rows],
        "found": [asdict(one) for one in found],
        "same_as_live": live,
        "split_mismatch": mismatch,
        "split_power_computed": {name: split_power(share) for name, share in SPLITS.items()},
        "covariate": gains,
        "bandit": [asdict(one) | {"curve": None} for one in regret],
        "bandit_without_difference": [asdict(one) | {"curve": None} for one in same],
    }
    text = json.dumps(results, indent=2)
    (RESULTS / "experiment_validity.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
