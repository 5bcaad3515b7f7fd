from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anyvla.report.rerun import write_recording
from tests.small import episode


class Recorded:
    """Return the logged values as (step, seconds, entity, value). The rerun package is replaced."""

    def __init__(self, name: str, recording_id: str) -> None:
        self.lines: list[tuple[Any, Any, str, Any]] = []
        self.now: dict[str, Any] = {}
        self.name, self.id, self.flushed, self.path = name, recording_id, False, Path()
        Recorded.last = self

    last: Recorded

    def save(self, path: Path) -> None:
        self.path = path

    def set_time(self, timeline: str, *, sequence: int | None = None, duration: float | None = None) -> None:
        self.now[timeline] = sequence if duration is None else duration

    def log(self, entity: str, value: Any, static: bool = False) -> None:
        self.lines.append((None if static else self.now["step"], self.now.get("time"), entity, value))

    def flush(self) -> None:
        self.flushed = True


def test_every_camera_and_every_number_is_logged_at_its_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = SimpleNamespace(
        RecordingStream=Recorded,
        TextLog=lambda text: text,
        Image=lambda array: SimpleNamespace(compress=lambda jpeg_quality: array),
        Scalars=np.asarray,
    )
    monkeypatch.setitem(sys.modules, "rerun", module)
    one = episode(3, 5)
    dataset: Any = type("Two", (list,), {"fingerprint": "0123456789abcdef99"})([episode(4, 1), one])
    path = write_recording(dataset, 1, tmp_path / "deep" / "a.rrd")
    made = Recorded.last
    assert (path, made.path, made.flushed) == (tmp_path / "deep/a.rrd", path, True)
    assert (made.name, made.id) == ("anyvla", "0123456789abcdef-1")
    assert made.lines[0][2:] == ("instruction", "open the drawer")
    assert made.lines[0][0] is None
    lines = made.lines[1:]
    assert [(step, entity) for step, _, entity, _ in lines] == [
        (step, entity)
        for step in range(3)
        for entity in ("camera/corner", "camera/wrist", "action/position", "action/gripper", "proprio/position")
    ]
    for step, seconds, entity, value in lines:
        assert seconds == pytest.approx(step / 10)
        expected = {
            "camera/corner": one.images["corner"][step],
            "camera/wrist": one.images["wrist"][step],
            "action/position": one.actions[step, :3],
            "action/gripper": one.actions[step, 3:],
            "proprio/position": one.proprio[step],
        }[entity]
        np.testing.assert_array_equal(value, expected)
