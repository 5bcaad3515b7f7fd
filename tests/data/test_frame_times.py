from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.frame_times import shown_at, video_frames


def even(rate, count=200):
    return np.arange(count) / rate, count / rate


@pytest.mark.parametrize(
    ("video", "data", "expected"),
    [
        (50, 25, [0, 2, 4, 6, 8, 10]),
        (25, 50, [0, 0, 1, 1, 2, 2]),
        (10, 30, [0, 0, 0, 1, 1, 1]),
        (30, 10, [0, 3, 6, 9, 12, 15]),
        (15, 60, [0, 0, 0, 0, 1, 1]),
        (60, 15, [0, 4, 8, 12, 16, 20]),
        (29.97, 30, [0, 1, 2, 3, 4, 5]),
        (30, 29.97, [0, 1, 2, 3, 4, 5]),
        (30, 20, [0, 1, 3, 4, 6, 7]),  # a time right between two frames belongs to the one that is shown
    ],
)
def test_rates(video, data, expected):
    starts, end = even(video)
    for seconds in (np.float64, np.float32):  # float32 may fall just below where a frame begins
        times = (np.arange(6) / data).astype(seconds).astype(float)
        assert video_frames(starts, end, times, 1 / data).tolist() == expected
        assert video_frames(starts + 2, end + 2, times + 2 - 1e-6, 1 / data).tolist() == expected


@given(video=st.floats(2, 120), data=st.floats(2, 120), jitter=st.integers(0, 2**32 - 1), uneven=st.floats(0, 0.9))
def test_the_frame_is_the_one_shown_within_half_a_frame(video, data, jitter, uneven):
    rng = np.random.default_rng(jitter)
    gaps = (1 + uneven * rng.uniform(-1, 1, 60)) / video
    starts = np.concatenate([[0.0], np.cumsum(gaps[:-1])])
    end = starts[-1] + gaps[-1]
    times = np.arange(0, end, 1 / data)
    found = video_frames(starts, end, times, 1 / data)
    half = np.minimum(np.append(gaps[0], gaps[:-1]), 1 / data) / 2
    there = found >= 0
    assert (starts[found[there]] <= times[there] + half[found[there]]).all()
    strictly = shown_at(starts, times, 0.0)
    assert (found[there] >= strictly[there]).all()
    assert (np.diff(found[there]) >= 0).all()
    assert there[times < end - 0.05 / video].all()


def test_the_end_and_the_begin():
    starts, end = even(10, 5)
    assert video_frames(starts, end, np.array([0.4, 0.49, 0.5, np.float32(0.5) - 1e-6, 9.0]), 0.1).tolist() == [
        4, 4, -1, -1, -1,
    ]  # fmt: skip
    assert video_frames(starts, end, np.array([-1e-6, -0.2]), 0.1).tolist() == [0, -1]
    assert video_frames(np.zeros(1), 0.1, np.array([0.0, 0.2]), 0.1).tolist() == [0, -1]
    # a frame that lasts long is shown until the next one begins, but for half a step of the data
    assert video_frames(np.array([0.0, 1.0]), 2.0, np.array([0.4, 0.6, 0.9, 0.96]), 0.1).tolist() == [0, 0, 0, 1]
