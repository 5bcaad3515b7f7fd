"""Write videos for viewing: H.264 in mp4, which every browser plays, with a caption of instruction and outcome.

Training data has its own encoder (`data/formats/video.py`), which keeps the loss small and every frame addressable.
The files here are small, play while they load, and are written atomically.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from anyvla.files.durable import replacing

QUALITY = 23  # crf of x264; a lower value gives better quality and larger files
SUCCESS, FAILURE, NEUTRAL = "#1f9d61", "#d1452b", "#7a8494"  # outcome colors; a mark shows the same without color

Mark = Literal["tick", "cross"]


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """Encode RGB frames one by one and write `path` atomically. An odd height or width grows by one pixel.

    Raises ValueError for no frames, for frames that are not uint8 (H, W, 3) or change their size, and for fps outside
    (0, 1000]. On failure, an older file at `path` stays and no partial file remains.
    """
    if not 0 < fps <= 1000:
        raise ValueError(f"fps must be in 0..1000, got {fps}")
    path = Path(path)
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame, got none")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, to_disk=False) as temporary:
        _encode(temporary, chain([first], rest), fps)


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    shape: tuple[int, ...] | None = None
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(QUALITY), "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"  # the only pixel format that all browsers decode
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(frames):
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
                raise ValueError(f"frame {number} must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
            if shape is None:
                shape = frame.shape
                stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
            if frame.shape != shape:
                raise ValueError(f"frame {number} has the shape {frame.shape}, but the previous ones have {shape}")
            even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def add_caption(
    frame: UInt8[np.ndarray, "H W 3"], text: str, color: str = NEUTRAL, mark: Mark | None = None, detail: str = ""
) -> UInt8[np.ndarray, "H2 W 3"]:
    """Return the frame with a strip above it: `text` on at most two lines, a bar and an outcome mark in `color`.

    The strip is above the frame because the controls of a player cover the lower edge. `detail` is one more line in a
    smaller font. The height of the strip depends on the width of the frame and on the presence of a detail, so all
    frames of a video have one size. `color` is any color of Pillow ("#1f9d61", "red"). Raises ValueError for others.
    """
    return np.concatenate([_strip(frame.shape[1], text, color, mark, detail), frame])


@lru_cache(maxsize=64)
def _strip(width: int, text: str, color: str, mark: Mark | None, detail: str) -> np.ndarray:
    size = max(14, width // 22)  # pixels; 14 is readable if the frame is shown at its own size
    line, edge, bar = round(size * 1.3), size // 2, max(2, size // 5)
    small = max(11, round(size * 0.8)) if detail else 0
    height = bar + 2 * line + edge + round(small * 1.3)
    strip = Image.new("RGB", (width, height + height % 2), "#14181f")
    draw = ImageDraw.Draw(strip)
    rgb = ImageColor.getrgb(color)
    draw.rectangle((0, strip.height - bar, width, strip.height - 1), fill=rgb)
    right = width - edge
    middle = (strip.height - bar - small * 1.3) / 2
    if mark is not None:
        right -= round(size * 1.5)
        _draw_mark(draw, right + size * 0.85, middle, size * 0.75, rgb, mark)
    font = ImageFont.load_default(size)  # bundled with Pillow: the same on every machine
    lines = _wrap(text, font, right - edge)
    top = middle - len(lines) * line / 2
    for number, words in enumerate(lines):
        draw.text((edge, top + number * line), words, fill="#f4f6f9", font=font)
    if detail:
        thin = ImageFont.load_default(small)
        where = (edge, strip.height - bar - small * 1.5)
        draw.text(where, _shorten(detail, thin, width - 2 * edge), fill="#9da8b9", font=thin)
    return np.asarray(strip)


def _draw_mark(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, rgb: tuple[int, ...], mark: Mark) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=rgb)
    r, stroke = radius * 0.45, max(2, round(radius / 4))
    if mark == "tick":
        draw.line([(x - r, y), (x - r / 4, y + r * 0.8), (x + r, y - r * 0.8)], fill="white", width=stroke)
    else:
        draw.line([(x - r, y - r), (x + r, y + r)], fill="white", width=stroke)
        draw.line([(x - r, y + r), (x + r, y - r)], fill="white", width=stroke)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Split text into at most two lines; a line that does not fit is truncated with an ellipsis."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    if len(lines) > 2:
        lines = [lines[0], " ".join(lines[1:])]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."
