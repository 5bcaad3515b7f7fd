"""Episode videos: mp4 of any codec decoded, H.264 encoded and joined, with PyAV.

What is written has a constant rate, no B-frames and a key frame every few frames: packet k is frame k, so that a frame
is found by a short seek and files can be joined by copying packets. A policy is trained on decoded frames and acts on
raw ones, so the loss is kept small: full-resolution colour (on a rendered 96 px scene 42 dB, against 35 dB with halved
colour, for the same bytes). What is read may have any codec and any key frames: frames are found by their time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from jaxtyping import UInt8

from anyvla.data.formats.open_files import OpenFiles

KEY_FRAME_EVERY = 8
# crf: lower is better and larger. fastdecode (no CABAC, no loop filter) halves the time to read a window of 8 frames of
# 128 px, for 10 % more bytes at the same error.
_OPTIONS = {"crf": "13", "preset": "veryfast", "tune": "fastdecode"}
PIXELS = "yuv444p"  # colour at full resolution
_BT601, _LIMITED = 6, 1  # how RGB becomes YUV, told to players, which guess otherwise
_OPEN = 16  # videos kept open per thread
_BACK = (0.0, 1.0, 10.0, 1e9)  # seconds to seek further back if a file's key frames are not where its index says


def encode(path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """Write RGB frames to an mp4 file. Raises ValueError for what is not uint8 RGB, or none at all."""
    rate = _rate(fps)
    shape: tuple[int, ...] | None = None
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=_OPTIONS)
        stream.pix_fmt = PIXELS
        stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _LIMITED
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.codec_context.max_b_frames = 0
        stream.codec_context.thread_count = 1  # the same bytes on every machine; episodes are encoded in parallel
        reformatter = VideoReformatter()
        for i, array in enumerate(frames):
            if shape is None:
                shape = array.shape
                if len(shape) == 3:
                    stream.height, stream.width = shape[:2]
            if array.dtype != np.uint8 or array.shape != shape or len(shape) != 3 or shape[2] != 3:
                raise ValueError(f"a video needs uint8 frames (H, W, 3) of one shape, got {array.dtype} {array.shape}")
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(array)),
                format=PIXELS,
                dst_colorspace=Colorspace.ITU601,
                threads=1,
            )
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        if shape is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))


def decode(path: Path, fps: float, indices: Sequence[int]) -> UInt8[np.ndarray, "K H W 3"]:
    """The frames shown at `indices / fps` seconds, as RGB, in the order of `indices`, each decoded once.

    Raises ValueError that names the file, and the frame if it is a frame, for what is missing or damaged.
    """
    wanted = sorted({int(i) for i in indices})
    images: dict[int, np.ndarray] = {}
    try:
        opened = _opened(path)
        for index, image in opened.frames(fps, wanted):
            images[index] = image
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the dataset again") from None
    except av.error.FFmpegError as error:
        _opened.drop()
        raise ValueError(f"{path} is damaged ({error.strerror}); copy the dataset again") from None
    missing = [i for i in wanted if i not in images]
    if missing:
        raise ValueError(
            f"{path}: frame {missing[0]} is missing or damaged (frames {wanted[0]} to {wanted[-1]} asked); copy the "
            "dataset again"
        )
    return np.stack([images[int(i)] for i in indices])


class _Video:
    """A video file that is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container = av.open(str(path))
        if not self._container.streams.video:
            raise ValueError(f"{path} holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # readers are parallel; threads would wait for more packets
        if self._stream.time_base is None:
            raise ValueError(f"{path}: the video has no time base")
        self._base = float(self._stream.time_base)  # seconds
        entries = self._stream.index_entries
        self._keys = np.array([e.timestamp for e in entries if e.is_keyframe], np.float64) * self._base
        self._reformatter = VideoReformatter()

    def close(self) -> None:
        self._container.close()

    def frames(self, fps: float, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(frame number, RGB image) of the wanted ones that are there; `wanted` increases."""
        keys = np.ceil(self._keys * fps - 0.01)  # the first frame that each of them serves
        begin = 0
        while begin < len(wanted):
            end = begin + 1  # until here it is cheaper to go on than to seek: no key frame is skipped
            while end < len(wanted) and not np.any((keys > wanted[end - 1] + 1) & (keys <= wanted[end])):
                end += 1
            yield from self._run(fps, wanted[begin:end])
            begin = end

    def _run(self, fps: float, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        left = list(wanted)
        for back in _BACK:
            target = max(0.0, wanted[0] / fps - back)
            self._container.seek(round(target / self._base), stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    raise ValueError(f"{self._path}: a frame has no timestamp")
                index = round(frame.pts * self._base * fps)
                if index > left[0]:
                    break
                if index == left[0]:
                    # one thread: starting more costs more than a small frame
                    yield index, self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    left.pop(0)
                    if not left:
                        return
            if len(left) < len(wanted) or target == 0:  # the key frame was right, or there is no earlier one
                return


_opened = OpenFiles(_Video, _OPEN)


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
