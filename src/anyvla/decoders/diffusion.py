"""Diffusion on the context: trained as DDPM (arXiv 2006.11239), sampled in few steps by DDIM (arXiv 2010.02502) or
DPM-Solver++ (arXiv 2211.01095), as Diffusion Policy (arXiv 2303.04137) does. The schedulers are those of `diffusers`.
The observation is read once a chunk; only a small network runs at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT
from anyvla.decoders.base import Decoder, DecoderInput, DecoderSpec, Loss, draw
from anyvla.decoders.denoiser import Denoiser, Sizes, squared_error
from anyvla.limits import CALLS, STEPS
from anyvla.robot.chunks import pad_with_last_action


class DiffusionDecoder(Decoder):
    """Context and noise -> the same with less noise, a few times -> chunk."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Sizes):
        """Options of `decoder: {name: diffusion}`."""

        # What the network says: the actions, more exact in few steps (DP3, arXiv 2403.03954), or the noise (DDPM).
        prediction: Literal["sample", "epsilon"] = "sample"
        # levels of noise, on the cosine schedule (arXiv 2102.09672)
        train_steps: int = Field(default=100, ge=1, le=CALLS)
        # Levels and noises a step is trained at in one run of the backbone: with one, its gradient is mostly noise.
        draws: int = Field(default=4, ge=1, le=STEPS)
        sampler: Literal["dpm", "ddim"] = "dpm"  # second or first order; neither draws noise while it samples
        steps: int = Field(default=10, ge=1, le=CALLS)  # of the sampler: calls of the network a chunk

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.train_steps % self.steps:  # samplers would begin below pure noise, or end past the last level
                fitting = [n for n in range(1, self.train_steps + 1) if not self.train_steps % n]
                raise ValueError(
                    f"steps {self.steps} must divide train_steps {self.train_steps}: use one of "
                    f"{', '.join(map(str, fitting))}"
                )

    def __init__(self, config: Config, setting: DecoderSpec) -> None:
        """Raises ImportError, with the extra to install, if there is no `diffusers`."""
        super().__init__()
        self.config, self.space = config, setting.space
        self.shape = setting.chunk, setting.space.size
        self.network = Denoiser(config, setting.context, *self.shape)
        self.noising = _scheduler("ddpm", config)

    def loss(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The simple loss of DDPM (eq. 14), or that of the actions themselves, at random levels and noises."""
        count = self.config.draws * len(actions)
        level = torch.randint(self.config.train_steps, (count,), generator=generator)
        noise = torch.randn(count, *self.shape, generator=generator)
        return self.loss_at(context, actions, mask, noise.to(actions.device), level.to(actions.device))

    def loss_at(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        noise: Float[Tensor, "k*M N A"],
        level: Int64[Tensor, "k*M"],
    ) -> Loss:
        """The loss at these levels and noises, k for each step: those of draw j are rows j*M to (j+1)*M."""
        draws = len(level) // len(actions)
        # The actions of a chunk see each other, and acting knows no mask: a missing action is the last one, held.
        clean = pad_with_last_action(actions, mask).float().repeat(draws, 1, 1)
        noisy = self.noising.add_noise(clean, context.own(noise), level)
        condition = self.network.condition(context.vector).repeat(draws, 1)
        predicted = self.network(noisy, self._time(level), condition)
        target = clean if self.config.prediction == "sample" else noise
        return squared_error(predicted, target, context.elements(mask, self.space.size), self.space)

    def sample(
        self, context: DecoderInput, generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "M N A"]:
        """From pure noise down; what each step foresees is clipped to [-1, 1], and so is the chunk."""
        sampler = _scheduler(self.config.sampler, self.config)  # of this call alone: it counts its steps
        sampler.set_timesteps(self.config.steps)
        condition = self.network.condition(context.vector)
        x = context.own(draw(self.shape, generators, context.vector))
        for level in sampler.timesteps.tolist():
            predicted = context.own(self.network(x, self._time(x.new_full((len(x),), level)), condition))
            x = sampler.step(predicted, level, x, return_dict=False)[0]
        return x

    def _time(self, level: Tensor) -> Float[Tensor, "M"]:
        return (level + 1) / self.config.train_steps


def _scheduler(name: Literal["ddpm", "ddim", "dpm"], config: DiffusionDecoder.Config) -> Any:
    try:
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
    except ImportError as error:
        raise ImportError("decoder: diffusion needs diffusers: pip install 'anyvla[diffusion]'") from error
    common: dict[str, Any] = {
        "num_train_timesteps": config.train_steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": config.prediction,
    }
    # "trailing": the first step is at the last level, where all is noise, as in training (arXiv 2305.08891).
    if name == "ddim":
        return DDIMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
    if name == "dpm":  # its threshold, a quantile of at least 1, is 1 with this maximum: plain clipping
        return DPMSolverMultistepScheduler(
            **common, timestep_spacing="trailing", thresholding=True, sample_max_value=1.0
        )
    return DDPMScheduler(**common)
