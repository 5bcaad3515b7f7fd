"""Diffusion on the context: trained as DDPM (arXiv 2006.11239), sampled in few steps by DDIM (arXiv 2010.02502) or
DPM-Solver++ (arXiv 2211.01095), as in Diffusion Policy (arXiv 2303.04137).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.axes import Axis, Meaning
from anyvla.config import STRICT
from anyvla.decoders.base import Chunks, Committed, DecoderInput, DecoderSpec, sample_noise
from anyvla.decoders.denoiser import Denoiser, DenoiserConfig
from anyvla.decoders.denoising import DenoisingDecoder, SampledChunks, Times
from anyvla.limits import CALLS, STEPS


class DiffusionDecoder(DenoisingDecoder):
    """Removes noise from a chunk in several steps, given the context."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(DenoiserConfig):
        """Options of `decoder: {name: diffusion}`."""

        # The network predicts the actions (more exact in few steps; DP3, arXiv 2403.03954) or the noise (DDPM).
        prediction: Literal["sample", "epsilon"] = "sample"
        # levels of noise, on the cosine schedule (arXiv 2102.09672)
        train_steps: int = Field(default=100, ge=1, le=CALLS)
        # Levels and noises at which each step is trained in one run of the backbone; with one, its gradient is noisy.
        samples: int = Field(default=4, ge=1, le=STEPS)
        sampler: Literal["dpm", "ddim"] = "dpm"  # second or first order; neither adds noise while it samples
        steps: int = Field(default=10, ge=1, le=CALLS)  # of the sampler: calls of the network for each chunk

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.train_steps % self.steps:  # samplers would begin below pure noise, or end past the last level
                fitting = [n for n in range(1, self.train_steps + 1) if not self.train_steps % n]
                raise ValueError(
                    f"steps {self.steps} must divide train_steps {self.train_steps}: use one of "
                    f"{', '.join(map(str, fitting))}"
                )

    def __init__(self, config: Config, spec: DecoderSpec) -> None:
        """Build the network. Raises ImportError, with the extra to install, without `diffusers`."""
        super().__init__(config, spec)
        self.network = Denoiser(config, spec.context_width, *self.shape)
        self.noise_scheduler = _make_scheduler("ddpm", config)

    def meaning(self, context: Axis) -> Meaning:
        of_network = self.network.meaning(context).below("network.")
        return of_network | Meaning(settings={"": {"prediction": self.config.prediction}})

    def sample_time(self, count: int, generator: torch.Generator | None) -> Times:
        """Return random noise levels, on the CPU."""
        return torch.randint(self.config.train_steps, (count,), generator=generator)

    def add_noise(
        self, actions: SampledChunks, noise: SampledChunks, time: Times
    ) -> tuple[SampledChunks, SampledChunks]:
        """Return noisy chunks, and the actions or the noise (eq. 14 of DDPM)."""
        noisy = self.noise_scheduler.add_noise(actions, noise, time)
        return noisy, actions if self.config.prediction == "sample" else noise

    def predict(self, inputs: DecoderInput, noisy: SampledChunks, time: Times) -> SampledChunks:
        condition = self.network.condition(inputs.context).repeat(len(time) // len(inputs.context), 1)
        return self.network(noisy, self._as_time(time), condition)

    def sample(
        self,
        inputs: DecoderInput,
        generators: Sequence[torch.Generator] | None = None,
        committed: Committed | None = None,
    ) -> Chunks:
        """Denoise from pure noise; each step's predicted chunk is clipped to [-1, 1]."""
        sampler = _make_scheduler(self.config.sampler, self.config)  # for this call alone: it counts its steps
        sampler.set_timesteps(self.config.steps)
        condition = self.network.condition(inputs.context)
        x = noise = inputs.zero_unlearned(sample_noise(self.shape, generators, inputs.context))
        for level in sampler.timesteps.tolist():
            levels = x.new_full((len(x),), level)
            if committed is not None:
                noisy = self.noise_scheduler.add_noise(committed.actions, noise, levels.long())
                x = committed.replace(x, noisy)
            predicted = inputs.zero_unlearned(self.network(x, self._as_time(levels), condition))
            x = sampler.step(predicted, level, x, return_dict=False)[0]
        return x if committed is None else committed.replace(x)

    def _as_time(self, level: Tensor) -> Float[Tensor, "M"]:
        return (level + 1) / self.config.train_steps


def _make_scheduler(name: Literal["ddpm", "ddim", "dpm"], config: DiffusionDecoder.Config) -> Any:
    try:
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
    except ImportError as error:
        raise ImportError("decoder: diffusion needs diffusers: pip install 'anyvla[diffusion]'") from error
    common: dict[str, Any] = {
        "num_train_timesteps": config.train_steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": config.prediction,
    }
    if name == "ddpm":
        return DDPMScheduler(**common)
    # The first step is at the last level, where all is noise, as in training (arXiv 2305.08891).
    common["timestep_spacing"] = "trailing"
    if name == "ddim":
        return DDIMScheduler(**common, clip_sample=True)
    # The threshold, a quantile of at least 1, is 1 with this maximum: plain clipping.
    return DPMSolverMultistepScheduler(**common, thresholding=True, sample_max_value=1.0)
