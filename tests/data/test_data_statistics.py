from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anyvla.data.statistics import QUANTILES, compute_statistics, image_histogram, image_statistics


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, width=32))
)
def test_statistics_are_exact_and_ordered(array):
    out = compute_statistics(array)
    assert set(out) == {"min", "max", "mean", "std", "count", *QUANTILES}
    assert out["count"] == [len(array)]
    assert out["min"] == array.min(axis=0).tolist()
    assert np.allclose(out["mean"], array.astype(np.float64).mean(axis=0))
    assert np.allclose(out["q10"], np.quantile(array.astype(np.float64), 0.1, axis=0))
    ordered = np.array([out[k] for k in ("min", "q01", "q10", "q50", "q90", "q99", "max")])
    assert (np.diff(ordered, axis=0) >= -1e-9 * np.abs(ordered).max()).all()


def test_statistics_of_the_numbers_from_0_to_100():
    column = np.random.default_rng(0).permutation(101).astype(np.float32)
    out = compute_statistics(np.stack([column, 2 * column - 7], 1))
    first = {key: values[0] for key, values in out.items()}
    assert first == pytest.approx(
        {
            "min": 0, "q01": 1, "q10": 10, "q50": 50, "q90": 90, "q99": 99, "max": 100,
            "mean": 50, "std": 850**0.5, "count": 101,
        }
    )  # fmt: skip
    second = {key: values[1] for key, values in out.items() if key not in ("count", "std")}
    assert second == pytest.approx({key: 2 * first[key] - 7 for key in second})
    assert out["std"][1] == pytest.approx(2 * 850**0.5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 3)), r"at least one row, got shape \(0, 3\)"),
        (np.zeros(3), r"shape \(T, D\)"),
        (np.array([[0.0, 1.0], [2.0, np.inf]]), "row 1, dim 1 is inf"),
    ],
)
def test_arrays_without_statistics_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        compute_statistics(array)


def test_histograms_of_episodes_add_up():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, high, (n, 12, 10, 3), dtype=np.uint8) for n, high in ((5, 256), (9, 80)))
    both = np.concatenate([a, b])
    stats = image_statistics(image_histogram(a) + image_histogram(b), 14)
    assert np.allclose(np.ravel(stats["mean"]), both.mean(axis=(0, 1, 2)) / 255)
    assert np.allclose(np.ravel(stats["std"]), both.std(axis=(0, 1, 2)) / 255)
    assert np.allclose(np.ravel(stats["q50"]), np.quantile(both, 0.5, axis=(0, 1, 2), method="inverted_cdf") / 255)
    assert np.shape(stats["max"]) == (3, 1, 1)


def test_long_and_large_videos_are_thinned_out():
    frames = np.zeros((250, 4, 301, 3), np.uint8)
    assert image_histogram(frames).sum(axis=1).tolist() == [100 * 2 * 101] * 3


def test_statistics_of_images_are_of_each_channel_from_red_to_blue():
    frames = np.empty((4, 6, 8, 3), np.uint8)
    frames[..., 0] = np.array([0, 51, 51, 102])[:, None, None]
    frames[..., 1] = 255
    frames[..., 2] = 25 * np.arange(8)
    out = {key: np.ravel(of).tolist() for key, of in image_statistics(image_histogram(frames), 4).items()}
    assert out["min"] == pytest.approx([0, 1, 0])
    assert out["max"] == pytest.approx([0.4, 1, 175 / 255])
    assert out["mean"] == pytest.approx([0.2, 1, 87.5 / 255])
    assert out["std"] == pytest.approx([0.02**0.5, 0, 25 * 5.25**0.5 / 255], abs=1e-7)
    assert out["q01"] == pytest.approx([0, 1, 0])
    assert out["q50"] == pytest.approx([0.2, 1, 75 / 255])  # half of blue is at most 75
    assert out["q99"] == pytest.approx([0.4, 1, 175 / 255])
    assert out["count"] == [4]


def test_frames_are_thinned_out_evenly():
    frames = np.arange(201, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    seen = np.flatnonzero(image_histogram(frames, most_frames=5)[0])
    assert seen.tolist() == [0, 50, 100, 150, 200]
