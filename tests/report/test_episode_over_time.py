from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.report.episode import write_episode_report
from tests.small import embodiment, episode


def test_the_video_has_the_time_axis_of_the_plots(tmp_path: Path) -> None:
    """A pause of ten steps is a pause in the video too, so the cursor in the plots fits the frame."""
    robot, one = embodiment(), episode(20, 0)
    times = np.arange(20) / robot.control_hz
    times[10:] += 10 / robot.control_hz
    write_dataset(tmp_path / "set", robot, [dataclasses.replace(one, timestamps=times)])
    write_episode_report(open_dataset(tmp_path / "set"), 0, tmp_path / "page")
    with av.open(str(tmp_path / "page/camera-0.mp4")) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == 30
