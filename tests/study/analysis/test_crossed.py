import itertools

import numpy as np
import pytest
from scipy import stats

from anyvla.evaluation.intervals import wilson
from anyvla.study.analysis.crossed import (
    Components,
    Mean,
    crossed_mean,
    find_components,
    find_seeds,
    fixed_mean,
    rate_interval,
)


def one_task(values):
    return crossed_mean(values, np.arange(len(values)), np.zeros(len(values)), np.zeros(values.shape[1]), 5.0)


def test_variance_and_p_are_those_of_a_two_way_table():
    """Mean squares of 3 seeds x 40 start states by their formulas, with the degrees of freedom of Hillis."""
    d = np.random.default_rng(5).choice([-1.0, 0, 1], size=(3, 40)) + np.array([[0.0], [0.6], [0.5]])
    ms_s = 40 * d.mean(1).var(ddof=1)
    ms_c = 3 * d.mean(0).var(ddof=1)
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    ms_sc = (rest**2).sum() / (2 * 39)
    total = ms_s + max(ms_c - ms_sc, 0)
    found = one_task(d)
    parts = found.components
    assert [parts.seeds * 120, parts.chance * 120, parts.total * 120] == pytest.approx([ms_s, ms_sc, total])
    assert found.df == pytest.approx(total**2 / (ms_s**2 / 2))
    t = d.mean() / np.sqrt(total / 120)
    assert found.p == pytest.approx(2 * stats.t.sf(t, found.df))


def test_variance_is_that_of_a_mixed_model():
    """statsmodels fits the crossed random effects by REML, which equals the mean squares of a full table."""
    import pandas as pd
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(4)
    d = 0.3 + rng.normal(size=(5, 1)) + rng.normal(size=(1, 9)) + 0.7 * rng.normal(size=(5, 9))
    rows = [{"s": s, "c": c, "d": d[s, c], "one": 1} for s, c in itertools.product(range(5), range(9))]
    model = smf.mixedlm("d ~ 1", pd.DataFrame(rows), groups="one", vc_formula={"s": "0+C(s)", "c": "0+C(c)"})
    fitted = model.fit(reml=True)
    assert np.sqrt(one_task(d).components.total) == pytest.approx(float(fitted.bse["Intercept"]), rel=1e-3)


def test_settings_weigh_the_same_and_are_averaged_per_seed():
    rng = np.random.default_rng(1)
    d = rng.normal(size=(2, 3, 12))  # settings, seeds, start states
    tasks = np.zeros(12)
    seeds, settings = np.tile(np.arange(3), 2), np.repeat([0, 1], 3)
    several = find_components(d.reshape(6, 12), seeds, settings, tasks)
    averaged = find_components(d.mean(0), np.arange(3), np.zeros(3), tasks)
    assert [several.seeds, several.states, several.chance] == pytest.approx(
        [averaged.seeds, averaged.states, averaged.chance]
    )
    lopsided = crossed_mean(d.reshape(6, 12)[:5], seeds[:5], settings[:5], tasks, 10.0)
    assert lopsided.value == pytest.approx((d[0].mean() + d[1, :2].mean()) / 2)


def test_fixed_tasks_add_no_variance():
    tasks = np.repeat(np.arange(4), 5)
    d = np.tile(np.repeat([-1.0, 1, 0, 1], 5), (3, 1))  # each task has its own difference, always the same
    d[0, ::5] = 0
    d[1, 1::5] = 0
    d[2, 2::5] = 0
    by_task = crossed_mean(d, np.arange(3), np.zeros(3), tasks)
    as_one = crossed_mean(d, np.arange(3), np.zeros(3), np.zeros(20))
    assert by_task.high - by_task.low < 0.6 * (as_one.high - as_one.low)


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_any_variance_p_and_intervals_stay_sensible(seeds):
    def estimate(value):
        d = np.full((seeds, 50), value)
        if seeds == 1:
            return fixed_mean(d[0], np.zeros(50))
        return crossed_mean(d, np.arange(seeds), np.zeros(seeds), np.zeros(50))

    equal, all_won = estimate(0.0), estimate(1.0)
    assert equal.p == 1
    assert -0.1 < equal.low < 0 < equal.high < 0.1
    assert equal.high == pytest.approx(-equal.low)
    assert all_won.p < 1e-6
    assert 0.85 < all_won.low < 1
    assert all_won.high == 1
    assert np.isfinite([all_won.p, equal.p]).all()


