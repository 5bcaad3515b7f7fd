"""The network of `flow` and `diffusion`, compared with the equations of its paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from anyvla.decoders.denoiser import Denoiser, DenoiserConfig, encode_time

C, N, A, WIDTH, HEADS = 6, 4, 3, 8, 2


@pytest.fixture
def network() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DenoiserConfig(width=WIDTH, layers=2, heads=HEADS), C, N, A)


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, N, A, generator=g), torch.tensor([0.2, 0.9]), torch.randn(2, C, generator=g) * 30


def normed(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def test_the_network_equals_a_dit_computed_by_hand(network: Denoiser) -> None:
    """A DiT block with adaLN-Zero (arXiv 2212.09748, figure 3), one sample and one head at a time."""
    with torch.no_grad():
        for weight in network.parameters():
            weight += torch.randn(weight.shape) * 0.2
        noisy, time, context = given()
        out = network(noisy, time, network.condition(context))
        for row in range(2):
            read = network.context[1](network.context[0](context[row]))
            assert read.std() < 3 * network.context[1].weight.abs().max()  # normalized, however large the context is
            x = network.enter(noisy[row]) + network.position + read
            c = F.silu(read + network.time[2](F.silu(network.time[0](encode_time(time[row : row + 1], WIDTH)[0]))))
            for layer in network.layers:
                shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = layer.modulation(c).chunk(6)
                q, k, v = layer.qkv(normed(x) * (1 + scale) + shift).chunk(3, -1)
                heads = []
                for head in range(HEADS):
                    part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                    scores = q[:, part] @ k[:, part].T / math.sqrt(WIDTH // HEADS)
                    heads.append(scores.softmax(-1) @ v[:, part])
                x = x + gate * layer.out(torch.cat(heads, -1))
                first, last = layer.mlp[0], layer.mlp[2]
                hidden = F.gelu(first(normed(x) * (1 + scale_mlp) + shift_mlp), approximate="tanh")
                x = x + gate_mlp * last(hidden)
            shift, scale = network.modulation(c).chunk(2)
            expected = network.out(normed(x) * (1 + scale) + shift)
            torch.testing.assert_close(out[row], expected, atol=1e-4, rtol=1e-4)


def test_an_untrained_network_predicts_zero_and_its_layers_change_nothing(network: Denoiser) -> None:
    noisy, time, context = given()
    condition = network.condition(context)
    assert network(noisy, time, condition).eq(0).all()
    x = torch.randn(2, N, WIDTH)
    for layer in network.layers:
        assert torch.equal(layer(x, condition=condition)[0], x)


def test_times_are_encoded_as_sines_and_cosines_of_the_periods_of_pi0() -> None:
    """From 0.004 to 4, each period the same factor longer than the last; the sines come first."""
    periods = [0.004, 0.04, 0.4, 4.0]
    expected = [math.sin(2 * math.pi * 0.37 / p) for p in periods] + [math.cos(2 * math.pi * 0.37 / p) for p in periods]
    assert encode_time(torch.tensor([0.37]), 8)[0].tolist() == pytest.approx(expected, abs=1e-4)
