"""The optimizer and the learning rate agree with numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from anyvla.config import ConfigError
from anyvla.training.optim import OptimConfig, build_optimizer
from anyvla.training.schedules import describe_endless_warmup, learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25),  # a quarter of the peak: warm-up takes 4 steps and ends at the peak
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),  # the cosine begins at the peak
        (6, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2),
        (8, 0.6),  # half way between the peak and the final rate
        (11, 0.2 + 0.8 * (1 + math.cos(7 * math.pi / 8)) / 2),
        (12, 0.2),
        (20, 0.2),  # and stays there
    ],
)
def test_the_rate_rises_along_a_line_and_falls_along_half_a_cosine(step: int, rate: float) -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4, final_lr=0.2)
    assert learning_rate(config, step, 12) == pytest.approx(rate, rel=1e-12)


def test_a_constant_rate_rises_too_and_then_stays() -> None:
    config = OptimConfig(lr=0.5, warmup_steps=2, schedule="constant", final_lr=0.1)
    assert [learning_rate(config, step, 5) for step in range(5)] == [0.25, 0.5, 0.5, 0.5, 0.5]


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert learning_rate(OptimConfig(lr=0.5, warmup_steps=0), 0, 10) == 0.5


def test_a_run_shorter_than_its_warm_up_never_reaches_the_peak() -> None:
    assert [learning_rate(OptimConfig(lr=1.0, warmup_steps=8), step, 2) for step in range(2)] == [0.125, 0.25]


@pytest.mark.parametrize(("warmup", "warns"), [(7, False), (8, True), (80, True)])
def test_a_warm_up_that_leaves_no_step_for_the_schedule_is_noted(warmup: int, warns: bool) -> None:
    note = describe_endless_warmup(OptimConfig(lr=1e-3, warmup_steps=warmup), 8)
    assert (note is not None) == warns
    if warmup == 80:
        assert "rises until the end, to 0.0001 of 0.001." in str(note)


class Model(nn.Module):
    """Every kind of parameter, all ones."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.ones(2, 2))
        self.linear, self.norm, self.frozen = nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)
        self.convolution = nn.Conv2d(1, 1, 1)
        self.frozen.requires_grad_(False)
        for p in self.parameters():
            p.data.fill_(1.0)


def after_step(gradient: float, **keys: object) -> dict[str, float]:
    """Return the first number of each parameter after one step with this gradient everywhere."""
    model = Model()
    optim = build_optimizer(OptimConfig(**keys), model)  # type: ignore[arg-type]
    for p in model.parameters():
        p.grad = torch.full_like(p, gradient) if p.requires_grad else None
    optim.step()
    return {name: p.flatten()[0].item() for name, p in model.named_parameters()}


def test_only_matrices_decay_and_by_the_rate_times_the_decay() -> None:
    left = after_step(0.0, lr=0.1, weight_decay=0.5)
    decayed = {name for name, value in left.items() if value == pytest.approx(1 - 0.1 * 0.5)}
    assert decayed == {"linear.weight", "convolution.weight"}
    assert all(value == 1 for name, value in left.items() if name not in decayed)


def test_decay_does_not_pass_through_the_moments() -> None:
    """AdamW's first step is as long as the rate, and decay comes on top; Adam's would be as long with decay."""
    left = after_step(1.0, lr=0.1, weight_decay=0.5)
    assert left["linear.weight"] == pytest.approx(1 - 0.1 - 0.05, abs=1e-6)
    assert left["linear.bias"] == pytest.approx(1 - 0.1, abs=1e-6)
    assert left["queries"] == pytest.approx(1 - 0.1, abs=1e-6)
    assert left["frozen.weight"] == 1


def test_betas_set_the_decay_of_the_moments() -> None:
    """Gradients 1 and 0: the moments are 1/2 and 1/4, then 1/4 and 3/16; unbiased 1/3 and 3/7 in the end."""
    model = Model()
    optim = build_optimizer(OptimConfig(lr=0.1, betas=(0.5, 0.75), weight_decay=0.0), model)
    for gradient in (1.0, 0.0):
        model.norm.weight.grad = torch.full_like(model.norm.weight, gradient)
        optim.step()
    assert model.norm.weight[0].item() == pytest.approx(1 - 0.1 - 0.1 * (1 / 3) / math.sqrt(3 / 7), abs=1e-6)


def test_a_gradient_as_small_as_epsilon_makes_half_a_step() -> None:
    assert after_step(1e-8, lr=0.1, weight_decay=0.0)["linear.bias"] == pytest.approx(1 - 0.1 / 2, abs=1e-4)


def test_a_bitsandbytes_without_kernels_for_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")

    def fail(_: object) -> None:
        raise NotImplementedError("no kernel")

    build_optimizer(OptimConfig(name="adamw8bit"), Model())
    monkeypatch.setattr(optim.AdamW8bit, "step", fail)
    with pytest.raises(ConfigError, match=r"makes no step on cpu \(NotImplementedError: no kernel\)"):
        build_optimizer(OptimConfig(name="adamw8bit"), Model())


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one() -> None:
    model = Model()
    given = [p for group in build_optimizer(OptimConfig(), model).param_groups for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {p for p in model.parameters() if p.requires_grad}


def test_the_defaults_are_the_published_ones() -> None:
    """Betas and clipping are openpi's and SmolVLA's; docs and recipes count on them."""
    config = OptimConfig()
    assert (config.lr, config.final_lr, config.warmup_steps) == (1e-4, 0.0, 100)
    assert (config.betas, config.weight_decay, config.clip, config.schedule) == ((0.9, 0.95), 0.05, 1.0, "cosine")
