"""The statistics of experiments against published values, closed forms and simulation, without a database."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tuneloop.registry.experiments.analysis import analyse
from tuneloop.registry.experiments.bandit import best_chances, shares_bp
from tuneloop.registry.experiments.contributed import parts_at, pulls_at
from tuneloop.registry.experiments.declaration import Declaration, Primary
from tuneloop.registry.experiments.effect import Floats, Part, difference, quantile_part, ratio_part
from tuneloop.registry.experiments.gather import Evidence, LeftOut, Stratum, Stream
from tuneloop.registry.experiments.planning import (
    fixed_power,
    fixed_units,
    sequence_units,
    spans_until,
    unit_spread,
)
from tuneloop.registry.experiments.spending import SPENDABLE, boundaries, crossings, inflation, spent
from tuneloop.registry.experiments.split_check import MISMATCH, mismatch_p_value
from tuneloop.registry.statistics.correction import holm
from tuneloop.registry.statistics.sequences import p_value, radius, stratum_shares

FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]
UNIT = st.floats(-100, 100, allow_nan=False)


@pytest.mark.parametrize(
    ("fractions", "published"),
    [  # Lan and DeMets (1983) and the manuals of ldbounds and gsDesign: two-sided 0.05, O'Brien–Fleming type spending
        (FIVE, [4.877, 3.357, 2.680, 2.290, 2.031]),
        ([0.25, 0.5, 0.75, 1.0], [4.333, 2.963, 2.359, 2.014]),
        ([0.5, 1.0], [2.963, 1.969]),
        ([1.0], [1.960]),
    ],
)
def test_the_boundaries_are_the_published_ones(fractions: list[float], published: list[float]) -> None:
    assert boundaries(fractions, 0.05) == pytest.approx(published, abs=1e-3)


@settings(deadline=None)  # a busy machine takes its time
@given(st.lists(st.floats(0.05, 0.95), max_size=5, unique=True), st.sampled_from([0.01, 0.05, 0.1]))
def test_looks_spend_exactly_alpha(inner: list[float], alpha: float) -> None:
    fractions = [f for f, g in pairwise([*sorted(inner), 1.0]) if g - f > 0.02] + [1.0]
    bounds = boundaries(fractions, alpha)
    gone = np.cumsum(crossings(fractions, bounds, 0.0))
    assert gone == pytest.approx([spent(f, alpha) for f in fractions], abs=1e-6)
    assert gone[-1] == pytest.approx(alpha, abs=1e-6)


def test_simulated_looks_cross_as_often_as_computed() -> None:
    bounds, rng = boundaries(FIVE, SPENDABLE * 0.05), np.random.default_rng(1)
    with_power = math.sqrt(inflation(FIVE, 0.05, 0.8)) * (stats.norm.isf(0.025) + stats.norm.isf(0.2))
    assert sum(crossings(FIVE, bounds, with_power)) == pytest.approx(0.8, abs=1e-6)
    for drift in (0.0, with_power):
        sums = rng.normal(drift / 5, math.sqrt(0.2), (200_000, 5)).cumsum(1)
        crossed = (abs(sums) / np.sqrt(FIVE) >= bounds).any(1).mean()
        assert crossed == pytest.approx(sum(crossings(FIVE, bounds, drift)), abs=3e-3)


def test_looks_that_have_little_in_common_spend_exactly_alpha_too() -> None:
    """Where units come back, a later look is less like the one before than its number of units says."""
    alike, rng = [0.3, 0.1, 0.4, 0.2], np.random.default_rng(10)
    bounds = boundaries(FIVE, 0.05, alike)
    z = [rng.normal(size=400_000)]
    for squared in alike:
        z.append(math.sqrt(squared) * z[-1] + math.sqrt(1 - squared) * rng.normal(size=400_000))
    assert (abs(np.array(z)) >= np.array(bounds)[:, None]).any(0).mean() == pytest.approx(0.05, abs=1.2e-3)
    assert (abs(np.array(z)) >= np.array(boundaries(FIVE, 0.05))[:, None]).any(0).mean() > 0.06
    assert boundaries(FIVE, 0.05, [0.5, 2 / 3, 0.75, 0.8]) == pytest.approx(boundaries(FIVE, 0.05), abs=1e-9)


def test_two_looks_are_as_alike_as_their_units_values_make_them() -> None:
    """A unit's one answer against the mean of its five: cov² / (var · var) = (1/5)² / (1 · 1/5)."""
    rng, units = np.random.default_rng(11), 20_000
    unit, at_s = np.tile(np.arange(units), 5), np.repeat(np.arange(5.0), units)
    stream = Stream(at_s=at_s, unit=unit, value=rng.normal(size=len(unit)), count=np.ones(len(unit)))
    arm = rng.integers(0, 2, units)
    evidence = Evidence(
        (1, 2), (Stratum((1,), (5_000, 5_000)),), arm, 0 * arm, np.zeros(units), (0, 0), (stream,), LeftOut()
    )
    mean = Primary(kind="mean", measure="total_ms", goal="lower", minimum_effect=0.1)
    ratio = Primary(kind="ratio", measure="total_ms", per="asked", goal="lower", minimum_effect=0.1)
    median = Primary(kind="quantile", measure="total_ms", q=0.5, goal="lower", minimum_effect=0.1)
    for metric in (mean, ratio, median):
        first, last = (pulls_at(metric, stream, evidence, 1, until_s, 0.0) for until_s in (0.0, 4.0))
        assert (first @ last) ** 2 / ((first @ first) * (last @ last)) == pytest.approx(0.2, abs=0.02)
        assert first.sum() == pytest.approx(0.0, abs=1e-3)
    [(control, treatment)] = parts_at(mean, stream, evidence, 1, 4.0, adjusted=False)
    found = difference([(control, treatment)], share=False)
    pulls = pulls_at(mean, stream, evidence, 1, 4.0, 0.0)
    assert pulls @ pulls == pytest.approx(float(found.spread), rel=1e-2)


