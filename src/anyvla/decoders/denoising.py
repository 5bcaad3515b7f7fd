"""The loss of decoders that denoise (`flow`, `diffusion`, `expert`), at random noises and times.

Each step of a robot is trained at `samples` noises and times. In tensors of k * M rows (`kM` in shapes), sample j of
the M steps is in rows j * M to (j + 1) * M.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from anyvla.decoders.base import Decoder, DecoderInput, DecoderSpec, Loss
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.space import ActionSpace


class DenoisingDecoder(Decoder):
    """A decoder that learns to predict something of a chunk from a noisy version of it.

    `config.samples`: noises and times at which each step is trained in one run of the backbone. With one, the
    gradient is mostly noise.
    """

    def __init__(self, config: Any, spec: DecoderSpec) -> None:
        super().__init__()
        self.config, self.space = config, spec.space
        self.shape = spec.chunk, spec.space.size

    @abstractmethod
    def sample_time(self, count: int, generator: torch.Generator | None) -> Shaped[Tensor, "kM"]:
        """Return random times, or noise levels, on the CPU."""

    @abstractmethod
    def predict(
        self,
        inputs: DecoderInput,
        actions: Float[Tensor, "kM N A"],
        noise: Float[Tensor, "kM N A"],
        time: Shaped[Tensor, "kM"],
    ) -> tuple[Float[Tensor, "kM N A"], Float[Tensor, "kM N A"]]:
        """Return the prediction at actions made noisy, and its target."""

    def loss(
        self,
        inputs: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Return the squared error of the prediction at random noises and times; one part for each action group."""
        count = self.config.samples * len(actions)
        time = self.sample_time(count, generator)
        noise = torch.randn(count, *self.shape, generator=generator)
        return self.loss_at(inputs, actions, mask, noise.to(actions.device), time.to(actions.device))

    def loss_at(
        self,
        inputs: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        noise: Float[Tensor, "kM N A"],
        time: Shaped[Tensor, "kM"],
    ) -> Loss:
        """Return the squared error at these noises and times, k for each step."""
        # The actions of a chunk see each other, and there is no mask when acting: a missing action repeats the last.
        clean = pad_with_last_action(actions, mask).float().repeat(len(time) // len(actions), 1, 1)
        predicted, target = self.predict(inputs, clean, inputs.zero_unlearned(noise), time)
        return squared_error(predicted, target, inputs.valid_elements(mask, self.space.size), self.space)


def squared_error(
    predicted: Float[Tensor, "kM N A"],
    target: Float[Tensor, "kM N A"],
    elements: Bool[Tensor, "M N A"],
    space: ActionSpace,
) -> Loss:
    """Return the mean over the k samples of each step and over valid elements; one part for each action group."""
    error = (predicted - target).square().unflatten(0, (-1, len(elements))).mean(0) * elements  # (M, N, A)
    parts = {
        name: (error[..., dims].sum() / elements[..., dims].sum().clamp(min=1)).detach()
        for name, dims in space.slices().items()
    }
    return Loss(error.sum(), elements.sum().to(error.dtype), parts)
