"""A training gives the same losses and weights on any number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.small import NANO, SMALLEST
from tests.training.shared_runs import FLOW, HEAD, Runs, assert_same

PARTS = {"language": {"unfreeze_at": 7}, "vision": {"lr": 3e-5}}
REGRESSION = {
    "decoder": SMALLEST["decoder"],
    **HEAD,
    "ema": {"decay": 0.9},
    "optim": {"lr": 1e-4, "warmup_steps": 5, "parts": PARTS},
}


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


ROWS = {"history": {"name": "recurrent", "steps": 40}, "fuser": HEAD["fuser"]}
TINY = {"name": "tiny", "family": "smolvlm", "width": 32, "heads": 2, "image_size": 32, "lora": {"rank": 2}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"decoder": FLOW, "backbone": TINY}, id="lora"),
        pytest.param(
            {"decoder": FLOW, "backbone": NANO | {"lora": {"rank": 2}}, "ema": {"decay": 0.9}}, id="lora, ema"
        ),
        pytest.param({"decoder": FLOW, "optim": {"lr": 1e-4, "name": "muon"}}, id="muon"),
        pytest.param({"decoder": FLOW, "gradient_checkpointing": True}, id="gradient checkpointing"),
        pytest.param({"decoder": FLOW, **ROWS, "batch_size": 4}, id="rows"),
    ],
)
def test_whatever_is_trained_and_how_two_processes_do_it_as_one(runs: Runs, keys: dict[str, Any]) -> None:
    recipe = runs.recipe(**keys)
    runs.finish(recipe, "one", 1)
    assert runs.curve("one")["loss"].std() > 1e-2
    runs.finish(recipe, "two", 2, "--training.accumulate", 2)
    assert_same(runs, "one", "two")


@pytest.mark.slow
def test_process_0_measures_and_keeps_the_best_as_in_one_process(runs: Runs) -> None:
    recipe = runs.recipe(decoder=FLOW, validate_every=4, keep={"best": 2, "last": 1})
    held_out = ("--data.validation.episodes", "1")
    for run, count in (("one", 1), ("two", 2)):
        runs.finish(recipe, run, count, *held_out)
    assert_same(runs, "one", "two")
    measured = [[line for line in runs.lines(run) if "validation.loss" in line] for run in ("one", "two")]
    assert [line["step"] for line in measured[0]] == [4, 8, 12, 16, 20]
    for one, two in zip(*measured, strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    kept = [sorted(p.name for p in (runs.folder / run / "train").glob("step-*")) for run in ("one", "two")]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_chain_of_stages_is_trained_by_two_processes_as_by_one(runs: Runs) -> None:
    recipe = runs.recipe(decoder=FLOW)
    stages = ("--stages", "{first: {training: {steps: 8}}, second: {training: {steps: 8, seed: 3}}}")
    for run, count in (("one", 1), ("two", 2)):
        runs.finish(recipe, run, count, *stages)
    for stage in ("first", "second"):
        assert_same(runs, f"one/stages/{stage}", f"two/stages/{stage}", steps=8)
    assert (runs.folder / "two/checkpoint").resolve() == runs.folder / "two/stages/second/checkpoint"


@pytest.mark.slow
def test_gradients_that_overflow_float16_are_skipped_by_all_processes(runs: Runs) -> None:
    recipe = runs.recipe(decoder=FLOW, precision="float16", optim={"lr": 1e-3, "warmup_steps": 0})
    for run, count in (("one", 1), ("two", 2)):
        runs.finish(recipe, run, count)
    one, two = (torch.tensor([of["loss"] for of in runs.lines(run) if "loss" in of]) for run in ("one", "two"))
    assert any("overflowed_at_scale" in line for line in runs.lines("two"))
    torch.testing.assert_close(one, two, rtol=2e-2, atol=0)
    assert sum(line.get("grad_norm") is not None for line in runs.lines("two")) >= 10  # these steps were made
    assert all(weight.isfinite().all() for weight in runs.weights("two").values())
