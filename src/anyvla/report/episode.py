"""Write the report of an episode: a video per camera, and plots of actions and proprio.

The report is a folder with an HTML file and the videos. Plots are inline SVG with a cursor that follows the video.
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
from anyvla.robot.space import ActionSpace, label_dims

WIDTH, HEIGHT, PAD = 640, 120, 6  # of a plot over time; episode.js knows them
_BLOCK = 64  # frames decoded at once
_COLORS = 7  # c0 .. c6 of the style sheet


def write_episode_report(dataset: EpisodeDataset, index: int, folder: Path) -> Path:
    """Write the report of episode `index` and return `folder/index.html`. Raises ValueError for damaged frames."""
    episode = dataset[index]
    folder.mkdir(parents=True, exist_ok=True)
    robot = episode.embodiment
    videos: dict[str, str] = {}
    for camera, images in episode.images.items():
        name = f"camera-{len(videos)}.mp4"
        write_video(folder / name, resample_frames(images, episode.timestamps, robot.control_hz), robot.control_hz)
        videos[camera] = name
    plots = [
        (what, name, labels, draw_plot(rows, episode.timestamps, f"{what}, {name}"))
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
            "path": episode.provenance or str(dataset.root),
            **{key: str(value) for key, value in episode.extra.items()},
        },
    }
    page = folder / "index.html"
    page.write_text(environment().get_template("episode.html.j2").render(context), encoding="utf-8")
    return page


def resample_frames(images: Images, times: Float64[np.ndarray, "T"], hz: float) -> Iterator[np.ndarray]:
    """Yield the frame to show at each multiple of 1 / hz seconds, to match the time axis of the plots."""
    clock = np.arange(round(float(times[-1]) * hz) + 1) / hz
    shown = find_shown_frames(times, clock, 0.5 / hz).clip(0)
    for start in range(0, len(shown), _BLOCK):
        yield from images[shown[start : start + _BLOCK]]


def _groups(space: ActionSpace, array: np.ndarray) -> list[tuple[str, list[str], np.ndarray]]:
    """Return name, dim labels and values (T, d) of each group."""
    out = []
    for group, dims in zip(space.groups, space.slices().values(), strict=True):
        notes: list[str] = [group.mode] if group.kind != "other" or group.mode == "delta" else []
        notes += [group.unit] if group.unit else []
        name = f"{group.name} ({', '.join(notes)})" if notes else group.name
        out.append((name, label_dims(group), array[:, dims]))
    return out


def draw_plot(rows: np.ndarray, times: np.ndarray, label: str) -> Markup:
    """Draw (T, d) values over time as SVG lines. Values that are not finite leave gaps."""
    finite = rows[np.isfinite(rows)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    extent = f"{low:.4g} to {high:.4g}" if high > low else f"always {low:.4g}"
    if never_varies(low, high, max(abs(low), abs(high))):
        low, high = low - 0.5, high + 0.5
    x = PAD + times / max(float(times[-1]), 1e-9) * (WIDTH - 2 * PAD)
    y = HEIGHT - PAD - (rows - low) / (high - low) * (HEIGHT - 2 * PAD)
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
    zero = HEIGHT - PAD - (0 - low) / (high - low) * (HEIGHT - 2 * PAD)
    axis = f'<line class="zero" x1="0" x2="{WIDTH}" y1="{zero:.1f}" y2="{zero:.1f}"/>' if low < 0 < high else ""
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" preserveAspectRatio="none" aria-label="{{}}">{{}}'
        f'<line class="now" x1="{PAD}" x2="{PAD}" y1="0" y2="{HEIGHT}"/></svg>'
        '<p class="range">{}</p>'
    ).format(label, Markup(axis + "".join(lines)), extent)