@pytest.mark.parametrize("more", [0, 8])
def test_planned_looks_are_wider_where_units_come_back(more: int) -> None:
    rng, units = np.random.default_rng(13), 3_000
    begins = np.sort(rng.random(units))
    unit = np.concatenate([np.arange(units), np.repeat(np.arange(units), more)])
    at_s = np.concatenate([begins, rng.uniform(np.repeat(begins, more), 1.0)])
    order = np.argsort(at_s)
    stream = Stream(at_s[order], unit[order], rng.normal(size=len(unit)), np.ones(len(unit)))
    arm = rng.integers(0, 2, units)
    evidence = Evidence(
        (1, 2), (Stratum((1,), (5_000, 5_000)),), arm, 0 * arm, np.zeros(units), (0, 0), (stream,), LeftOut()
    )
    metric = Primary(kind="mean", measure="total_ms", goal="lower", minimum_effect=0.1)
    shares = {1: 5_000, 2: 5_000}
    plan = Declaration(model="bot", hypothesis="h", arms=shares, control=1, primary=metric, max_units=units)
    [compared] = analyse(plan, evidence, started_s=0.0, until_s=1.0).compared
    reach = [(look.high - look.low) / 2 / math.sqrt(float(look.found.spread)) for look in compared.looks]
    once = boundaries(FIVE, SPENDABLE * 0.05)
    assert reach[:1] == pytest.approx(once[:1])
    if more:
        assert [wide - z > 0.03 for wide, z in zip(reach[3:], once[3:], strict=True)] == [True] * 2
    else:
        assert reach == pytest.approx(once, abs=0.02)


@pytest.mark.parametrize("without", [2_000, 400])
def test_looks_at_which_nothing_has_happened_yet_are_judged_like_any(without: int) -> None:
    """Thumbs of which none is down: at any look, or at the first of five."""
    units = np.arange(2_000)
    down = ((units >= without) & (units % 7 == 0)).astype(float)
    stream = Stream(at_s=units.astype(float), unit=units, value=down, count=np.ones(len(units)))
    evidence = Evidence(
        (1, 2), (Stratum((1,), (5_000, 5_000)),), units % 2, 0 * units, np.zeros(2_000), (0, 0), (stream,), LeftOut()
    )
    metric = Primary(kind="binary", measure="thumbs_down", goal="lower", minimum_effect=0.1)
    shares = {1: 5_000, 2: 5_000}
    plan = Declaration(model="bot", hypothesis="h", arms=shares, control=1, primary=metric, max_units=2_000)
    [compared] = analyse(plan, evidence, started_s=0.0, until_s=2_000.0).compared
    assert [look.planned for look in compared.looks] == [1, 2, 3, 4, 5]
    assert all(look.low < 0 < look.high for look in compared.looks)
    reach = [(look.high - look.low) / 2 / math.sqrt(float(look.found.spread)) for look in compared.looks]
    assert reach[0] == pytest.approx(boundaries(FIVE, SPENDABLE * 0.05)[0])
    apart = boundaries(FIVE, SPENDABLE * 0.05, [0.0] * 4)
    assert reach[1] == pytest.approx(apart[1]), "what has nothing in common is the careful side"


