"""Draw instruction, step, outcome and the current chunk around a frame of a video.

The chunk is plotted under the frame, one line per dim of the action. Executed actions are faded and remaining ones are
bright, so a viewer sees when the policy predicted again, and how much of a chunk was discarded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageDraw

from anyvla.report.video import FAILURE, NEUTRAL, SUCCESS, Mark, add_caption

# Of the dims in turn; distinct on a dark background, as in the plots of reports.
COLORS = ("#6ea3ff", "#ff9a62", "#6ad79c", "#c79bff", "#f0c366", "#67d4e8", "#ff8ac0")
BACKGROUND, FADED, EDGE = "#14181f", "#39414f", "#f4f6f9"
SCALE = 2  # drawn larger and then reduced, because Pillow does not antialias lines


def draw_overlay(
    frame: UInt8[np.ndarray, "H W 3"],
    text: str,
    *,
    task: str = "",
    step: int | None = None,
    success: bool | None = None,
    chunk: Float32[np.ndarray, "N A"] | None = None,
    executed: int = 0,
    limits: Float32[np.ndarray, "2 A"] | None = None,
) -> UInt8[np.ndarray, "H2 W 3"]:
    """Return the frame with a caption above it and, if `limits` are given, a plot of the chunk below it.

    `text` is the instruction, `task` its task, `step` the number of executed actions. `success` is None while the
    episode runs. `executed`: number of actions of `chunk` that have passed; it may exceed the length of the chunk.
    `limits`: lowest and highest value of each dim in the whole episode, so that lines do not jump between chunks; with
    limits the plot is drawn even if `chunk` is None, so all frames of a video have one size. Raises ValueError if the
    shapes of chunk and limits do not fit, or for a chunk without limits.
    """
    if limits is not None and limits.shape[:1] != (2,):
        raise ValueError(f"limits must be (2, A), lowest and highest, got {limits.shape}")
    if chunk is not None and (limits is None or chunk.ndim != 2 or chunk.shape[1] != limits.shape[1]):
        raise ValueError(
            f"a chunk (N, A) needs limits (2, A), got {chunk.shape} and {None if limits is None else limits.shape}"
        )
    if executed < 0:
        raise ValueError(f"executed must be 0 or more, got {executed}")
    where = [] if step is None else [f"step {step}"]  # first, because long task names are truncated
    if task and task != text:
        where.append(task)
    color = NEUTRAL if success is None else SUCCESS if success else FAILURE
    mark: Mark | None = None if success is None else "tick" if success else "cross"
    shown = add_caption(frame, text, color, mark, detail=", ".join(where))
    if limits is None:
        return shown
    key = None if chunk is None else (np.ascontiguousarray(chunk, np.float32).tobytes(), len(chunk))
    plot = _plot_chunk(frame.shape[1], key, executed, np.ascontiguousarray(limits, np.float32).tobytes())
    return np.concatenate([shown, plot])


def chunk_limits(chunks: Float32[np.ndarray, "K N A"]) -> Float32[np.ndarray, "2 A"] | None:
    """Return the lowest and highest value of each dim over an episode's chunks; None if there is no chunk."""
    if not chunks.size:
        return None
    flat = chunks.reshape(-1, chunks.shape[-1])
    return np.stack([flat.min(0), flat.max(0)]).astype(np.float32)


def find_chunk(
    chunks: Float32[np.ndarray, "K N A"], marks: Int64[np.ndarray, "K"], step: int, delay: int = 0, since: int = 0
) -> tuple[Float32[np.ndarray, "N A"] | None, int]:
    """Return the chunk that is in effect at action `step`, and how many of its actions have passed; else (None, 0).

    `marks`: number of actions before each prediction, ascending. `delay`: number of actions until a chunk arrives; its
    first actions have passed by then, and the robot holds still if all have. Of averaged chunks, the newest is
    returned. `since`: number of actions before the session, which has no chunks of the previous session.
    """
    number = int(np.searchsorted(marks, step - delay, side="right")) - 1
    known = number >= 0 and int(marks[number]) >= since
    return (chunks[number], step - int(marks[number])) if known else (None, 0)


@lru_cache(maxsize=64)
def _plot_chunk(width: int, key: tuple[bytes, int] | None, executed: int, limits: bytes) -> np.ndarray:
    """Plot a chunk as (height, width, 3). The height is even and depends on the width only."""
    height = 2 * max(16, width // 10)
    picture = Image.new("RGB", (width * SCALE, height * SCALE), BACKGROUND)
    if key is not None:
        low, high = np.frombuffer(limits, np.float32).reshape(2, -1)
        _draw_lines(ImageDraw.Draw(picture), np.frombuffer(key[0], np.float32).reshape(key[1], -1), executed, low, high)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _draw_lines(draw: ImageDraw.ImageDraw, chunk: np.ndarray, executed: int, low: np.ndarray, high: np.ndarray) -> None:
    count, dims = chunk.shape
    executed = min(executed, count)
    right, bottom = (size - 1 for size in draw.im.size)
    edge, stroke = 6 * SCALE, max(3, right // 110)
    step = (right - 2 * edge) / max(1, count)
    span = np.where(high > low, high - low, 1.0)
    # A dim that never changes is drawn in the middle.
    heights = np.where(high > low, (chunk - low) / span, 0.5)  # (N, A), 0 .. 1
    y = bottom - edge - heights * (bottom - 2 * edge)
    for dim in range(dims):
        # An action is held for one step, so its value is drawn as a level.
        for i in range(count):
            x = edge + i * step
            color = FADED if i < executed else COLORS[dim % len(COLORS)]
            draw.line([(x, y[i, dim]), (x + step, y[i, dim])], fill=color, width=stroke)
            if i + 1 < count:
                draw.line([(x + step, y[i, dim]), (x + step, y[i + 1, dim])], fill=color, width=max(1, stroke // 2))
    now = edge + executed * step
    draw.line([(now, edge // 2), (now, bottom - edge // 2)], fill=EDGE, width=max(SCALE, stroke // 2))
