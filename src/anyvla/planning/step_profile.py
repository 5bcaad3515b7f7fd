"""Profile one training step on shapes: weights by part, memory over time, operations and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyvla.planning.dry_run import DryRun
from anyvla.planning.recorder import Recorder, Recording, steady_lifetimes
from anyvla.planning.timeline import Timeline, fit_timeline
from anyvla.planning.training_state import count_bytes, measure_state
from anyvla.policy import VLA, VLAConfig
from anyvla.report.explanation import ParameterCount, count_parameters, dummy_chunks, record_calls
from anyvla.robot.shared_layout import Robot
from anyvla.sequence.tokens import TokenSequence
from anyvla.training.checks import train_in_float32
from anyvla.training.config import TrainingConfig
from anyvla.training.layers import prepare_layers
from anyvla.training.parts import freeze_parts
from anyvla.types import Batch

# Windows of the two recordings. A batch of one would take shortcuts that larger ones do not take.
SIZES = (2, 3)


@dataclass(frozen=True)
class Inputs:
    """The facts about the inputs of a policy that decide its shapes."""

    robots: tuple[Robot, ...]
    image_size: tuple[int, int]  # of all views
    instruction: str
    codec: Path | None = None
    row: int | None = None  # steps of the longest row, where they are whole episodes; None: the history's window

    def count_steps(self, vla: VLA) -> int:
        """Return the steps of the longest window or row."""
        return self.row or vla.history.window


@dataclass(frozen=True)
class StepProfile:
    """The shapes of one training step of a policy."""

    parts: tuple[ParameterCount, ...]
    weights: int  # bytes, buffers included
    optimizer: int  # bytes of the optimizer's state
    average: int  # bytes of the average of the weights (training.ema)
    updating: int  # bytes that the optimizer takes for a moment while it changes the weights
    timeline: Timeline  # of the loss and its gradients
    flops: float  # of a window, forward and backward
    tokens: int  # of a window in the backbone, with those that the decoder reads there in training
    steps: int  # of a window


@dataclass(frozen=True)
class RecordedModel:
    """A policy on shapes with the recordings of a step, which hold for every optimizer and average of its weights."""

    dry: DryRun
    vla: VLA
    small: Recording
    large: Recording
    tokens: int


class StepProfiler:
    """Profiles the steps of several trainings on the same inputs. What they have in common is recorded once."""

    def __init__(self, inputs: Inputs, precision: torch.dtype, *, on_cpu: bool = True) -> None:
        """`precision`: of autocast; float32 is none. `on_cpu`: whether training runs there."""
        self._inputs, self._precision, self._on_cpu = inputs, precision, on_cpu
        self._recorded: dict[str, RecordedModel] = {}

    def profile(self, config: VLAConfig, training: TrainingConfig) -> StepProfile:
        """Run a step of training on shapes.

        Raises ConfigError if the policy cannot be built or trained in this precision, UnplannedOperation if its shapes
        depend on numbers.
        """
        key = repr((config, training.optim.parts, training.gradient_checkpointing))
        if key not in self._recorded:
            self._recorded[key] = self._record(config, training)
        recorded = self._recorded[key]
        vla, small, large = recorded.vla, recorded.small, recorded.large
        state = measure_state(recorded.dry, vla, training, on_cpu=self._on_cpu)
        return StepProfile(
            parts=tuple(count_parameters(vla)),
            weights=count_bytes([*vla.parameters(), *vla.buffers()]),
            optimizer=state.optimizer,
            average=state.average,
            updating=state.updating,
            timeline=fit_timeline(small, large, SIZES),
            flops=(large.flops - small.flops) / (SIZES[1] - SIZES[0]),
            tokens=recorded.tokens // SIZES[1],
            steps=self._inputs.count_steps(vla),
        )

    def _record(self, config: VLAConfig, training: TrainingConfig) -> RecordedModel:
        dry = DryRun()
        vla = dry.build(lambda: VLA(config, self._inputs.robots, codec=self._inputs.codec))
        freeze_parts(training.optim.parts, vla)
        train_in_float32(vla, self._precision)
        prepare_layers(vla, recomputed=training.gradient_checkpointing, compiled=False)
        vla.train()
        small, _ = _record_gradients(dry, vla, self._inputs, SIZES[0], self._precision)
        vla.zero_grad(set_to_none=True)
        large, tokens = _record_gradients(dry, vla, self._inputs, SIZES[1], self._precision)
        return RecordedModel(dry, vla, small, large, tokens)


def profile_step(
    config: VLAConfig, training: TrainingConfig, inputs: Inputs, precision: torch.dtype, *, on_cpu: bool = True
) -> StepProfile:
    """Build the policy without weights, and run a step of its training on shapes; see `StepProfiler`."""
    return StepProfiler(inputs, precision, on_cpu=on_cpu).profile(config, training)


def _record_gradients(
    dry: DryRun, vla: VLA, inputs: Inputs, windows: int, precision: torch.dtype
) -> tuple[Recording, int]:
    """Record the loss and the gradients of a batch. Return the recording and the tokens that the backbone read."""
    autocast = nullcontext() if precision == torch.float32 else torch.autocast("cpu", precision)
    recorder = Recorder()
    recorder.ignore((*vla.parameters(), *vla.buffers()))
    with steady_lifetimes():
        batch = make_batch(dry, vla, inputs, windows)
        for tensor in vars(batch).values():
            if isinstance(tensor, Tensor):
                recorder.hold(tensor)
        with dry.recorded(recorder), dry:
            with autocast, record_calls(vla.backbone) as calls:
                loss = vla.loss(batch, [torch.Generator().manual_seed(0) for _ in batch.instructions])
            loss.total.backward()
        recording = recorder.finish([p.grad for p in vla.parameters()])
    return recording, _count_tokens(calls)


def make_batch(dry: DryRun, vla: VLA, inputs: Inputs, windows: int) -> Batch:
    """Return a batch of full windows. Only its images are fake: codecs encode the numbers of actions."""
    steps, robot, chunk = inputs.count_steps(vla), vla.embodiment, vla.config.chunk
    height, width = inputs.image_size
    chunks = dummy_chunks(windows * steps, chunk, robot.action.size)
    return Batch(
        images=dry.empty(windows, steps, len(robot.cameras), height, width, 3, dtype=torch.uint8),
        proprio=torch.zeros(windows, steps, robot.proprio.size),
        instructions=[inputs.instruction] * windows,
        actions=chunks.unflatten(0, (windows, steps)),
        action_mask=torch.ones(windows, steps, chunk, dtype=torch.bool),
        step_mask=torch.ones(windows, steps, dtype=torch.bool),
        robots=torch.zeros(windows, dtype=torch.int64),
    )


def _count_tokens(calls: Sequence[TokenSequence]) -> int:
    return sum(int(sequence.attention_mask.sum()) for sequence in calls)
