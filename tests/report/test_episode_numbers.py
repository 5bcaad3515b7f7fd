"""Tests of the videos, plots and numbers in the report of an episode."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.data.episode import steady_timestamps
from anyvla.report import episode as module
from anyvla.report.episode import draw_plot, write_episode_report
from tests.report.reading import Page
from tests.small import embodiment, episode


class Memory(list[Any]):
    """A dataset of episodes in memory."""

    root = Path("somewhere/memory")

    def task(self, index: int) -> str:
        return f"task {index}"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Write a report. Return it, and the frames and the rate of each video by its name."""
    videos: dict[str, tuple[np.ndarray, float]] = {}

    def write_video(path: Path, frames: Any, fps: float) -> None:
        videos[path.name] = (np.stack(list(frames)), fps)

    monkeypatch.setattr(module, "write_video", write_video)

    def run(*episodes: Any, index: int = 0) -> tuple[Page, dict[str, tuple[np.ndarray, float]]]:
        return Page(write_episode_report(Memory(episodes), index, tmp_path / "page")), videos  # type: ignore[arg-type]

    return run


def test_each_camera_has_its_own_video_of_the_requested_episode(written: Any) -> None:
    other, one = episode(5, 1), replace(episode(7, 2), extra={})
    page, videos = written(other, one, index=1)
    for name, camera in (("camera-0.mp4", "corner"), ("camera-1.mp4", "wrist")):
        np.testing.assert_array_equal(videos[name][0], one.images[camera])
        assert videos[name][1] == 10
    names = re.findall("<figcaption>(.*?)</figcaption>", page.html)
    assert [film.video for film in page.films] == ["camera-0.mp4", "camera-1.mp4"]
    assert names == ["corner", "wrist"]
    assert "memory, episode 1" in page.html
    assert "task 1" in page.html


def test_frames_are_shown_at_their_times(written: Any) -> None:
    """Taken at 0, 0.1, 0.2 and 0.5 s: the third stays for the pause."""
    one = replace(episode(4, 3), timestamps=np.array([0, 0.1, 0.2, 0.5]))
    _, videos = written(one)
    np.testing.assert_array_equal(videos["camera-0.mp4"][0], one.images["corner"][[0, 1, 2, 2, 2, 3]])


def test_each_plot_shows_its_own_numbers(written: Any) -> None:
    one = replace(
        episode(3),
        actions=np.array([[0, 1, 2, -1], [3, 4, 5, 1], [6, 7, 8, 1]], np.float32),
        proprio=np.array([[10, 20, 30], [11, 21, 31], [12, 22, 32]], np.float32),
    )
    page, _ = written(one)
    ranges = re.findall(r'<p class="range">(.*?)</p>', page.html)
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert list(zip(labels, ranges, strict=True)) == [
        ("action, position (delta)", "0 to 8"),
        ("action, gripper (absolute)", "-1 to 1"),
        ("proprio, position (absolute)", "10 to 32"),
    ]


def test_labels_are_the_names_of_dims_or_depend_on_their_kind() -> None:
    robot = embodiment()
    named = replace(robot.action.groups[1], names=("jaw",))
    turning = replace(robot.action.groups[0], name="turn", kind="rotation", rotation="euler", unit="rad")
    space = replace(robot.action, groups=(robot.action.groups[0], turning, named))
    found = module._groups(space, np.arange(14.0).reshape(2, 7))
    assert [(name, labels, values.tolist()) for name, labels, values in found] == [
        ("position (delta)", ["x", "y", "z"], [[0, 1, 2], [7, 8, 9]]),
        ("turn (delta, rad)", ["r", "p", "y"], [[3, 4, 5], [10, 11, 12]]),
        ("gripper (absolute)", ["jaw"], [[6], [13]]),
    ]


def test_a_line_is_drawn_to_scale() -> None:
    """640 x 120 with 6 around: from x = 6 to 634 by time, from y = 114 at the lowest value to 6 at the highest."""
    drawn = draw_plot(np.array([[0.0, 10.0], [5.0, -10.0], [10.0, 0.0]]), np.array([0, 0.1, 0.4]), "two")
    lines = re.findall(r'<path class="(c\d)" d="(.*?)"', drawn)
    assert lines == [("c0", "M6.0 60.0L163.0 33.0L634.0 6.0"), ("c1", "M6.0 6.0L163.0 114.0L634.0 60.0")]
    assert '<line class="zero" x1="0" x2="640" y1="60.0" y2="60.0"/>' in drawn
    assert "-10 to 10" in drawn
    assert 'class="zero"' not in draw_plot(np.array([[1.0], [2.0]]), steady_timestamps(2, 10), "above")
