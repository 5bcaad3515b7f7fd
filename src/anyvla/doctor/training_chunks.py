"""Compute the chunks that training computes on recorded frames: its windows, its forward pass, no augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32

from anyvla.data.training.sampler import WindowIndices
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.decoders.base import DecoderInput
from anyvla.doctor.played import Played
from anyvla.policy import VLA
from anyvla.robot.views import crop_views, numbers_per_view
from anyvla.training.batches import to_batch
from anyvla.types import Batch


@torch.inference_mode()
def compute_training_chunks(
    vla: VLA, episodes: Sequence[Played], seeds: Sequence[int], stride: int
) -> list[Float32[np.ndarray, "K N A"]]:
    """Return the chunks at every `stride`-th step of each episode, in robot units.

    The noise of decoders that sample it is that of a session with the seed of the episode. Images are cropped in the
    center, as in acting, since a random crop is an augmentation.
    """
    steps = max(-(-len(episode) // vla.config.execute) for episode in episodes)
    window = WindowConfig(
        window=max(steps, 1) if vla.history.carries_state else vla.history.window,
        chunk=vla.config.chunk,
        stride=vla.config.execute,
        view=vla.config.view,
    )
    windows = WindowDataset(episodes[0].recording.mixture, window, trained=False)
    starts = [np.arange(0, len(episode), stride) for episode in episodes]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    lengths = vla.history.count_seen_steps(vla.backbone, max(map(len, starts)))
    chunks: list[list[np.ndarray]] = [[] for _ in episodes]
    for call, length in enumerate(lengths):
        acting = [i for i, own in enumerate(starts) if call < len(own)]
        recordings = [episodes[i].recording for i in acting]
        numbers = [windows.find_window(r.source, r.index, call * stride) for r in recordings]
        sources = np.array([r.source for r in recordings], np.int64)
        arrays = windows.batch(WindowIndices(sources, np.array(numbers), np.zeros(len(acting), np.uint64)))
        batch = _keep_newest(to_batch({**arrays}, vla.device), length)
        crops = numbers_per_view(vla.config.view.crop, batch.images, "crop")
        batch = replace(batch, images=crop_views(batch.images, crops, None))
        context = _select_last(vla.read(batch), batch)
        sampled = vla.decoder.sample(context, [generators[i] for i in acting])
        rows = vla.action_normalizer.denormalize(sampled, batch.robots).float().cpu().numpy()
        for i, row in zip(acting, rows, strict=True):
            chunks[i].append(row[:, vla.layout.robots[episodes[i].recording.robot].action])
    return [np.stack(own) for own in chunks]


def _keep_newest(batch: Batch, length: int) -> Batch:
    """Return the last `length` valid steps of windows that all have the same number of them."""
    valid = int(batch.step_mask[0].sum())
    kept = slice(max(0, valid - length), valid)
    fields = ("images", "proprio", "actions", "action_mask", "step_mask")
    return replace(batch, **{name: getattr(batch, name)[:, kept] for name in fields})


def _select_last(context: DecoderInput, batch: Batch) -> DecoderInput:
    """Return the decoder's input at the last step of each window."""
    steps = (np.cumsum(batch.step_mask.sum(1).tolist()) - 1).tolist()
    last = torch.tensor(steps, device=context.context.device)
    return DecoderInput(
        context.context[last],
        None if context.continuation is None else context.continuation.select(steps),
        None if context.learned_dims is None else context.learned_dims[last],
    )
