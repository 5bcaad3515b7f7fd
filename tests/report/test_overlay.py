from __future__ import annotations

import numpy as np
import pytest

from anyvla.evaluation.execution import Execution
from anyvla.report.overlay import COLORS, chunk_limits, draw_overlay, find_chunk
from anyvla.report.video import FAILURE, NEUTRAL, SUCCESS, add_caption
from tests.evaluation.toy_opened import EMBODIMENT

FRAME = np.full((240, 240, 3), 90, np.uint8)
RAMP = np.linspace(-1, 1, 8)
CHUNKS = np.stack([np.stack([RAMP, np.zeros(8)], -1), np.stack([np.zeros(8), RAMP], -1)]).astype(np.float32)
LIMITS = chunk_limits(CHUNKS)
BLUE = np.array([int(COLORS[0][i : i + 2], 16) for i in (1, 3, 5)])


def plot(executed, chunk=CHUNKS[0]):
    shown = draw_overlay(FRAME, "open the drawer", step=3, chunk=chunk, executed=executed, limits=LIMITS)
    return shown[-48:].astype(int)


def columns(picture, color):
    """Return the columns with a pixel close to the color; pixels of thin lines are mixed with the background."""
    return np.flatnonzero((np.abs(picture - color).sum(-1) < 120).any(0))


def test_executed_actions_are_faded_and_remaining_ones_bright():
    fresh, later = columns(plot(0), BLUE), columns(plot(4), BLUE)
    assert fresh.min() < 20
    assert fresh.max() > 220
    assert 110 < later.min() < 130  # half of the eight actions are over
    assert later.max() > 220
    assert not len(columns(plot(8), BLUE))
    np.testing.assert_array_equal(plot(8), plot(11))  # of a delayed chunk, more actions may have passed than it has


def test_a_new_chunk_shows_at_once():
    assert np.abs(plot(4) - plot(0, CHUNKS[1])).max() > 100


def test_higher_values_are_drawn_higher():
    rows = [np.flatnonzero(np.abs(plot(0)[:, x] - BLUE).sum(-1) < 120) for x in (20, 220)]
    assert rows[0].mean() > 35
    assert rows[1].mean() < 13


def test_all_frames_of_a_video_have_one_size():
    sizes = {
        draw_overlay(FRAME, text, task="drawer-open", step=step, success=success, chunk=chunk, limits=LIMITS).shape
        for text, step, success, chunk in [
            ("open the drawer", 0, None, None),
            ("open the drawer " * 9, 480, True, CHUNKS[0]),
            ("", 7, False, CHUNKS[1]),
        ]
    }
    assert len(sizes) == 1
    assert all(side % 2 == 0 for side in sizes.pop()[:2])


def test_without_limits_there_is_the_caption_alone():
    shown = draw_overlay(FRAME, "go", task="left", step=12)
    np.testing.assert_array_equal(shown, add_caption(FRAME, "go", detail="step 12, left"))
    np.testing.assert_array_equal(shown[-240:], FRAME)


def test_step_and_outcome_are_in_the_caption():
    long = "put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket"
    assert not np.array_equal(
        draw_overlay(FRAME, "go", task=long, step=6), draw_overlay(FRAME, "go", task=long, step=5)
    )
    running, won, lost = (draw_overlay(FRAME, "go", step=5, success=s) for s in (None, True, False))
    assert not np.array_equal(draw_overlay(FRAME, "go", step=6), running)
    mark = (slice(0, 60), slice(200, 240))
    assert (won[mark][..., 1].astype(int) - won[mark][..., 0] > 60).sum() > 50
    assert (lost[mark][..., 0].astype(int) - lost[mark][..., 1] > 60).sum() > 50


def test_success_is_a_green_tick_and_failure_a_red_cross():
    for success, color, mark in ((True, SUCCESS, "tick"), (False, FAILURE, "cross")):
        expected = add_caption(FRAME, "go", color, mark, detail="step 5")
        np.testing.assert_array_equal(draw_overlay(FRAME, "go", step=5, success=success), expected)
    blank = np.zeros((240, 240, 3), np.uint8)
    sides = {}
    for mark in ("tick", "cross"):  # a cross is symmetric, a tick is not
        white = (add_caption(blank, "", NEUTRAL, mark)[:-240, 200:] > 200).all(-1)
        rows, columns = np.nonzero(white)
        middle = (columns.min() + columns.max()) / 2
        sides[mark] = rows[columns < middle].mean() - rows[columns > middle].mean()
    assert abs(sides["cross"]) < 0.5
    assert sides["tick"] > 1


def test_each_dimension_has_its_own_limits():
    chunks = np.array([[[0, 10], [1, 30]], [[-2, 20], [0.5, 25]]], np.float32)
    assert chunk_limits(chunks).tolist() == [[-2, 10], [1, 30]]


def test_the_newest_chunk_of_a_step_is_found():
    marks = np.array([0, 4])
    assert find_chunk(CHUNKS, marks, 3) == (pytest.approx(CHUNKS[0]), 3)
    assert find_chunk(CHUNKS, marks, 4) == (pytest.approx(CHUNKS[1]), 0)
    assert find_chunk(CHUNKS, marks, 9)[1] == 5
    assert find_chunk(CHUNKS[:0], marks[:0], 0) == (None, 0)
    assert chunk_limits(CHUNKS[:0]) is None


def test_a_session_has_no_chunk_of_the_previous_session():
    marks = np.array([0, 4])
    assert find_chunk(CHUNKS, marks, 5, delay=2)[0] == pytest.approx(CHUNKS[0])
    assert find_chunk(CHUNKS, marks, 5, delay=2, since=4) == (None, 0)
    assert find_chunk(CHUNKS, marks, 6, delay=2, since=4)[1] == 2


@pytest.mark.parametrize("delay", [0, 2])
def test_the_chunk_in_effect_is_the_executed_one(delay):
    chunks = np.random.default_rng(0).normal(size=(5, 8, EMBODIMENT.action.size)).astype(np.float32)
    execution = Execution(EMBODIMENT, 4, delay)
    marks = np.arange(5) * 4
    for step, action in enumerate(np.concatenate([execution(chunk) for chunk in chunks])):
        chunk, passed = find_chunk(chunks, marks, step, delay)
        assert (chunk is None) == (step < delay)  # before the first chunk arrives, the robot holds still
        assert chunk is None or chunk[passed] == pytest.approx(action)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"chunk": CHUNKS[0]}, r"needs limits \(2, A\), got \(8, 2\) and None"),
        ({"chunk": CHUNKS[0, :, :1], "limits": LIMITS}, r"got \(8, 1\)"),
        ({"limits": CHUNKS[0]}, r"must be \(2, A\)"),
        ({"limits": LIMITS, "executed": -1}, "0 or more"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        draw_overlay(FRAME, "go", **given)
