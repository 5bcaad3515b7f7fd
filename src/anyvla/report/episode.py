"""The page of an episode: the video of each camera, and beside it what the robot was told and what it felt.

One folder with an HTML file and the videos. Plots are inline SVG; a line in each follows the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from markupsafe import Markup

from anyvla.data.episode import EpisodeDataset, Images
from anyvla.data.frame_times import find_shown_frames
from anyvla.report.template import environment
from anyvla.report.video import write_video
from anyvla.robot.ranges import never_varies
from anyvla.robot.space import ActionSpace

_WIDTH, _HEIGHT, _PAD = 640, 120, 6
_BLOCK = 64  # frames in memory at once
_COLORS = 7  # c0 .. c6 of the style sheet


def write_episode_report(dataset: EpisodeDataset, index: int, folder: Path) -> Path:
    """Write the page of episode `index`; returns `folder/index.html`. Raises ValueError for frames that are damaged."""
    episode = dataset[index]
    folder.mkdir(parents=True, exist_ok=True)
    robot = episode.embodiment
    videos: dict[str, str] = {}
    for camera, images in episode.images.items():
        name = f"camera-{len(videos)}.mp4"
        write_video(folder / name, _over_time(images, episode.timestamps, robot.control_hz), robot.control_hz)
        videos[camera] = name
    plots = [
        (what, name, labels, plot(rows, episode.timestamps, f"{what}, {name}"))
        for what, space, array in (
            ("action", robot.action, episode.actions),
            ("proprio", robot.proprio, episode.proprio),
        )
        for name, labels, rows in _groups(space, array)
    ]
    context: dict[str, Any] = {
        "title": f"{dataset.root.name}, episode {index}",
        "episode": episode,
        "index": index,
        "count": len(dataset),
        "videos": videos,
        "plots": plots,
        "seconds": float(episode.timestamps[-1]),
        "facts": {
            "robot": robot.name,
            "steps": len(episode),
            "rate": f"{robot.control_hz:g} per second",
            "task": dataset.task(index),
            "lies in": episode.provenance or str(dataset.root),
            **{key: str(value) for key, value in episode.extra.items()},
        },
    }
    page = folder / "index.html"
    page.write_text(environment().get_template("episode.html.j2").render(context), encoding="utf-8")
    return page


def _over_time(images: Images, times: Float64[np.ndarray, "T"], hz: float) -> Iterator[np.ndarray]:
    """Yield the frame that is shown at each 1 / hz second, as the plots run; a few are in memory at a time."""
    clock = np.arange(round(float(times[-1]) * hz) + 1) / hz
    shown = find_shown_frames(times, clock, 0.5 / hz).clip(0)
    for start in range(0, len(shown), _BLOCK):
        yield from images[shown[start : start + _BLOCK]]


def _groups(space: ActionSpace, array: np.ndarray) -> list[tuple[str, list[str], np.ndarray]]:
    """Name, labels of the dims and values (T, d) of each group."""
    out = []
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        short = {"position": "xyz", "rotation": "rpy" if group.rotation == "euler" else ""}.get(group.kind, "")
        plain = list(short) if len(short) == group.size else [str(i) for i in range(group.size)]
        labels = list(group.names) or plain
        says: list[str] = [group.mode] if group.kind != "other" or group.mode == "delta" else []
        says += [group.unit] if group.unit else []
        out.append((f"{group.name} ({', '.join(says)})" if says else group.name, labels, array[:, place]))
    return out


def plot(rows: np.ndarray, times: np.ndarray, label: str) -> Markup:
    """Lines of (T, d) values over time as SVG. Numbers that are not finite leave gaps."""
    finite = rows[np.isfinite(rows)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    told = f"{low:.4g} to {high:.4g}" if high > low else f"always {low:.4g}"
    if never_varies(low, high, max(abs(low), abs(high))):
        low, high = low - 0.5, high + 0.5
    x = _PAD + times / max(float(times[-1]), 1e-9) * (_WIDTH - 2 * _PAD)
    y = _HEIGHT - _PAD - (rows - low) / (high - low) * (_HEIGHT - 2 * _PAD)
    lines = []
    for dim in range(rows.shape[1]):
        pen, path = "M", []
        for px, py in zip(x, y[:, dim], strict=True):
            if not np.isfinite(py):
                pen = "M"
                continue
            path.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L"
        lines.append(f'<path class="c{dim % _COLORS}" d="{"".join(path)}"/>')
    zero = _HEIGHT - _PAD - (0 - low) / (high - low) * (_HEIGHT - 2 * _PAD)
    axis = f'<line class="zero" x1="0" x2="{_WIDTH}" y1="{zero:.1f}" y2="{zero:.1f}"/>' if low < 0 < high else ""
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" preserveAspectRatio="none" aria-label="{{}}">{{}}'
        f'<line class="now" x1="{_PAD}" x2="{_PAD}" y1="0" y2="{_HEIGHT}"/></svg>'
        '<p class="range">{}</p>'
    ).format(label, Markup(axis + "".join(lines)), told)
