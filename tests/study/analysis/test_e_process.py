import numpy as np
import pytest
from scipy.special import betaln

from anyvla.study.analysis.e_process import confidence_sequence, log_wealth, sequential_p


def test_wealth_on_discordant_pairs_is_the_beta_mixture():
    values = np.array([1.0, 0, 1, -1, 1, 0, 1, 1, 1, -1, 1, 1])
    a, b = int((values > 0).sum()), int((values < 0).sum())
    expected = betaln(a + 0.5, b + 0.5) - betaln(0.5, 0.5) + (a + b) * np.log(2)
    assert log_wealth(values, [len(values)])[0] == pytest.approx(expected)


def test_wealth_does_not_depend_on_later_episodes_nor_on_the_sign():
    values = np.random.default_rng(0).choice([-1.0, 0, 0.5, 1], 90)
    looks = [10, 40, 90]
    assert log_wealth(values[:40], [10, 40]) == pytest.approx(log_wealth(values, looks)[:2])
    assert log_wealth(-values, looks) == pytest.approx(log_wealth(values, looks))


def test_expected_wealth_is_at_most_1_if_tasks_differ_but_not_on_average():
    """Four start states of two tasks, of which A is better at one and B at the other, by enumeration."""
    chance = np.array([0.9, 0.1])  # of +1 rather than -1
    total = 0.0
    for outcome in np.ndindex(2, 2, 2, 2):
        x = np.array(outcome) * 2.0 - 1
        p = np.prod([chance[i % 2] if x[i] > 0 else 1 - chance[i % 2] for i in range(4)])
        total += p * np.exp(log_wealth(x, [4])[0])
    assert total <= 1 + 1e-9


def test_false_decisions_are_as_rare_as_promised_at_many_looks():
    rng = np.random.default_rng(0)
    looks = list(range(5, 301, 5))
    wrong = sum(sequential_p(rng.choice([-1.0, 0, 1], 300, p=[0.2, 0.6, 0.2]), looks) < 0.1 for _ in range(800))
    assert 0 < wrong / 800 <= 0.1


def test_large_differences_are_decided_long_before_the_end():
    rng = np.random.default_rng(1)
    looks = np.arange(5, 201, 5)
    ends = []
    for _ in range(50):
        wealth = log_wealth(rng.choice([-1.0, 0, 1], 200, p=[0.05, 0.45, 0.5]), looks)
        ends.append(looks[np.argmax(wealth > np.log(20))])
    assert np.median(ends) < 50


def test_confidence_sequence_covers_the_mean_and_agrees_with_p():
    rng = np.random.default_rng(2)
    looks = list(range(10, 101, 10))
    missed = 0
    for _ in range(60):
        values = rng.choice([-1.0, 0, 1], 100, p=[0.1, 0.4, 0.5])
        low, high = confidence_sequence(values, looks, 0.05)
        missed += not low <= 0.4 <= high
        assert (low > 0 or high < 0) == (sequential_p(values, looks) <= 0.05)
    assert missed <= 5


def test_values_outside_the_stakes_are_refused():
    with pytest.raises(ValueError, match="between -1 and 1"):
        log_wealth(np.array([2.0]), [1])
    assert sequential_p(np.zeros(0), []) == 1.0
