"""The plan of a training before it runs: model, memory, samples and time, and the changes that make it fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anyvla.planning.gpus import Gpu, find_gpu, parse_gpu
from anyvla.planning.inputs import find_data, planned_inputs
from anyvla.planning.known_models import planned_shapes
from anyvla.planning.memory import (
    MemoryUse,
    cpu_budget,
    find_largest_batch,
    gpu_budget,
    host_memory,
    measure_use,
)
from anyvla.planning.remedies import Remedy, find_remedies
from anyvla.planning.speed import Speed, assume_speed, measure_speed, read_speed
from anyvla.planning.step_profile import StepProfile, StepProfiler
from anyvla.recipe import Recipe
from anyvla.report.explanation import ParameterCount
from anyvla.training.device import pick_device, pick_precision
from anyvla.training.features import freezes_vision, why_not_kept

SCHEMA = 1  # of the JSON
LESS = 0.8  # of the memory of a training that failed, for changes that shall prevent it


@dataclass(frozen=True)
class Plan:
    """The plan of a training. Sizes are bytes, a window is a sample."""

    name: str
    device: str
    precision: str
    parameters: tuple[ParameterCount, ...]
    tokens: int  # of a window
    steps_of_a_window: int
    batch_size: int
    accumulate: int
    memory: MemoryUse
    available: float
    host: Mapping[str, float]
    largest_batch: int  # windows at once; 0: not even one fits
    episodes: int | None
    windows: int | None  # of an epoch
    training_steps: int
    flops: float  # of a window, forward and backward
    speed: Speed | None
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    def hours(self, flops: float | None = None) -> float | None:
        """Return the hours of training, with these operations for each window; None without a speed."""
        if self.speed is None:
            return None
        return self.training_steps * self.batch_size * (flops or self.flops) / self.speed.flops / 3600

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        epoch = None if self.windows is None else {
            "episodes": self.episodes,
            "samples": self.windows,
            "steps": self.windows / self.batch_size,
            "epochs": self.training_steps * self.batch_size / self.windows,
        }  # fmt: skip
        return {
            "schema": SCHEMA,
            "name": self.name,
            "device": self.device,
            "precision": self.precision,
            "parameters": [asdict(part) for part in self.parameters],
            "tokens_per_sample": self.tokens,
            "steps_per_sample": self.steps_of_a_window,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "memory": {"parts": dict(self.memory.parts), "total": self.memory.total, "available": self.available},
            "host_memory": dict(self.host),
            "fits": self.fits,
            "largest_batch": self.largest_batch,
            "epoch": epoch,
            "steps": self.training_steps,
            "flops": {"per_sample": self.flops, "per_step": self.flops * self.batch_size},
            "hours": self.hours(),
            "speed": None if self.speed is None else asdict(self.speed),
            "remedies": [
                {
                    "options": list(r.options),
                    "cost": r.cost,
                    "memory": {"parts": dict(r.use.parts), "total": r.use.total},
                    "accumulate": r.accumulate,
                    "largest_batch": r.largest_batch,
                    "trained": r.trained,
                    "flops_per_step": r.flops * self.batch_size,
                    "hours": self.hours(r.flops),
                }
                for r in self.remedies
            ],
            "notes": list(self.notes),
        }


def make_plan(
    recipe: Recipe,
    run: Path,
    *,
    gpu: str | None = None,
    rate: Path | None = None,
    benchmark: bool = False,
    remedies: int = 4,
    failed: bool = False,
) -> Plan:
    """Plan the training of a recipe in its run folder, without weights and without reading data beyond the index.

    `gpu`: a size or a name to plan for (`parse_gpu`); None: the recipe's device here. `rate`: a run whose speed is
    taken. `benchmark`: measure the speed here. `remedies`: the most changes to list where training does not fit, which
    takes seconds for each. `failed`: training ran out of memory, whatever the plan says, so that changes must take
    clearly less. Raises ConfigError, and ValueError for a backbone that cannot be planned.
    """
    training = recipe.training
    card, precision = _choose_device(recipe, gpu)
    data = find_data(recipe, run)
    with (
        quiet("anyvla.representations", "bitsandbytes"),
        planned_shapes(recipe) as (recipe, bundled),
        planned_inputs(recipe.model, data, run) as inputs,
    ):
        profiler = StepProfiler(inputs, precision, on_cpu=card is None)

        def profile(changed: Recipe) -> StepProfile:
            return profiler.profile(changed.model, changed.training)

        profiled = profile(recipe)
        host = host_memory(data, recipe.data, profiled, training.batch_size)
        budget = cpu_budget(host) if card is None else gpu_budget(card)
        use = measure_use(profiled, budget, training.batch_size, training.accumulate)
        available, largest = budget.available, find_largest_batch(profiled, budget)
        fits = use.total <= available
        speed = _find_speed(card, precision, profiled, rate)
        if benchmark:
            speed = measure_speed(recipe, inputs, profiled) if fits else None
        found: list[Remedy] = []
        unplanned: tuple[str, ...] = ()
        if failed:
            budget = replace(budget, available=min(budget.available, LESS * use.total))
        if remedies and (failed or not fits):
            found, unplanned = find_remedies(recipe, profiled, budget, profile, remedies, precision=precision)
    return Plan(
        name=recipe.name,
        device=budget.name,
        precision=str(precision).removeprefix("torch."),
        parameters=profiled.parts,
        tokens=profiled.tokens,
        steps_of_a_window=profiled.steps,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        memory=use,
        available=available,
        host=host,
        largest_batch=largest,
        episodes=data.episodes,
        windows=data.windows,
        training_steps=training.steps,
        flops=profiled.flops,
        speed=speed,
        remedies=tuple(found),
        notes=(
            *data.notes,
            *bundled,
            *budget.assumptions,
            *unplanned,
            *_note_speed(speed, benchmark),
            *_note_features(recipe),
        ),
    )


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence loggers: made-up chunks are cut, and bitsandbytes looks for kernels that a plan does not run."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _choose_device(recipe: Recipe, gpu: str | None) -> tuple[Gpu | None, torch.dtype]:
    """Return the GPU to plan for (None: the CPU) and the precision of training there."""
    name = recipe.training.precision
    if gpu is not None:
        card = parse_gpu(gpu)
        automatic = torch.bfloat16 if card.has_bfloat16 else torch.float32
        return card, automatic if name == "auto" else getattr(torch, name)
    device = pick_device(recipe.training.device)
    return (find_gpu() if device.type == "cuda" else None), pick_precision(name, device)


def _find_speed(card: Gpu | None, precision: torch.dtype, profiled: StepProfile, rate: Path | None) -> Speed | None:
    if rate is not None:
        return read_speed(rate, profiled)
    return None if card is None else assume_speed(card, precision)


def _note_features(recipe: Recipe) -> tuple[str, ...]:
    if not freezes_vision(recipe):
        return ()
    if reason := why_not_kept(recipe):
        return (f"features of the frozen vision tower are computed at each use: {reason}",)
    return ("features of the frozen vision tower are computed once for each image, which the hours leave out",)


def _note_speed(speed: Speed | None, benchmark: bool) -> tuple[str, ...]:
    if speed is not None:
        return (f"speed {speed.origin}",)
    if benchmark:
        return ("the speed was not measured, because training does not fit here",)
    return ("hours need a speed: --gpu NAME, as in --gpu h100, --rate RUN of an earlier run, or --benchmark",)
