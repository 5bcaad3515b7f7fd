"""Policies in the shapes of published models with random weights, for measurements without a network."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from anyvla.backbones.adapting.architecture_only import architecture_only
from anyvla.config import build
from anyvla.planning.inputs import ORDINARY_ARM, DataFacts, planned_inputs
from anyvla.planning.known_models import planned_shapes
from anyvla.planning.speed import make_up_batch
from anyvla.planning.step_profile import Inputs
from anyvla.policy import VLA
from anyvla.recipe import Recipe, read
from anyvla.robot.embodiment import Embodiment
from anyvla.training.checks import train_in_float32
from anyvla.training.device import pick_precision
from anyvla.training.layers import prepare_layers
from anyvla.training.parts import freeze_parts
from anyvla.training.state import TrainingState
from anyvla.training.step import OptimizerStep
from anyvla.types import Batch

INSTRUCTION = "put the red cup on the plate and close the drawer"
TINY = {"name": "tiny", "family": "paligemma", "width": 64, "heads": 4, "image_size": 64, "prompt": "{instruction}"}
SMALL = [  # changes of the recipe pi0 that make it small
    f"--model.backbone={TINY}",
    "--model.decoder={name: expert, width: 32, mlp: 64, heads: 4}",
    "--model.chunk=8",
    "--model.execute=4",
]


def read_pi0(small: bool, changes: list[str]) -> Recipe:
    """Return the recipe pi0 with changes, as options of a command: PaliGemma 3B and an expert of 300M weights."""
    return read("pi0", [*(SMALL if small else []), *changes])


def make_policy(recipe: Recipe, device: torch.device) -> tuple[VLA, Inputs]:
    """Return a policy for an arm with two cameras of 224 pixels (tiny backbones: 64), and the facts of its inputs.

    The backbone's weights are random, and made on the device, where that takes a second.
    """
    robot = build(Embodiment, ORDINARY_ARM)
    side = getattr(recipe.model.backbone.config, "image_size", None) or 224
    facts = DataFacts((robot,), (side, side), INSTRUCTION, None, None, None, ())
    torch.manual_seed(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        planned_shapes(recipe) as (known, _),
        planned_inputs(known.model, facts, Path(folder)) as inputs,
        architecture_only(),
    ):
        vla = VLA(known.model, inputs.robots, codec=inputs.codec)
    vla.to(device)
    with torch.no_grad():
        for name, weight in vla.backbone.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.02)
            else:  # biases, and norms: Gemma's add 1 to their weight
                weight.fill_(1.0 if "norm" in name and "language" not in name and name.endswith("weight") else 0.0)
    return vla, inputs


class Training:
    """Optimizer steps of a recipe on made-up batches, as `anyvla train` makes them."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        config = recipe.training
        self.vla, inputs = make_policy(recipe, device)
        precision = pick_precision(config.precision, device)
        freeze_parts(config.optim.parts, self.vla)
        train_in_float32(self.vla, precision)
        self.vla.train()
        self.take_step = OptimizerStep(TrainingState(self.vla, config.optim, config.ema, precision), config, device)
        self.batch: Batch = make_up_batch(self.vla, inputs, config.batch_size)
        if device.type == "cuda":
            self.batch = self.batch.pin_memory()
        self.done = 0
        self.flops = self.take_step.count_flops(self.batch)  # of a sample, without what layers compute again
        prepare_layers(self.vla, recomputed=config.gradient_checkpointing, compiled=config.compile)

    def step(self) -> None:
        """Make a step."""
        self.take_step(self.batch, self.done, None)
        self.done += 1


def count_weights(module: nn.Module, *, trained: bool = False) -> int:
    """Return the number of weights, or of trained ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
