"""Simulate studies without a difference, and count how often the tests of `anyvla.study.analysis` claim one.

    python benchmarks/study_tests.py

Success is binary. Start states have effects of their own, on both policies and on their difference; so has each
training, and, in the second table, each training seed in all settings. All effects are normal, on the logits.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import t

from anyvla.study.analysis.crossed import crossed_mean, find_components


def sample(rng: np.random.Generator, seeds: int, settings: int, states: int, own: float, common: float) -> np.ndarray:
    """Return the differences of two policies in success (settings x seeds, states); they are 0 on average."""
    easy, helped = rng.normal(0, 0.8, states), rng.normal(0, 0.5, states)
    trained = np.tile(rng.normal(0, common, seeds), settings) + rng.normal(0, own, settings * seeds)
    one = rng.random((settings * seeds, states)) < 1 / (1 + np.exp(-easy))
    other = rng.random((settings * seeds, states)) < 1 / (1 + np.exp(-(easy + helped + trained[:, None])))
    return other.astype(float) - one


def without_floor(values: np.ndarray, seeds: np.ndarray, settings: np.ndarray) -> float:
    """Return the p value of the crossed test alone."""
    parts = find_components(values, seeds, settings, np.zeros(values.shape[1]))
    mean, number = abs(float(values.mean())), len(set(seeds))
    if parts.total == 0:
        return float(mean == 0)
    df = min(parts.total**2 / max(parts.seeds**2 / (number - 1), 1e-12), 1e9)
    return float(2 * t.sf(mean / np.sqrt(parts.total), df))


def count(
    studies: int, seeds: int, settings: int, states: int, own: float, common: float
) -> tuple[float, float, float]:
    """Return the shares of false claims at 5 %: of the test, without its floor, and with every row as a training."""
    rng = np.random.default_rng(0)
    of_seed, of_setting = np.tile(np.arange(seeds), settings), np.repeat(np.arange(settings), seeds)
    rows, tasks = np.arange(seeds * settings), np.zeros(states)
    false = np.zeros(3)
    for _ in range(studies):
        values = sample(rng, seeds, settings, states, own, common)
        p = [
            crossed_mean(values, of_seed, of_setting, tasks).p,
            without_floor(values, of_seed, of_setting),
            crossed_mean(values, rows, np.zeros(len(rows)), tasks).p,
        ]
        false += np.array(p) < 0.05
    return tuple(false / studies)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1500)
    studies = parser.parse_args().studies
    print("false claims in %; one setting\nseeds  states  own   test  without floor")
    for seeds in (2, 3, 5):
        for states in (20, 60):
            for own in (0.0, 0.3, 0.8):
                test, bare, _ = count(studies, seeds, 1, states, own, 0.0)
                print(f"{seeds:5} {states:7} {own:4} {100 * test:6.1f} {100 * bare:14.1f}", flush=True)
    print("\nfour settings, three seeds, 60 states\nown  common   test  rows as trainings")
    for common in (0.0, 0.3, 0.8):
        test, _, pooled = count(studies, 3, 4, 60, 0.3, common)
        print(f"0.3 {common:7} {100 * test:6.1f} {100 * pooled:18.1f}", flush=True)


if __name__ == "__main__":
    main()
