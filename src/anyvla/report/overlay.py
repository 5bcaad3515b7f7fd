"""What a rollout's video says beside the picture: words, step, outcome, and the chunk that is being executed.

The chunk is drawn under the picture, one line per dimension of the action: what was executed of it fades, what is left
is bright. Whoever watches sees when the policy looked again, and how much of its plan it threw away.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageDraw

from anyvla.report.video import FAILURE, NEUTRAL, SUCCESS, Mark, add_caption

# Of the dimensions, in turn; told apart on dark ground, as the pages' plots are.
COLORS = ("#6ea3ff", "#ff9a62", "#6ad79c", "#c79bff", "#f0c366", "#67d4e8", "#ff8ac0")
GROUND, FADED, EDGE = "#14181f", "#39414f", "#f4f6f9"
SCALE = 2  # drawn larger and made smaller: Pillow's lines have no smooth edges


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
    """The frame with a strip above it and, if `limits` are given, a plot of the chunk below it.

    `text` is the instruction, `task` its task, `step` how many actions were executed. `success` of the episode is None
    while it runs. `executed`: how many actions of `chunk` have passed; more than it has count as all. `limits`: the
    lowest and highest value of each dimension in the whole episode, so that lines do not jump between chunks; with
    them the plot is there even where `chunk` is None, and all frames of a video have one size. Raises ValueError where
    the shapes of chunk and limits do not fit, or a chunk comes without limits.
    """
    if limits is not None and limits.shape[:1] != (2,):
        raise ValueError(f"limits must be (2, A), the lowest and the highest, got {limits.shape}")
    if chunk is not None and (limits is None or chunk.ndim != 2 or chunk.shape[1] != limits.shape[1]):
        raise ValueError(
            f"a chunk (N, A) is drawn between limits (2, A), got {chunk.shape} and "
            f"{None if limits is None else limits.shape}"
        )
    if executed < 0:
        raise ValueError(f"executed must be 0 or more, got {executed}")
    where = [] if step is None else [f"step {step}"]  # first: long names of tasks are cut
    if task and task != text:
        where.append(task)
    color = NEUTRAL if success is None else SUCCESS if success else FAILURE
    mark: Mark | None = None if success is None else "tick" if success else "cross"
    shown = add_caption(frame, text, color, mark, detail=", ".join(where))
    if limits is None:
        return shown
    key = None if chunk is None else (np.ascontiguousarray(chunk, np.float32).tobytes(), len(chunk))
    plot = _plot(frame.shape[1], key, executed, np.ascontiguousarray(limits, np.float32).tobytes())
    return np.concatenate([shown, plot])


def chunk_limits(chunks: Float32[np.ndarray, "K N A"]) -> Float32[np.ndarray, "2 A"] | None:
    """The lowest and highest value of each dimension that an episode's chunks predict; None if there is no chunk."""
    if not chunks.size:
        return None
    flat = chunks.reshape(-1, chunks.shape[-1])
    return np.stack([flat.min(0), flat.max(0)]).astype(np.float32)


def find_chunk(
    chunks: Float32[np.ndarray, "K N A"], marks: Int64[np.ndarray, "K"], step: int, delay: int = 0, since: int = 0
) -> tuple[Float32[np.ndarray, "N A"] | None, int]:
    """The chunk that action number `step` is of, and how many of its actions have passed; (None, 0) before the first.

    `marks`: before which action each chunk was predicted, in rising order. `delay`: how many actions later it is known;
    its first actions have passed by then, and where all have, the robot holds still. Of averaged chunks, the newest.
    `since`: before which action the session began; it knows no chunk of the session before.
    """
    number = int(np.searchsorted(marks, step - delay, side="right")) - 1
    known = number >= 0 and int(marks[number]) >= since
    return (chunks[number], step - int(marks[number])) if known else (None, 0)


@lru_cache(maxsize=64)
def _plot(width: int, key: tuple[bytes, int] | None, executed: int, limits: bytes) -> np.ndarray:
    """(height, width, 3); the height depends on the width alone, and is even."""
    height = 2 * max(16, width // 10)
    picture = Image.new("RGB", (width * SCALE, height * SCALE), GROUND)
    if key is not None:
        low, high = np.frombuffer(limits, np.float32).reshape(2, -1)
        _draw(ImageDraw.Draw(picture), np.frombuffer(key[0], np.float32).reshape(key[1], -1), executed, low, high)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _draw(draw: ImageDraw.ImageDraw, chunk: np.ndarray, executed: int, low: np.ndarray, high: np.ndarray) -> None:
    count, dims = chunk.shape
    executed = min(executed, count)
    right, bottom = (size - 1 for size in draw.im.size)
    edge, stroke = 6 * SCALE, max(3, right // 110)
    step = (right - 2 * edge) / max(1, count)
    span = np.where(high > low, high - low, 1.0)
    # A dimension that never changes lies in the middle.
    heights = np.where(high > low, (chunk - low) / span, 0.5)  # (N, A), 0 .. 1
    y = bottom - edge - heights * (bottom - 2 * edge)
    for dim in range(dims):
        # An action lasts for one step: its value is a level, as it is sent to the robot.
        for i in range(count):
            x = edge + i * step
            color = FADED if i < executed else COLORS[dim % len(COLORS)]
            draw.line([(x, y[i, dim]), (x + step, y[i, dim])], fill=color, width=stroke)
            if i + 1 < count:
                draw.line([(x + step, y[i, dim]), (x + step, y[i + 1, dim])], fill=color, width=max(1, stroke // 2))
    now = edge + executed * step
    draw.line([(now, edge // 2), (now, bottom - edge // 2)], fill=EDGE, width=max(SCALE, stroke // 2))
