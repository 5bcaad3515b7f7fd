"""A small decoder, data and generators for the tests of `flow` and `diffusion`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anyvla.config import build
from anyvla.decoders.base import Decoder, DecoderInput, DecoderSpec
from anyvla.robot.space import ActionSpace, Group
from tests.decoders.token_parts import backbone

SPACE = ActionSpace(
    groups=(
        Group(name="position", size=2, kind="position"),
        Group(name="gripper", size=1, kind="gripper", low=0, high=1),
    )
)
C, N, A = 6, 4, 3
BACKBONE = backbone()  # these decoders do not read it
SMALL = {"width": 32, "layers": 1, "heads": 2}


def small(decoder: type[Decoder], *, trained: bool = True, **keys: Any) -> Decoder:
    """Return a small decoder. `trained`: not with the initial weights, under which it ignores its inputs."""
    torch.manual_seed(0)
    made = decoder(build(decoder.Config, SMALL | keys), DecoderSpec(C, N, SPACE, None, BACKBONE))
    if trained:
        with torch.no_grad():
            for weight in made.parameters():
                weight += torch.randn(weight.shape) * 0.1
    return made


def data(steps: int, seed: int = 1) -> tuple[DecoderInput, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, N + 1, (steps, 1), generator=g)
    actions = torch.rand(steps, N, A, generator=g) * 1.8 - 0.9
    return DecoderInput(torch.randn(steps, C, generator=g)), actions, torch.arange(N) < lengths


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def fit(
    decoder: Decoder, inputs: DecoderInput, actions: Tensor, mask: Tensor, rounds: int, modes: Tensor | None = None
) -> float:
    """Train on one batch, each action plus or minus `modes`. Return the mean loss of the last tenth."""
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, rounds, pct_start=0.1)
    losses = []
    for _ in range(rounds):
        sign = torch.randint(2, (len(actions), 1, 1), generator=g) * 2 - 1
        loss = decoder.loss(inputs, actions + (0 if modes is None else sign * modes), mask, [g] * len(actions)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return sum(losses[-rounds // 10 :]) / (rounds // 10)
