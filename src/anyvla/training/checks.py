"""Checks of the data and of the weights before the first step of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from anyvla.config import ConfigError
from anyvla.policy import VLA, NormalizationConfig
from anyvla.robot.ranges import compute_scalings, describe_unusual_dims
from anyvla.robot.shared_layout import Robot


def describe_robot_dims(robots: Sequence[Robot], scaling: NormalizationConfig) -> list[str]:
    """Return a sentence for each dim that never varies, that quantiles would cut off, or that has spikes."""
    out = []
    for robot in robots:
        own, of = robot.embodiment, robot.statistics
        found = describe_unusual_dims(own.action, of.action, scaling.action, "action")
        found += describe_unusual_dims(own.proprio, of.proprio, scaling.proprio, "proprio")
        out += [f"{own.name}, {note}" if len(robots) > 1 else note for note in found]
    return out


def check_actions_vary(robots: Sequence[Robot], scaling: NormalizationConfig) -> None:
    """Raise ConfigError for a robot whose actions are all the same: its data teaches nothing."""
    for robot in robots:
        space, of = robot.embodiment.action, robot.statistics.action
        if not any(limit for _, _, limit in compute_scalings(space, of, scaling.action)):
            raise ConfigError(
                f"no action of robot {robot.embodiment.name!r} ever varies in this data, so that there is nothing to "
                "learn: look at them with anyvla data statistics, and choose the column that holds the commands"
            )


def check_batch_size(size: int, windows: int) -> None:
    """Raise ConfigError for a batch of more windows than the data have, which would hold some of them twice."""
    if size > windows:
        raise ConfigError(
            f"training.batch_size is {size}, but the data have {windows} windows: give --training.batch_size {windows} "
            "or less, or more data"
        )


def train_in_float32(vla: VLA, precision: torch.dtype) -> None:
    """Keep all trained weights in float32, whatever `backbone.dtype` is; frozen ones keep that type, but for norms.

    An optimizer's steps are too small for 16 bits: bfloat16 has 8 bits of mantissa, and at a learning rate of 2e-5
    about 70 % of typical weights would never move in 100 steps. Frozen layer and group norms become float32 beside
    trained weights: on a CPU, norms in bfloat16 refuse the float32 activations of trained layers, and autocast on a GPU
    computes norms in float32 anyway.

    Raises ConfigError, with the remedies, if frozen weights in 16 bits remain and `precision` is not bfloat16: only
    autocast to it joins the two.
    """
    half = {p for p in vla.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    trained = {p for p in half if p.requires_grad}
    for weight in trained:
        weight.data = weight.data.float()
    if not trained or not half - trained:
        return
    if precision != torch.bfloat16:
        kind = str(next(iter(half - trained)).dtype).removeprefix("torch.")
        raise ConfigError(
            f"frozen weights are kept in {kind} and trained ones in float32, which needs autocast to bfloat16: use "
            "--training.precision bfloat16, or --model.backbone.dtype float32 (faster on a CPU without bfloat16)"
        )
    for module in vla.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            for weight in module.parameters():
                weight.data = weight.data.float()
