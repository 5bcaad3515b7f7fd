"""Encodes, joins and decodes videos of episodes with PyAV.

Videos are written in H.264 at a constant rate, without B-frames and with a key frame every few frames: packet k is
frame k. A frame is then found by a short seek, and files are joined by copying packets. A policy is trained on decoded
frames and acts on raw ones, so the loss is kept small with full-resolution color (42 dB on a rendered 96 px scene,
against 35 dB with halved color, for the same bytes). Videos of any codec and any key frames are read: frames are found
by their time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from jaxtyping import Float64, Int64, UInt8

from anyvla.data.formats.images import check_image_size
from anyvla.data.formats.open_files import OpenFiles
from anyvla.data.frame_times import find_video_frames

KEY_FRAME_INTERVAL = 8
# A lower crf gives better and larger videos. fastdecode (no CABAC, no loop filter) halves the time to read a window of
# 8 frames of 128 px, for 10 % more bytes at the same error.
_OPTIONS = {"crf": "13", "preset": "veryfast", "tune": "fastdecode"}
# x264 encodes equal frames of 32 pixels differently in 1 to 5 % of the runs, but never without macroblock trees. At 64
# pixels none of 200 runs differed, and macroblock trees save a fifth of the bytes.
_SMALL, _SMALL_OPTIONS = 64, {"x264-params": "mbtree=0"}
PIXEL_FORMAT = "yuv444p"  # color at full resolution
_BT601, _LIMITED = 6, 1  # the conversion to YUV; players guess it unless the file names it
# Other containers (HLS, concat) list further files, which FFmpeg would read from anywhere.
_CONTAINERS = "mov,mp4,matroska,webm,avi"
_DEPTH = ("gray9", "gray1", "grayf", "ya16")  # gray of more than 8 bits
_MAX_OPEN = 16  # videos kept open per thread
_SEEK_BACK_S = (0.0, 1.0, 10.0, 1e9)  # seek further back if key frames are not where the index says


def encode(path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """Write RGB frames to an mp4 file. Raises ValueError unless there is a frame and all are uint8 RGB."""
    rate = _rate(fps)
    shape: tuple[int, ...] | None = None
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = PIXEL_FORMAT
        stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _LIMITED
        stream.codec_context.gop_size = KEY_FRAME_INTERVAL
        stream.codec_context.max_b_frames = 0
        stream.codec_context.thread_count = 1  # equal bytes on every machine; episodes are encoded in parallel
        reformatter = VideoReformatter()
        for i, array in enumerate(frames):
            if shape is None:
                shape = array.shape
                if len(shape) == 3:
                    stream.height, stream.width = shape[:2]
                    stream.codec_context.options = _OPTIONS | (_SMALL_OPTIONS if min(shape[:2]) < _SMALL else {})
            if array.dtype != np.uint8 or array.shape != shape or len(shape) != 3 or shape[2] != 3:
                raise ValueError(f"a video needs uint8 frames (H, W, 3) of one shape, got {array.dtype} {array.shape}")
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(array)),
                format=PIXEL_FORMAT,
                dst_colorspace=Colorspace.ITU601,
                threads=1,
            )
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        if shape is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))


def decode_at(
    path: Path, times: Float64[np.ndarray, "K"], step: float, until: float = np.inf
) -> UInt8[np.ndarray, "K H W 3"]:
    """Return the frames shown at these seconds after the first frame of the video, as RGB, each decoded once.

    `step` is the time between two steps of the data. Frames from `until` on belong to the next episode, and an earlier
    time never gets one of them. Raises a ValueError that names the file, and the frame if one is missing or damaged.
    """
    with _errors_naming(path):
        opened = _open_videos(path)
        numbers = find_video_frames(opened.starts, opened.end, times, step, until)
        images = dict(opened.frames(sorted({int(n) for n in numbers if n >= 0})))
    missing = [i for i, number in enumerate(numbers) if int(number) not in images]
    if missing:
        first, low, high = (round(float(t) / step) for t in (times[missing].min(), times.min(), times.max()))
        raise ValueError(
            f"{path}: frame {first} is missing or damaged (frames {low} to {high} asked): the video has "
            f"{len(opened.starts)} frames in {opened.end:.3f} s; copy the dataset again"
        )
    return np.stack([images[int(number)] for number in numbers])


@dataclass(frozen=True)
class VideoInfo:
    """The header of a video."""

    frames: int
    first_time: float  # timestamp of the first frame, in seconds
    seconds: float  # from the first frame to the end
    rate: float | None  # frames per second; None: not evenly spaced
    height: int
    width: int
    codec: str  # "h264", "av1"


def read_info(path: Path) -> VideoInfo:
    """Return the header of a video. Raises a ValueError that names the file if it is missing or damaged."""
    with _errors_naming(path):
        return _open_videos(path).info


class _Video:
    """An open video file. Times are seconds after its first frame, whatever the timestamp of that frame."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container = av.open(str(path), options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"})
        if not self._container.streams.video:
            raise ValueError(f"{path} holds no video")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            raise ValueError(f"{path} has an unknown codec; copy the dataset again")
        check_image_size(context.width, context.height, str(path))
        if (context.pix_fmt or "").startswith(_DEPTH):
            raise ValueError(f"{path} holds {context.pix_fmt}, which is depth, not color; leave this camera out")
        context.thread_count = 1  # readers run in parallel; decoder threads would wait for more packets
        if self._stream.time_base is None:
            raise ValueError(f"{path}: the video has no time base")
        self._tick = float(self._stream.time_base)  # seconds
        entries = [(e.timestamp, e.is_keyframe, e.is_discard) for e in self._stream.index_entries]
        self._ticks, even = self._timestamps(np.array(entries, np.int64).reshape(-1, 3))
        self.starts = (self._ticks - self._ticks[0]) * self._tick
        gaps = np.diff(self._ticks)
        gap = float(np.median(gaps)) if len(gaps) else 1 / (float(self._stream.average_rate or 1) * self._tick)
        shown = 0 if even else float(self._stream.duration or 0)  # the last frame of an uneven video may last longer
        self.end = max(float(self._ticks[-1] - self._ticks[0]) + gap, shown) * self._tick
        self._borders = np.append(self._ticks[0] - gap / 2, self._ticks[:-1] + gaps / 2)  # between frames
        keys = np.array([e[0] for e in entries if e[1]], np.float64)
        self._key_frames = np.searchsorted(self._ticks, keys - gap / 4)  # the first frame after each key frame
        self._reformatter = VideoReformatter()
        rate, begin = len(self._ticks) / self.end if even else None, float(self._ticks[0]) * self._tick
        codec = context.codec.canonical_name
        self.info = VideoInfo(len(self._ticks), begin, self.end, rate, context.height, context.width, codec)

    def close(self) -> None:
        self._container.close()

    def _timestamps(self, entries: Int64[np.ndarray, "E 3"]) -> tuple[Float64[np.ndarray, "F"], bool]:
        """Return the time of each frame in ticks, in order, and whether the times are evenly spaced.

        An index holds decoding times. If they are evenly spaced, so are the times of the frames; else all packets are
        read for theirs.
        """
        count, begin = len(entries), self._stream.start_time
        if count > 1 and count == self._stream.frames and begin is not None and not entries[:, 2].any():
            gap = (entries[-1, 0] - entries[0, 0]) / (count - 1)
            grid = np.arange(count) * gap
            if gap > 0 and np.abs(entries[:, 0] - entries[0, 0] - grid).max() <= 1:  # a tick, from rounding
                return begin + grid, True
        packets = (p for p in self._container.demux(self._stream) if p.pts is not None and not p.is_discard)
        ticks = np.unique(np.array([p.pts for p in packets], np.float64))
        if not len(ticks):
            raise ValueError(f"{self._path} holds no frame with a timestamp")
        grid = np.linspace(ticks[0], ticks[-1], len(ticks))
        return ticks, bool(np.abs(ticks - grid).max() <= 1)

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, RGB image) of the wanted frames that exist; `wanted` increases."""
        keys, run = self._key_frames, list[int]()
        for number in wanted:
            if run and np.any((keys > run[-1] + 1) & (keys <= number)):  # a seek skips frames
                yield from self._decode_run(run)
                run = []
            run.append(number)
        if run:
            yield from self._decode_run(run)

    def _decode_run(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        left = list(wanted)
        first = self._ticks[0]
        for back in _SEEK_BACK_S:
            target = max(first, self._ticks[wanted[0]] - back / self._tick)
            self._container.seek(math.ceil(target), stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    raise ValueError(f"{self._path}: a frame has no timestamp")
                number = int(self._borders.searchsorted(frame.pts, side="right")) - 1
                if number > left[0]:
                    break
                if number == left[0]:
                    # starting threads costs more than a small frame
                    yield number, self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    left.pop(0)
                    if not left:
                        return
            if len(left) < len(wanted) or target == first:  # the seek worked, or there is no earlier frame
                return


_open_videos = OpenFiles(_Video, _MAX_OPEN)


def join(sources: Sequence[Path], target: Path, fps: float) -> list[int]:
    """Copy the packets of files written by `encode` into one file. Return the number of each file's first frame."""
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


def read_header(path: Path) -> bytes:
    """Return the codec header of a video; only files with equal headers can be joined."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return bytes(context.extradata or b"") + f"{context.width}x{context.height}".encode()


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the dataset again") from None
    except av.error.FFmpegError as error:
        _open_videos.close_all()
        raise ValueError(f"{path} is damaged ({error.strerror}); copy the dataset again") from None


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
