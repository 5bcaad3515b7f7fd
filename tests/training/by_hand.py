"""Training written out by hand, as a reference: windows, batches, seeds, the loss and AdamW.

It uses the model, the augmentation and the sampler of anyvla, but nothing of `anyvla.training`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyvla.data.episode import EpisodeDataset
from anyvla.data.training.augment import AugmentConfig, augment
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import MixtureSampler, WindowIndices
from anyvla.policy import VLA, VLAConfig
from anyvla.robot.shared_layout import Robot
from anyvla.types import Batch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a run, without defaults."""

    steps: int
    batch_size: int
    accumulate: int
    seed: int
    bfloat16: bool
    lr: float
    final_lr: float | None  # None: the rate is constant after warm-up
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    shift: int
    window: int
    stride: int
    crop: float

    def section(self, **more: Any) -> dict[str, Any]:
        """Return the same numbers as the section `training` of a recipe."""
        optim: dict[str, Any] = {"schedule": "constant"} if self.final_lr is None else {"final_lr": self.final_lr}
        optim |= {name: getattr(self, name) for name in ("lr", "warmup_steps", "weight_decay", "betas", "clip")}
        return {
            **{name: getattr(self, name) for name in ("steps", "batch_size", "accumulate", "seed")},
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "optim": optim,
            "augment": {"shift": self.shift},
            "device": "cpu",
        } | more


@dataclass(frozen=True)
class Step:
    """The policy after a step, and the expected numbers of its log line."""

    weights: dict[str, Tensor]
    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float


