"""The options of the times and noises at which decoders are trained reach their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anyvla.config import build
from anyvla.decoders.base import Decoder, DecoderInput, Loss
from anyvla.decoders.diffusion import DiffusionDecoder
from anyvla.decoders.expert import ExpertDecoder
from anyvla.decoders.flow import FlowDecoder
from tests.decoders.denoising import C, small
from tests.decoders.token_parts import after, backbone, make_spec

STEPS = 4


def flow(**keys: Any) -> tuple[Decoder, DecoderInput]:
    return small(FlowDecoder, **keys), DecoderInput(torch.zeros(STEPS, C))


def diffusion(**keys: Any) -> tuple[Decoder, DecoderInput]:
    return small(DiffusionDecoder, **keys), DecoderInput(torch.zeros(STEPS, C))


def expert(**keys: Any) -> tuple[Decoder, DecoderInput]:
    model = backbone()
    config = build(ExpertDecoder.Config, {"width": 32, "mlp": 48} | keys)
    return ExpertDecoder(config, make_spec(model, None)), after(model)


MADE = {"flow": flow, "diffusion": diffusion, "expert": expert}


def noise_and_times(
    made: Callable[..., tuple[Decoder, DecoderInput]], seed: int = 0, **keys: Any
) -> tuple[torch.Tensor, ...]:
    """Return the noises and times, or levels, of one loss."""
    decoder, inputs = made(**keys)
    seen: list[torch.Tensor] = []

    def record(inputs: DecoderInput, actions: torch.Tensor, mask: torch.Tensor, *at: torch.Tensor) -> Loss:
        seen.extend(at)
        return Loss(actions.sum(), mask.sum().float())

    decoder.loss_at = record
    steps = len(inputs.context)
    actions = torch.zeros(steps, *decoder.shape)
    decoder.loss(inputs, actions, actions[..., 0] == 0, [torch.Generator().manual_seed(seed)] * steps)
    return tuple(seen)


@pytest.mark.parametrize("name", MADE)
def test_each_step_is_trained_at_the_given_number_of_samples(name: str) -> None:
    noise, time = noise_and_times(MADE[name], samples=3)
    assert len(noise) == len(time) == 3 * STEPS
    assert len(noise.flatten().unique()) == noise.numel()


@pytest.mark.parametrize("name", MADE)
def test_the_generator_decides_noises_and_times(name: str) -> None:
    one, same, other = (noise_and_times(MADE[name], seed, samples=8) for seed in (0, 0, 1))
    for a, b, c in zip(one, same, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert abs(float(one[0].mean())) < 0.3
    assert float(one[0].std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["flow", "expert"])
def test_the_option_time_sets_the_distribution_of_times(name: str) -> None:
    """Beta(1.5, 1) has the mean 0.6; both are shifted by a thousandth."""
    for kind, mean in (("beta", 0.6), ("uniform", 0.5)):
        _, time = noise_and_times(MADE[name], time=kind, samples=1000)
        assert float(time.mean()) == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize("name", ["flow", "expert"])
@pytest.mark.parametrize(("method", "calls"), [("euler", 4), ("heun", 7)])
def test_the_option_method_sets_the_integration(name: str, method: str, calls: int) -> None:
    """Heun's method also evaluates the end of each step but the last."""
    decoder, inputs = MADE[name](method=method, steps=4)
    count = 0
    layer = decoder.network if name == "flow" else decoder.out  # runs once for each velocity

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    layer.register_forward_hook(counted)
    decoder.sample(inputs, [torch.Generator().manual_seed(step) for step in range(len(inputs.context))])
    assert count == calls
