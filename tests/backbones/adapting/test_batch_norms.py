from __future__ import annotations

import torch
from torch import nn

from anyvla.backbones.adapting.batch_norms import measure_batch_norms


def tower() -> nn.Sequential:
    """Convolutions whose features shrink by a third in each layer, as in a network with default weights."""
    layers: list[nn.Module] = []
    for inputs in (3, 8, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6()]
    return nn.Sequential(*layers, nn.Dropout(0.5)).eval()


def test_every_norm_normalizes_what_it_gets() -> None:
    network = tower()
    measure_batch_norms(network, network, 24)
    torch.manual_seed(0)
    seen = []
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _layer, _inputs, out: seen.append(out))
    network(torch.rand(16, 3, 4, 4).repeat_interleave(6, 2).repeat_interleave(6, 3) * 2 - 1)
    assert len(seen) == 4
    for out in seen:
        assert 0.3 < out.std() < 3
        assert out.mean().abs() < 1


def test_only_the_statistics_change() -> None:
    network = tower()
    network[1].momentum = 0.01
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    measure_batch_norms(network, network, 24)
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    assert [m.momentum for m in network if isinstance(m, nn.BatchNorm2d)] == [0.01, 0.1, 0.1, 0.1]
    assert not any(m.training for m in network.modules())


def test_equal_seeds_measure_equal_statistics_and_a_tower_without_norms_draws_nothing() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        network = tower()
        measure_batch_norms(network, network, 24)
        found.append(network[1].running_mean)
    assert torch.equal(*found)
    plain = nn.Conv2d(3, 4, 3)
    state = torch.get_rng_state()
    measure_batch_norms(plain, plain, 24)
    assert torch.equal(state, torch.get_rng_state())
