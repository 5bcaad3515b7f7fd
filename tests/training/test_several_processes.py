"""A training gives the same losses and weights on any number of processes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.small import SMALLEST
from tests.training.shared_runs import FLOW, HEAD, Runs, assert_same

REGRESSION = {"decoder": SMALLEST["decoder"], **HEAD, "ema": {"decay": 0.9}}


@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        pytest.param(REGRESSION, [(2, 2)], id="regression"),
        pytest.param({"decoder": FLOW}, [(4, 1)], id="flow"),
        pytest.param(REGRESSION, [(2, 1), (4, 1), (4, 2)], id="regression on more", marks=pytest.mark.slow),
        pytest.param({"decoder": FLOW}, [(2, 1), (2, 4), (4, 2)], id="flow on more", marks=pytest.mark.slow),
    ],
)
def test_curves_and_weights_do_not_depend_on_the_number_of_processes(
    runs: Runs, keys: dict[str, Any], splits: list[tuple[int, int]]
) -> None:
    recipe = runs.recipe(**keys)
    runs.finish(recipe, "one", 1)
    assert runs.curve("one")["loss"].std() > 1e-2
    for count, pieces in splits:
        runs.finish(recipe, f"{count}x{pieces}", count, "--training.accumulate", pieces)
        assert_same(runs, "one", f"{count}x{pieces}")
