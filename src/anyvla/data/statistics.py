"""Computes exact statistics of vectors and images, for normalization and for `meta/stats.json`.

Vectors are described per dim from all their rows; images per channel from 256-bin histograms, which add up over
episodes and so give exact minima, means and quantiles without keeping a frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int, Num

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def spread_evenly(count: int, most: int) -> Int[np.ndarray, "K"]:
    """Return at most `most` of the numbers 0 .. count - 1, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def compute_statistics(array: Num[np.ndarray, "T D"]) -> dict[str, list[float]]:
    """Return `{"min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99": D values each, "count": [T]}`.

    All values are computed in float64. Raises ValueError for an array that is empty, not of shape (T, D) or not finite.
    """
    values = np.asarray(array, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"statistics need an array of shape (T, D) with at least one row, got shape {values.shape}")
    if not np.isfinite(values).all():
        row, dim = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"statistics need finite numbers: row {row}, dim {dim} is {values[row, dim]}")
    out = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
    }
    out |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {key: value.tolist() for key, value in out.items()}


def image_histogram(frames: np.ndarray, most_frames: int = 100, most_side: int = 150) -> Int[np.ndarray, "3 256"]:
    """Count each value per channel in evenly spread frames of (T, H, W, 3) uint8; large images are subsampled."""
    step = -(-max(frames.shape[1:3]) // most_side)
    sample = frames[spread_evenly(len(frames), most_frames), ::step, ::step]
    return np.stack([np.bincount(sample[..., c].ravel(), minlength=256) for c in range(3)])


def image_statistics(histogram: Int[np.ndarray, "3 256"], frames: int) -> dict[str, Any]:
    """Return the statistics of pixels in [0, 1], each of shape (3, 1, 1); `count` is the number of frames."""
    levels = np.arange(256) / 255
    total = histogram.sum(axis=1)
    mean = histogram @ levels / total
    cumulative = histogram.cumsum(axis=1) / total[:, None]
    out = {
        "min": levels[(histogram > 0).argmax(axis=1)],
        "max": levels[255 - (histogram[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(histogram @ levels**2 / total - mean**2, 0)),
    }
    out |= {name: levels[(cumulative >= q - 1e-12).argmax(axis=1)] for name, q in QUANTILES.items()}
    return {key: value.reshape(3, 1, 1).tolist() for key, value in out.items()} | {"count": [frames]}
