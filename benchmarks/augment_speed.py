"""Measure the speed of batched augmentation against a loop over samples and views.

    python benchmarks/augment_speed.py [--batch 32] [--window 2] [--views 2] [--size 96] [--rounds 15] [--json]

Both shift and jitter the same batch by the same amounts, alternating on one thread, in CPU time. The loop
has neither crops nor hue; their cost is measured separately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8

from anyvla.config import build
from anyvla.data.training.augment import AugmentConfig, augment

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SHIFT, JITTER = 3, 0.2


def looped_shift(images: UInt8[np.ndarray, "B W V H W 3"], rng: np.random.Generator) -> np.ndarray:
    """Shift with one slice assignment per sample and view, repeating edges."""
    batch, _, views, height, width, _ = images.shape
    moves = rng.integers(-SHIFT, SHIFT + 1, size=(batch, views, 2)).tolist()
    out = np.empty_like(images)
    for b in range(batch):
        for v in range(views):
            dy, dx = moves[b][v]
            source, target = images[b, :, v], out[b, :, v]
            rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
            target[:, rows, columns] = source[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
            if dx > 0:
                target[:, rows, :dx] = target[:, rows, dx : dx + 1]
            elif dx < 0:
                target[:, rows, dx:] = target[:, rows, dx - 1 : dx]
            if dy > 0:
                target[:, :dy] = target[:, dy : dy + 1]
            elif dy < 0:
                target[:, dy:] = target[:, dy - 1 : dy]
    return out


def looped_jitter(images: UInt8[np.ndarray, "B W V H W 3"], rng: np.random.Generator) -> np.ndarray:
    """Jitter colors with one matrix product per sample and view."""
    amounts = np.full(3, JITTER, np.float32)
    factors = 1 + amounts * rng.uniform(-1, 1, size=(images.shape[0], images.shape[2], 3)).astype(np.float32)
    out = np.empty_like(images)
    gray_part = np.outer(np.ones(3, np.float32), LUMA)
    for b, v in np.ndindex(*factors.shape[:2]):
        bright, contrasted, saturated = factors[b, v]
        pixels = images[b, :, v].astype(np.float32)
        mean_gray = pixels.mean(axis=(0, 1, 2)) @ LUMA
        matrix = bright * contrasted * (saturated * np.eye(3, dtype=np.float32) + (1 - saturated) * gray_part)
        pixels = pixels @ matrix.T
        pixels += bright * (1 - contrasted) * mean_gray + 0.5
        out[b, :, v] = np.clip(pixels, 0, 255, out=pixels)
    return out


def milliseconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the times of each variant, in alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            if i:  # the first round warms up
                times[name].append(1e3 * (time.process_time() - begin))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 32), ("window", 2), ("views", 2), ("size", 96), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)

    rng = np.random.default_rng(0)
    generators = [torch.Generator().manual_seed(row) for row in range(options.batch)]
    shape = (options.batch, options.window, options.views, options.size, options.size, 3)
    images = rng.integers(0, 256, shape, np.uint8)
    tensor = torch.from_numpy(images)
    still = {"shift": 0}
    jitter = {"brightness": JITTER, "contrast": JITTER, "saturation": JITTER}

    def now(crop: float = 1.0, **fields: float) -> Callable[[], object]:
        config = build(AugmentConfig, fields)
        return lambda: augment(tensor, config, crop, generators, [options.window] * options.batch)

    times = milliseconds(
        {
            "shift, loop": lambda: looped_shift(images, rng),
            "shift, now": now(shift=SHIFT),
            "jitter, loop": lambda: looped_jitter(images, rng),
            "jitter, now": now(**still, **jitter),
            "jitter with hue, now": now(**still, **jitter, hue=0.05),
            "crop to 0.9, now": now(0.9, **still),
            "all, now": now(0.9, shift=SHIFT, **jitter, hue=0.05),
        },
        options.rounds,
    )
    ratios = {
        what: [a / b for a, b in zip(times[f"{what}, loop"], times[f"{what}, now"], strict=True)]
        for what in ("shift", "jitter")
    }
    if options.json:
        print(json.dumps({"shape": shape, "milliseconds": times, "times_as_fast": ratios}))
        return
    print(f"batch {shape}, median of {options.rounds} rounds")
    for name, values in times.items():
        print(f"{name:24s} {statistics.median(values):8.1f} ms")
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name}: {middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
