"""The base class of decoders that denoise: `flow`, `diffusion` and `expert`.

Each step of a robot is trained at `samples` noises and times. In tensors of k * M rows (`kM` in shapes), sample j of
the M steps is in rows j * M to (j + 1) * M.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anyvla.decoders.base import ActionMask, Chunks, Decoder, DecoderInput, DecoderSpec, Loss, sample_by_window
from anyvla.decoders.flow_matching import interpolate, sample_times
from anyvla.robot.chunks import pad_with_last_action
from anyvla.transfer import send

SampledChunks = Float[Tensor, "kM N A"]
Times = Shaped[Tensor, "kM"]  # or levels of noise


class DenoisingDecoder(Decoder):
    """A decoder that learns to predict a target from a noisy chunk: the velocity, unless `add_noise` is overridden.

    `config.samples`: noises and times at which each step is trained in one run of the backbone. With one, the
    gradient is mostly noise.

    Committed actions are inpainted (RePaint, arXiv 2201.09865; for chunks, Diffuser, arXiv 2205.09991): at each step
    of the sampler, the network sees them with the noise of that step in place of its own, as it did in training, and
    the other actions are denoised to follow them. Real-time chunking (RTC, arXiv 2506.07339) adds guidance to this.
    """

    continues = True

    def __init__(self, config: Any, spec: DecoderSpec) -> None:
        super().__init__()
        self.config, self.space = config, spec.space
        self.shape = spec.chunk, spec.space.size

    @abstractmethod
    def predict(self, inputs: DecoderInput, noisy: SampledChunks, time: Times) -> SampledChunks:
        """Return the prediction for noisy chunks, k for each step."""

    def sample_time(self, count: int, generator: torch.Generator | None) -> Times:
        """Return random times, on the CPU."""
        return sample_times(self.config.time, count, generator)

    def add_noise(
        self, actions: SampledChunks, noise: SampledChunks, time: Times
    ) -> tuple[SampledChunks, SampledChunks]:
        """Return noisy chunks, and the target of their prediction (eq. 9 of arXiv 2210.02747)."""
        return interpolate(actions, noise, time)

    def loss(
        self,
        inputs: DecoderInput,
        actions: Chunks,
        mask: ActionMask,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Loss:
        """Return the squared error of the prediction at random noises and times; one part for each action group."""
        samples, steps = self.config.samples, len(actions)

        def times(count: int, generator: torch.Generator | None) -> Tensor:
            return self.sample_time(count * samples, generator).unflatten(0, (count, samples))

        def noises(count: int, generator: torch.Generator | None) -> Tensor:
            return torch.randn(count, samples, *self.shape, generator=generator)

        time = sample_by_window(steps, generators, times).T.flatten()  # (kM,)
        noise = sample_by_window(steps, generators, noises).transpose(0, 1).flatten(0, 1)  # (kM, N, A)
        return self.loss_at(inputs, actions, mask, send(noise, actions.device), send(time, actions.device))

    def loss_at(
        self, inputs: DecoderInput, actions: Chunks, mask: ActionMask, noise: SampledChunks, time: Times
    ) -> Loss:
        """Return the squared error at these noises and times: the mean over valid elements and k samples a step."""
        # The actions of a chunk see each other, and there is no mask when acting: a missing action repeats the last.
        clean = pad_with_last_action(actions, mask).float().repeat(len(time) // len(actions), 1, 1)
        noisy, target = self.add_noise(clean, inputs.zero_unlearned(noise), time)
        elements = inputs.valid_elements(mask, self.space.size)
        error = (self.predict(inputs, noisy, time) - target).square()
        error = error.unflatten(0, (-1, len(elements))).mean(0) * elements  # (M, N, A)
        parts = {
            name: (error[..., dims].sum() / elements[..., dims].sum().clamp(min=1)).detach()
            for name, dims in self.space.slices().items()
        }
        return Loss(error.sum(), elements.sum().to(error.dtype), parts)
