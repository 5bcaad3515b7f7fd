"""Episode videos: H.264 in mp4, encoded, decoded and joined with PyAV.

Frames are stored at a constant rate without B-frames and with a key frame every few frames: packet k is frame k, so
that a frame is found by a short seek and files can be joined by copying packets. A policy is trained on decoded
frames and acts on raw ones, so the loss is kept small: full-resolution colour (on a rendered 96 px scene 42 dB, against
35 dB with halved colour, for the same bytes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from jaxtyping import UInt8

KEY_FRAME_EVERY = 8
QUALITY = 14  # crf of x264: lower is better and larger
PIXELS = "yuv444p"  # colour at full resolution
_BT601, _LIMITED = 6, 1  # how RGB becomes YUV, told to players, which guess otherwise


def encode(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Write RGB frames to an mp4 file. Raises ValueError for what is not uint8 RGB."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"a video needs uint8 frames of shape (T, H, W, 3), got {frames.dtype} {frames.shape}")
    rate = _rate(fps)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(QUALITY), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], PIXELS
        stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _LIMITED
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.codec_context.max_b_frames = 0
        stream.codec_context.thread_count = 1  # the same bytes on every machine; episodes are encoded in parallel
        reformatter = VideoReformatter()
        for i, array in enumerate(frames):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(array)),
                format=PIXELS,
                dst_colorspace=Colorspace.ITU601,
                threads=1,
            )
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decode(path: Path, fps: float, start: int, count: int) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames `start` .. `start + count - 1` of a file, as RGB. Raises ValueError if the file does not hold them all."""
    out: np.ndarray | None = None
    found = 0
    for index, image in _frames_from(path, fps, start):
        if index >= start + count:
            break
        if index < start:
            continue
        if out is None:
            out = np.empty((count, *image.shape), np.uint8)
        if index != start + found:
            break
        out[found] = image
        found += 1
        if found == count:
            return out
    raise ValueError(
        f"{path}: frame {start + found} is missing or damaged (frames {start} to {start + count - 1} asked)"
    )


def decode_at(path: Path, fps: float, indices: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Single frames of a file, in the order of `indices`; each run of near frames costs one seek."""
    wanted = sorted({int(i) for i in indices})
    images: dict[int, np.ndarray] = {}
    while wanted:
        first = last = wanted[0]
        for i in wanted:
            if i - last > KEY_FRAME_EVERY:
                break
            last = i
        run = decode(path, fps, first, last - first + 1)
        while wanted and wanted[0] <= last:
            i = wanted.pop(0)
            images[i] = run[i - first]
    return np.stack([images[int(i)] for i in indices])


def join(sources: Sequence[Path], target: Path, fps: float) -> list[int]:
    """Copy the packets of files made by `encode` into one file, one after another; returns the first frame of each."""
    rate = _rate(fps)
    starts, total = [], 0
    with av.open(str(target), "w", format="mp4") as output:
        stream = None
        for source in sources:
            starts.append(total)
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(video)
                for packet in container.demux(video):
                    if packet.dts is None:  # the end of the stream
                        continue
                    packet.stream = stream
                    packet.time_base = 1 / rate
                    packet.pts = packet.dts = total
                    packet.duration = 1
                    output.mux(packet)
                    total += 1
    return starts


def header(path: Path) -> bytes:
    """What a decoder must know before the first packet: only files with equal headers can be joined."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return bytes(context.extradata or b"") + f"{context.width}x{context.height}".encode()


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _frames_from(path: Path, fps: float, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """(frame number, RGB image) from the key frame at or before `start` on."""
    try:
        yield from _decoded(path, fps, start)
    except av.error.InvalidDataError as error:
        raise ValueError(f"{path} is damaged ({error.strerror}); copy the dataset again") from None


def _decoded(path: Path, fps: float, start: int) -> Iterator[tuple[int, np.ndarray]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base = stream.time_base
        if base is None:
            raise ValueError(f"{path}: the video has no time base")
        if start:
            container.seek(round(start / fps / base), stream=stream)
        reformatter = VideoReformatter()
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError(f"{path}: a frame has no timestamp")
            index = round(float(frame.pts * base) * fps)
            # one thread: starting more costs more than a small frame
            yield index, reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
