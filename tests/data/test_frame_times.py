from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.frame_times import find_shown_frames, find_video_frames


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
def test_the_frames_shown_at_other_rates(video, data, expected):
    starts, end = even(video)
    for seconds in (np.float64, np.float32):  # in float32, a time may be just before the start of a frame
        times = (np.arange(6) / data).astype(seconds).astype(float)
        assert find_video_frames(starts, end, times, 1 / data).tolist() == expected
        assert find_video_frames(starts + 2, end + 2, times + 2 - 1e-6, 1 / data).tolist() == expected


@given(video=st.floats(2, 120), data=st.floats(2, 120), jitter=st.integers(0, 2**32 - 1), uneven=st.floats(0, 0.9))
def test_the_frame_is_the_one_shown_within_half_a_frame(video, data, jitter, uneven):
    rng = np.random.default_rng(jitter)
    gaps = (1 + uneven * rng.uniform(-1, 1, 60)) / video
    starts = np.concatenate([[0.0], np.cumsum(gaps[:-1])])
    end = starts[-1] + gaps[-1]
    times = np.arange(0, end, 1 / data)
    found = find_video_frames(starts, end, times, 1 / data)
    half = np.minimum(np.append(gaps[0], gaps[:-1]), 1 / data) / 2
    there = found >= 0
    assert (starts[found[there]] <= times[there] + half[found[there]]).all()
    strictly = find_shown_frames(starts, times, 0.0)
    assert (found[there] >= strictly[there]).all()
    assert (np.diff(found[there]) >= 0).all()
    assert there[times < end - 0.05 / video].all()


def test_times_outside_of_a_video_show_no_frame():
    starts, end = even(10, 5)
    assert find_video_frames(starts, end, np.array([0.4, 0.49, 0.5, np.float32(0.5) - 1e-6, 9.0]), 0.1).tolist() == [
        4, 4, -1, -1, -1,
    ]  # fmt: skip
    assert find_video_frames(starts, end, np.array([-1e-6, -0.2]), 0.1).tolist() == [0, -1]
    assert find_video_frames(np.zeros(1), 0.1, np.array([0.0, 0.2]), 0.1).tolist() == [0, -1]
    # a long frame is shown until half a step of the data before the next one begins
    assert find_video_frames(np.array([0.0, 1.0]), 2.0, np.array([0.4, 0.6, 0.9, 0.96]), 0.1).tolist() == [0, 0, 0, 1]


def test_a_frame_shown_at_a_time_is_the_last_that_has_begun():
    starts = np.array([0.0, 0.1, 0.5])
    times = np.array([-0.01, 0.0, 0.09, 0.1, 0.49, 0.5, 9.0])
    assert find_shown_frames(starts, times, 0.0).tolist() == [-1, 0, 0, 1, 1, 2, 2]
    assert find_shown_frames(starts, times, 0.02).tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert find_shown_frames(starts, times, np.array([0.0, 0.02, 0.0])).tolist() == [-1, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("late", "frame"), [(0.0499, 3), (0.0501, 2)])
def test_a_frame_that_begins_less_than_half_a_frame_later_counts(late, frame):
    """Half of a frame of 0.1 s is less than half of a step of 0.2 s, but more than half of one of 0.05 s."""
    starts, end = even(10, 10)
    assert find_video_frames(starts, end, np.array([0.3 - late]), 0.2).tolist() == [frame]
    assert find_video_frames(starts, end, np.array([0.3 - late / 2]), 0.05).tolist() == [frame]


def test_the_frames_of_the_next_episode_are_not_shown():
    starts, end = even(10, 10)
    times = np.array([0.39, 0.46, 0.49])
    assert find_video_frames(starts, end, times, 0.1).tolist() == [4, 5, 5]
    assert find_video_frames(starts, end, times, 0.1, until=0.5).tolist() == [4, 4, 4]
    assert find_video_frames(starts, end, np.array([0.46, 0.5, 0.6]), 0.1, until=0.5).tolist() == [4, 5, 6]


@pytest.mark.parametrize(("begin", "own"), [(0.476, 4), (0.474, 5)])
def test_the_next_episode_begins_with_a_frame_up_to_a_quarter_of_a_frame_early(begin, own):
    """The next episode begins at 0.5 s, so a frame from 0.475 s on is its first."""
    starts = np.array([0.0, 0.1, 0.2, 0.3, 0.4, begin, 0.6, 0.7, 0.8, 0.9])
    assert find_video_frames(starts, 1.0, np.array([0.49]), 0.1, until=0.5).tolist() == [own]


@pytest.mark.parametrize(("time", "frame"), [(0.994, 9), (0.996, -1)])
def test_a_time_just_before_the_end_of_a_video_is_after_it(time, frame):
    """A time is just before the end within a twentieth of the last frame, or of a step if that is shorter."""
    starts, end = even(10, 10)
    assert find_video_frames(starts, end, np.array([time]), 1.0).tolist() == [frame]
    assert find_video_frames(starts, end, np.array([1 - (1 - time) / 5]), 0.02).tolist() == [frame]