def test_a_small_arm_of_skewed_values_beside_a_large_one_is_not_wrong_too_often() -> None:
    """Low by chance, its mean has a variance that is low with it: Welch's test is wrong in nearly twice 5 %."""
    rng, bounds = np.random.default_rng(12), np.array(boundaries(FIVE, SPENDABLE * 0.05))
    draws = [rng.lognormal(0, 1.5, (600, units)) for units in (6_750, 750)]
    looks = [[_mean(draw[:, : draw.shape[1] * look // 5]) for draw in draws] for look in range(1, 6)]
    wrong, welchs = np.zeros((2, 600), dtype=bool)
    for bound, (control, treatment) in zip(bounds, looks, strict=True):
        found = difference([(control, treatment)], share=False)
        welch = found.variance_control / control.n + found.variance_treatment / treatment.n
        wrong |= abs(found.estimate) > bound * np.sqrt(found.spread)
        welchs |= abs(found.estimate) > bound * np.sqrt(welch)
    assert wrong.mean() < 0.04
    assert welchs.mean() > 0.06


def test_units_of_a_fixed_test_are_the_textbooks() -> None:
    # Two shares, 0.10 against 0.12, alpha 0.05, power 0.8, unpooled: (1.95996 + 0.84162)² · (0.09 + 0.1056) / 0.02² =
    # 3,838.1 in each arm (Fleiss, Levin and Paik, 2003, without the continuity correction).
    spread = unit_spread((0.09, 0.1056), (0.5, 0.5))
    units = fixed_units(spread, 0.02, alpha=0.05, power=0.8)
    assert units == pytest.approx(2 * 3_838.1, abs=1.5)
    assert fixed_power(spread, 0.02, units, alpha=0.05) == pytest.approx(0.8, abs=1e-4)
    assert 1.5 < sequence_units(spread, 0.02, alpha=0.05, power=0.8) / units < 2.2


def test_an_interval_is_no_longer_than_needed_at_the_planned_units() -> None:
    """The mixture with τ = the effect is within 1 % of the best one there (Waudby-Smith et al., 2024)."""
    spread = (1 / 2.8) ** 2
    best = min(radius(spread, alpha=0.05, effect=tau) for tau in np.linspace(0.2, 5, 500))
    assert radius(spread, alpha=0.05, effect=1.0) < 1.01 * best


@given(st.floats(1e-6, 1e3), st.floats(1e-3, 1e2), st.floats(1e-6, 0.5))
def test_the_p_value_is_the_alpha_whose_interval_ends_there(spread: float, effect: float, alpha: float) -> None:
    assert p_value(radius(spread, alpha=alpha, effect=effect), spread, effect=effect) == pytest.approx(alpha, rel=1e-6)


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=1, max_size=6))
def test_strata_weigh_one_together(counts: list[tuple[float, float]]) -> None:
    shares = stratum_shares(counts)
    assert sum(shares) == pytest.approx(1.0)
    assert all(share > 0 for share in shares)


def _mean(values: Floats, covariates: Floats | None = None) -> Part:
    return ratio_part(values, np.ones_like(values), covariates)


@given(st.lists(UNIT, min_size=3, max_size=30), st.lists(UNIT, min_size=3, max_size=30))
def test_without_strata_and_covariate_it_is_welchs_difference_or_the_pooled_one(
    before: list[float], after: list[float]
) -> None:
    control, treatment = np.array(before), np.array(after)
    found = difference([(_mean(control), _mean(treatment))], share=False)
    assert float(found.estimate) == pytest.approx(treatment.mean() - control.mean(), abs=1e-9)
    welch = control.var(ddof=1) / len(control) + treatment.var(ddof=1) / len(treatment)
    squares = control.var() * len(control) + treatment.var() * len(treatment)
    pooled = squares / (len(before) + len(after) - 2) * (1 / len(before) + 1 / len(after))
    assert float(found.spread) == pytest.approx(max(welch, pooled), rel=1e-6, abs=1e-12)
    if len(before) == len(after):
        assert pooled == pytest.approx(welch, rel=1e-6, abs=1e-12)


def test_a_ratios_error_is_that_of_many_repetitions() -> None:
    """Units with more requests fail more: the naive error of the pooled share would be a third of the true one."""
    rng = np.random.default_rng(2)
    shape = (4_000, 400)
    asked = 1 + rng.poisson(4, shape)
    failed = rng.binomial(asked, rng.beta(1, 9, shape))
    part = ratio_part(failed.astype(float), asked.astype(float))
    claimed = np.sqrt(part.squares / (part.n - 1) / part.n)
    assert part.value == pytest.approx(failed.sum(1) / asked.sum(1))
    assert claimed.mean() == pytest.approx(part.value.std(), rel=0.04)


def test_a_quantiles_error_is_that_of_many_repetitions() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(600):
        asked = rng.geometric(0.2, 300)  # who asks more waits longer
        unit = np.repeat(np.arange(300), asked)
        values = np.exp(np.repeat(rng.normal(0, 0.5, 300) + asked / 10, asked) + rng.normal(0, 0.5, len(unit)))
        part = quantile_part(values, unit, 0.9)
        found.append((float(part.value), math.sqrt(float(part.squares) / (float(part.n) - 1) / float(part.n))))
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.12)


def test_a_covariate_takes_out_what_it_explains_and_moves_nothing() -> None:
    rng = np.random.default_rng(4)
    known = rng.normal(size=(2, 2_000, 300))
    values = 0.9 * known + rng.normal(0, math.sqrt(1 - 0.81), known.shape)  # correlation 0.9
    plain = difference([(_mean(values[0]), _mean(values[1]))], share=False)
    adjusted = difference([(_mean(values[0], known[0]), _mean(values[1], known[1]))], share=False)
    assert np.mean(adjusted.spread / plain.spread) == pytest.approx(1 - 0.81, rel=0.05)
    assert adjusted.estimate.std() == pytest.approx(np.sqrt(adjusted.spread).mean(), rel=0.05)
    assert abs(adjusted.estimate.mean()) < 4 * adjusted.estimate.std() / math.sqrt(2_000)
    assert adjusted.treatment - adjusted.control == pytest.approx(adjusted.estimate)


def test_a_stratum_with_another_level_is_not_taken_for_a_difference() -> None:
    rng = np.random.default_rng(5)
    quiet = (_mean(rng.normal(1, 1, 900)), _mean(rng.normal(1, 1, 100)))
    busy = (_mean(rng.normal(9, 1, 500)), _mean(rng.normal(9, 1, 500)))
    found = difference([quiet, busy], share=False)
    assert abs(float(found.estimate)) < 4 * math.sqrt(float(found.spread))
    assert float(found.spread) < 0.02


def test_arrays_of_experiments_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(6)
    y, x, c = rng.random((3, 2, 7, 50))
    many = difference([(ratio_part(y[0], x[0], c[0]), ratio_part(y[1], x[1], c[1]))], share=True)
    for number in range(7):
        arms = [ratio_part(y[arm, number], x[arm, number], c[arm, number]) for arm in (0, 1)]
        one = difference([(arms[0], arms[1])], share=True)
        assert many.estimate[number] == pytest.approx(float(one.estimate))
        assert many.spread[number] == pytest.approx(float(one.spread))


@pytest.mark.parametrize("kind", ["binary", "skewed mean"])
def test_an_a_a_test_looked_at_all_the_time_is_wrong_less_often_than_alpha(kind: str) -> None:
    """1,000 tests, 60 looks from 100 units an arm on; a t-test at each look is wrong in a third of them."""
    rng = np.random.default_rng(7)
    shape, looks = (2, 1_000, 3_000), np.linspace(100, 3_000, 60).astype(int)
    values = rng.binomial(1, 0.1, shape).astype(float) if kind == "binary" else rng.lognormal(0, 1, shape)
    effect = 2.8 * math.sqrt(2 * values.var() / 3_000)
    wrong, naive = np.zeros((2, 1_000), dtype=bool)
    for look in looks:
        control, treatment = (_mean(values[arm, :, :look]) for arm in (0, 1))
        found = difference([(control, treatment)], share=kind == "binary")
        wrong |= abs(found.estimate) > np.array([radius(s, alpha=0.05, effect=effect) for s in found.spread])
        naive |= abs(found.estimate) > 1.96 * np.sqrt(found.spread)
    assert wrong.mean() <= 0.05
    assert naive.mean() > 0.25


def test_two_treatments_share_alpha_and_each_is_judged_by_itself() -> None:
    rng = np.random.default_rng(9)
    arm = rng.integers(0, 3, 9_000)
    y = rng.binomial(1, np.array([0.3, 0.3, 0.2])[arm]).astype(float)
    units = np.arange(len(y))
    stream = Stream(at_s=units.astype(float), unit=units, value=y, count=np.ones(len(y)))
    metric = Primary(kind="binary", measure="thumbs_down", goal="lower", minimum_effect=0.05)
    shares = {1: 3_334, 2: 3_333, 3: 3_333}
    plan = Declaration(model="bot", hypothesis="h", arms=shares, control=1, primary=metric)
    strata = (Stratum((1,), tuple(shares.values())),)
    evidence = Evidence((1, 2, 3), strata, arm, 0 * arm, np.zeros(len(y)), (0, 0, 0), (stream,), LeftOut())
    found = analyse(plan, evidence, started_s=0.0, until_s=9_000.0)
    alike, better = found.compared
    assert plan.level == pytest.approx(0.975)
    assert (alike.version, better.version) == (2, 3)
    assert not alike.looks[-1].decides
    assert better.looks[-1].high < 0
    spread = float(better.looks[-1].found.spread)
    half = (better.looks[-1].high - better.looks[-1].low) / 2
    assert half == pytest.approx(radius(spread, alpha=0.025, effect=0.05))


def test_the_split_check_is_pearsons() -> None:
    units = [[480, 520], [100, 120]]
    expected = stats.chisquare([480, 520]).statistic + stats.chisquare([100, 120]).statistic
    assert mismatch_p_value(units, [[5_000, 5_000]] * 2) == pytest.approx(stats.chi2.sf(expected, 2))
    assert mismatch_p_value([[0, 0]], [[5_000, 5_000]]) == 1.0
    assert mismatch_p_value([[900, 100]], [[9_000, 1_000]]) == 1.0
    assert mismatch_p_value([[505, 495]], [[5_000, 5_000]]) > MISMATCH > mismatch_p_value([[5_500, 4_500]], [[1, 1]])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lets_fall_what_bonferroni_does_and_never_a_larger_p(p_values: list[float]) -> None:
    fallen = [corrected <= 0.05 for corrected in holm(p_values)]
    assert all(fell for p, fell in zip(p_values, fallen, strict=True) if p <= 0.05 / len(p_values))
    if any(fallen):
        largest = max(p for p, fell in zip(p_values, fallen, strict=True) if fell)
        assert all(fell for p, fell in zip(p_values, fallen, strict=True) if p <= largest)
    assert not any(fell for p, fell in zip(p_values, fallen, strict=True) if p > 0.05)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda c: sum(c) > 0), st.integers(100, 1_600))
def test_a_bandits_shares_are_whole_and_keep_the_floor(weights: list[float], floor_bp: int) -> None:
    chances = [weight / sum(weights) for weight in weights]
    shares = shares_bp(chances, floor_bp)
    assert sum(shares) == 10_000
    assert min(shares) >= floor_bp


def test_the_chance_to_be_best_is_the_normal_one() -> None:
    rng = np.random.default_rng(8)
    chances = best_chances([0.10, 0.12], [0.01, 0.01], lower_is_better=True, rng=rng)
    assert chances[0] == pytest.approx(stats.norm.cdf(0.02 / math.sqrt(2e-4)), abs=0.01)
    assert sum(chances) == pytest.approx(1.0)


def test_units_come_as_they_came() -> None:
    assert spans_until(150, [100, 200]) == pytest.approx(1.5)
    assert spans_until(400, [100, 200, 300]) == pytest.approx(4.0)  # a hundred a day
    assert spans_until(120, [90, 100, 105, 110]) == pytest.approx(6.0)  # few new ones come any more
    assert spans_until(10, [5, 5, 5, 5]) is None
    assert spans_until(10, []) is None
