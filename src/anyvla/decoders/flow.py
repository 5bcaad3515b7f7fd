"""Flow matching on the context (arXiv 2210.02747): pi0's decoder (arXiv 2410.24164) without the expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.axes import Axis, Meaning
from anyvla.config import STRICT
from anyvla.decoders.base import Chunks, Committed, DecoderInput, DecoderSpec, sample_noise
from anyvla.decoders.denoiser import Denoiser, DenoiserConfig
from anyvla.decoders.denoising import DenoisingDecoder, SampledChunks, Times
from anyvla.decoders.flow_matching import Integration, TimeDistribution, integrate
from anyvla.limits import CALLS, STEPS


class FlowDecoder(DenoisingDecoder):
    """Moves noise to a chunk along the velocity that a network predicts from the context."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(DenoiserConfig):
        """Options of `decoder: {name: flow}`."""

        time: TimeDistribution = "beta"  # of times to train at: beta, more near the noise (pi0), or uniform
        # Times and noises at which each step is trained in one run of the backbone; with one, its gradient is noisy.
        samples: int = Field(default=4, ge=1, le=STEPS)
        steps: int = Field(default=10, ge=1, le=CALLS)  # of the integration when acting
        method: Integration = "euler"  # heun: 2 * steps - 1 calls, and a smaller error

    def __init__(self, config: Config, spec: DecoderSpec) -> None:
        super().__init__(config, spec)
        self.network = Denoiser(config, spec.context_width, *self.shape)

    def meaning(self, context: Axis) -> Meaning:
        return self.network.meaning(context).below("network.")

    def predict(self, inputs: DecoderInput, noisy: SampledChunks, time: Times) -> SampledChunks:
        condition = self.network.condition(inputs.context).repeat(len(time) // len(inputs.context), 1)
        return self.network(noisy, time, condition)

    def sample(
        self,
        inputs: DecoderInput,
        generators: Sequence[torch.Generator] | None = None,
        committed: Committed | None = None,
    ) -> Chunks:
        """Integrate from noise; nothing is clipped."""
        condition = self.network.condition(inputs.context)
        noise = inputs.zero_unlearned(sample_noise(self.shape, generators, inputs.context))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return inputs.zero_unlearned(self.network(x, t, condition))

        return integrate(velocity, noise, self.config.steps, self.config.method, committed)