def seed_of(*numbers: int) -> int:
    """Return the upper 63 bits of the first number that NumPy's SeedSequence generates."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) // 2


def rate(s: Settings, step: int) -> float:
    """Return the learning rate of step 1, 2, ...: a line up to `lr`, then half a cosine down to `final_lr`."""
    if step <= s.warmup_steps:
        return s.lr * step / s.warmup_steps
    if s.final_lr is None:
        return s.lr
    passed = (step - 1 - s.warmup_steps) / (s.steps - s.warmup_steps)
    return s.final_lr + (s.lr - s.final_lr) * (1 + math.cos(math.pi * passed)) / 2


def windows_of(s: Settings, dataset: EpisodeDataset, chunk: int) -> list[tuple[Any, ...]]:
    """Return the windows that end at each step of each episode and after it: the fields of a batch but the robot."""
    out = []
    for episode in (dataset[index] for index in range(len(dataset))):
        frames = [torch.from_numpy(episode.images[camera][:].copy()) for camera in ("corner", "wrist")]
        state, commands = torch.from_numpy(episode.proprio.copy()), torch.from_numpy(episode.actions.copy())
        [text] = episode.instructions
        assert s.stride <= len(episode)
        for last in range(len(episode) + (s.window - 1) * s.stride):
            seen = [t for t in range(last - (s.window - 1) * s.stride, last + 1, s.stride) if 0 <= t < len(episode)]
            images = torch.zeros(s.window, 2, *frames[0].shape[1:], dtype=torch.uint8)
            proprio, actions = torch.zeros(s.window, 3), torch.zeros(s.window, chunk, 4)
            there, valid = torch.zeros(s.window, chunk, dtype=torch.bool), torch.zeros(s.window, dtype=torch.bool)
            for k, t in enumerate(seen):
                valid[k] = True
                proprio[k] = state[t]
                images[k] = torch.stack([camera[t] for camera in frames])
                for n in range(min(chunk, len(episode) - t)):
                    there[k, n] = True
                    actions[k, n] = commands[t + n]
            out.append((images, proprio, text, actions, there, valid))
    return out


def batch_of(
    s: Settings, windows: list[list[tuple[Any, ...]]], robots: list[int], draw: WindowIndices, step: int
) -> Batch:
    """Return the batch of step 0, 1, ..., its images augmented. `windows` and `robots`: of each source."""
    rows = [windows[source][number] for source, number in zip(draw.sources, draw.windows, strict=True)]
    images, proprio, instructions, actions, there, valid = (list(column) for column in zip(*rows, strict=True))
    counts = [int(own.sum()) for own in valid]
    moves = generators_of(s.seed, step, 2, range(s.batch_size))
    return Batch(
        images=augment(torch.stack(images), AugmentConfig(shift=s.shift), s.crop, moves, counts),
        proprio=torch.stack(proprio),
        instructions=instructions,
        actions=torch.stack(actions),
        action_mask=torch.stack(there),
        step_mask=torch.stack(valid),
        robots=torch.tensor([robots[source] for source in draw.sources]),
    )


def generators_of(seed: int, step: int, kind: int, rows: range) -> list[torch.Generator]:
    """Return the generator of each row of the whole batch of step 0, 1, ...: of its noise (0) or its images (2)."""
    numbers = np.random.SeedSequence((seed, step, 0, kind)).generate_state(rows.stop, np.uint64)
    return [torch.Generator().manual_seed(int(numbers[row]) // 2) for row in rows]


def distances(vla: VLA, batch: Batch, noise: list[torch.Generator]) -> dict[str, Tensor] | Tensor:
    """Return the sum of the distances of each group of actions; of a flow decoder, the sum of all."""
    context, valid = vla.read(batch), batch.step_mask
    target, there = vla.action_normalizer.normalize(batch.actions, batch.robots)[valid], batch.action_mask[valid]
    if vla.config.decoder.name == "flow":
        each = [g for g, own in zip(noise, valid, strict=True) for _ in range(int(own.sum()))]
        return vla.decoder.loss(context, target, there, each).total
    off = (vla.decoder(context.context).float() - target).abs() * there[..., None]
    if "still" in vla.layout.names:  # its second dim never varies
        off = off[..., [0, 2, 3]]
    return {"position": off[..., :-1].sum(), "gripper": off[..., -1].sum()}


def join(batches: list[Batch]) -> Batch:
    columns = {name: [getattr(b, name) for b in batches] for name in vars(batches[0])}
    for name in ("samples", "first_row", "tokens", "counts"):
        del columns[name]
    texts = [text for (text,) in columns.pop("instructions")]
    return Batch(instructions=texts, **{name: torch.cat(of) for name, of in columns.items()})


def loss_by_hand(vla: VLA, batches: list[Batch], seed: int, size: int, first: int) -> tuple[float, float]:
    """Return the summed loss of the windows of one data set and the number of elements. `first`: its first window."""
    total = count = 0.0
    for begin in range(0, len(batches), size):
        part = join(batches[begin : begin + size])
        row = first + begin
        noise = generators_of(seed, 0, 0, range(row, row + len(part.instructions)))
        with torch.no_grad():
            off = distances(vla, part, noise)
        total += float(sum(off.values()) if isinstance(off, dict) else off)
        count += 4 * int(part.action_mask.sum())
    return total, count


def train_by_hand(s: Settings, model: VLAConfig, mixture: Mixture, robots: list[Robot]) -> Iterator[Step]:
    """Yield each step of a training."""
    hanging = (s.window - 1) * s.stride  # windows that end after each episode
    sizes = [sum(int(length) + hanging for length in d.lengths) for d in mixture.datasets]
    shares = [a * b / int(d.lengths.sum()) for a, b, d in zip(mixture.shares, sizes, mixture.datasets, strict=True)]
    sampler = MixtureSampler(sizes, shares, s.batch_size, s.seed)
    torch.manual_seed(s.seed)
    vla = VLA(model, robots)
    vla.train()
    trained = {name: p for name, p in vla.named_parameters() if p.requires_grad}
    first = {name: torch.zeros_like(p) for name, p in trained.items()}  # AdamW's moving averages of the gradient
    second = {name: torch.zeros_like(p) for name, p in trained.items()}  # and of its square
    dims = 3 if "still" in vla.layout.names else 4
    windows = [windows_of(s, dataset, model.chunk) for dataset in mixture.datasets]
    of_source = [vla.layout.names.index(dataset.embodiment.name) for dataset in mixture.datasets]
    for step in range(s.steps):
        batch = batch_of(s, windows, of_source, sampler.sample(step), step)
        elements = {"position": int(batch.action_mask.sum()) * (dims - 1), "gripper": int(batch.action_mask.sum())}
        vla.zero_grad()
        loss, parts = 0.0, {}
        size = s.batch_size // s.accumulate
        for number in range(s.accumulate):
            begin, end = number * size, (number + 1) * size
            torch.manual_seed(seed_of(s.seed, step, begin, 1))  # of dropout
            noise = generators_of(s.seed, step, 0, range(begin, end))
            with torch.autocast("cpu", torch.bfloat16, enabled=s.bfloat16):
                off = distances(vla, batch.cut(begin, end), noise)
            total = sum(off.values()) if isinstance(off, dict) else off
            assert isinstance(total, Tensor)
            (total / sum(elements.values())).backward()
            loss += total.item() / sum(elements.values())
            for name, of in off.items() if isinstance(off, dict) else ():
                parts[name] = parts.get(name, 0.0) + of.item() / elements[name]
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trained.values() if p.grad is not None))
        for name, p in trained.items():
            if p.grad is not None:
                gradient = p.grad * min(1.0, s.clip / norm)
                _adamw(s, step + 1, name, p, gradient, first[name], second[name])
        weights = {name: value.clone() for name, value in vla.state_dict().items()}
        yield Step(weights, loss, parts, rate(s, step + 1), norm)


@torch.no_grad()
def _adamw(s: Settings, step: int, name: str, p: Tensor, gradient: Tensor, first: Tensor, second: Tensor) -> None:
    """Update a parameter at step 1, 2, ... as Algorithm 2 of arXiv 1711.05101 does; only matrices decay."""
    one, two = s.betas
    first.mul_(one).add_((1 - one) * gradient)
    second.mul_(two).add_((1 - two) * gradient**2)
    decay = s.weight_decay if p.ndim > 1 and name != "queries" else 0.0
    update = (first / (1 - one**step)) / ((second / (1 - two**step)).sqrt() + 1e-8)
    p.sub_(rate(s, step) * (update + decay * p))