def test_equal_means_of_seeds_do_not_give_certainty():
    """The seeds' means agree by chance; the start states alone still leave doubt."""
    d = np.zeros((2, 20))
    d[0, :2] = d[1, 2:4] = 1.0
    found = crossed_mean(d, np.arange(2), np.zeros(2), np.zeros(20))
    assert found.components.seeds == 0
    assert found.p > 0.01
    assert found.low < found.value


def test_swapped_policies_negate_the_difference():
    d = np.random.default_rng(2).choice([-1.0, 0, 1], p=[0.1, 0.5, 0.4], size=(3, 30))
    a, b = (crossed_mean(x, np.arange(3), np.zeros(3), np.arange(30) % 5) for x in (d, -d))
    assert [a.value, a.low, a.high, a.p] == pytest.approx([-b.value, -b.high, -b.low, b.p])


def test_one_seed_has_no_variance_between_seeds():
    with pytest.raises(ValueError, match="at least two"):
        find_components(np.zeros((2, 5)), np.zeros(2), np.arange(2), np.zeros(5))


def paired_scores(rng, seeds, states, spread, effect=0.0):
    """Sample differences of two policies whose trainings and start states have effects of their own."""
    start, start_difference = rng.normal(0, 0.8, states), rng.normal(0, 0.5, states)
    offset = rng.normal(effect, spread, (seeds, 1))
    a = rng.random((seeds, states)) < 1 / (1 + np.exp(-start))
    b = rng.random((seeds, states)) < 1 / (1 + np.exp(-(start + start_difference + offset)))
    return b * 1.0 - a


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.8])
def test_false_claims_are_as_rare_as_promised(seeds, spread):
    """At most 5 % of tests claim a difference that trainings have on average not, with few seeds and binary scores."""
    rng = np.random.default_rng(0)
    number, tasks = 1000, np.zeros(50)
    false = covered = 0
    for _ in range(number):
        d = paired_scores(rng, seeds, 50, spread)
        found = crossed_mean(d, np.arange(seeds), np.zeros(seeds), tasks)
        false += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert false / number < 0.075  # 5 %, a standard error of 0.7 points, and the coarseness of two seeds
    assert covered / number > 0.925


def test_a_rate_with_one_seed_has_wilsons_interval():
    scores = np.repeat([1.0, 0.0], [30, 10])
    got = rate_interval(0.75, 40, fixed_mean(scores, np.zeros(40)))
    plain = wilson(30, 40)
    assert (got.low, got.high) == (plain.low, plain.high)


def test_the_interval_of_a_rate_grows_with_the_variance_between_seeds():
    rng = np.random.default_rng(0)

    def width(rates):
        values = (rng.random((3, 60)) < np.array(rates)[:, None]).astype(float)
        mean = crossed_mean(values, np.arange(3), np.zeros(3), np.zeros(60))
        interval = rate_interval(float(values.mean()), 180, mean)
        assert 0 <= interval.low < interval.value < interval.high <= 1
        return interval.high - interval.low

    assert width([0.2, 0.5, 0.8]) > 2 * width([0.5, 0.5, 0.5])
    full = crossed_mean(np.ones((3, 60)), np.arange(3), np.zeros(3), np.zeros(60))
    assert rate_interval(1.0, 180, full).low == wilson(60, 60).low  # as if each start state counted once


def test_planned_seeds_reach_the_power_in_a_simulation():
    """The planned number of seeds detects the difference in about 80 % of simulated studies."""
    rng = np.random.default_rng(3)
    between, states = 0.01, 0.0005
    first = Mean(0.05, 0, 0, 1, 3, 100, Components(between / 3, states, 0.0001), 5)
    seeds = find_seeds(first, 0.15)
    assert 4 < seeds < 12
    for number, reached in ((seeds, lambda p: p > 0.76), (seeds - 2, lambda p: p < 0.8)):
        means = 0.15 + rng.normal(0, states**0.5, (4000, 1)) + rng.normal(0, between**0.5, (4000, number))
        v = means.var(1, ddof=1) / number
        total = v + states
        p = 2 * stats.t.sf(np.abs(means.mean(1)) / np.sqrt(total), total**2 / (v**2 / (number - 1)))
        assert reached((p < 0.05).mean())


def test_seeds_cannot_make_up_for_few_start_states():
    mean = Mean(0.05, 0, 0, 1, 3, 12, Components(0.001, 0.01, 0.0005), 5)
    assert find_seeds(mean, 0.1) is None
    assert find_seeds(mean, 0.6) is not None
    with pytest.raises(ValueError, match="two training seeds"):
        find_seeds(Mean(0.05, 0, 0, 1, 1, 12), 0.1)
