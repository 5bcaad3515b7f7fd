"""Flow matching on the context: chunks are reached from noise along a learned velocity (arXiv 2210.02747; pi0's head,
arXiv 2410.24164, without the expert). The observation is read once a chunk; only a small network runs at each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT
from anyvla.decoders.base import Decoder, DecoderInput, DecoderSpec, Loss, draw
from anyvla.decoders.denoiser import Denoiser, Sizes, squared_error
from anyvla.decoders.flow_matching import Method, Times, drawn, integrate, interpolate
from anyvla.limits import CALLS, STEPS
from anyvla.robot.chunks import pad_with_last_action


class FlowDecoder(Decoder):
    """Context and noise -> velocity -> chunk."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Sizes):
        """Options of `decoder: {name: flow}`."""

        time: Times = "beta"  # where to train: beta, more near the noise (pi0), or uniform
        # Times and noises a step is trained at in one run of the backbone: with one, its gradient is mostly noise.
        draws: int = Field(default=4, ge=1, le=STEPS)
        steps: int = Field(default=10, ge=1, le=CALLS)  # of the integration when acting
        method: Method = "euler"  # heun: 2 * steps - 1 calls, and a smaller error

    def __init__(self, config: Config, setting: DecoderSpec) -> None:
        super().__init__()
        self.config, self.space = config, setting.space
        self.shape = setting.chunk, setting.space.size
        self.network = Denoiser(config, setting.context, *self.shape)

    def loss(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The conditional flow matching loss (eq. 9 of the paper) at random times and noises."""
        count = self.config.draws * len(actions)
        noise, time = drawn(self.config.time, count, self.shape, generator, actions.device)
        return self.loss_at(context, actions, mask, noise, time)

    def loss_at(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        noise: Float[Tensor, "k*M N A"],
        time: Float[Tensor, "k*M"],
    ) -> Loss:
        """The loss at these times and noises, k for each step: those of draw j are rows j*M to (j+1)*M."""
        draws = len(time) // len(actions)
        # The actions of a chunk see each other, and acting knows no mask: a missing action is the last one, held.
        noisy, velocity = interpolate(pad_with_last_action(actions, mask).repeat(draws, 1, 1), context.own(noise), time)
        condition = self.network.condition(context.vector).repeat(draws, 1)
        elements = context.elements(mask, self.space.size)
        return squared_error(self.network(noisy, time, condition), velocity, elements, self.space)

    def sample(
        self, context: DecoderInput, generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "M N A"]:
        """Integrate from noise; nothing is clipped."""
        condition = self.network.condition(context.vector)
        noise = context.own(draw(self.shape, generators, context.vector))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return context.own(self.network(x, t, condition))

        return integrate(velocity, noise, self.config.steps, self.config.method)
