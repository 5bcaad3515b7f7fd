from __future__ import annotations

import av
import numpy as np
import pytest

from anyvla.report.video import FAILURE, NEUTRAL, SUCCESS, add_caption, write_video


def moving(length=12, height=96, width=128):
    """Return frames of a bright square that moves right on a dark background."""
    frames = np.full((length, height, width, 3), 40, np.uint8)
    for t in range(length):
        frames[t, 30:60, 5 * t : 5 * t + 30] = (240, 200, 60)
    return frames


def atoms(path):
    """Return the names of the top-level boxes of an mp4, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def test_the_encoding_is_one_that_browsers_play(tmp_path):
    frames = moving()
    write_video(tmp_path / "videos" / "a.mp4", iter(frames), fps=20)
    with av.open(str(tmp_path / "videos" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 20
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 4
    names = atoms(tmp_path / "videos" / "a.mp4")
    assert names.index("moov") < names.index("mdat")  # plays while it loads
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["a.mp4"]


def test_odd_sizes_grow_by_a_pixel(tmp_path):
    write_video(tmp_path / "a.mp4", moving(height=95, width=127), fps=12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (96, 128)
        assert float(stream.average_rate) == 12.5


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 20, "at least one frame, got none"),
        ([np.zeros((4, 4, 3), np.float32)], 20, r"frame 0 must be uint8 \(H, W, 3\), got float32 \(4, 4, 3\)"),
        ([np.zeros((4, 4), np.uint8)], 20, r"frame 0 must be uint8 \(H, W, 3\), got uint8 \(4, 4\)"),
        (
            [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 34, 3), np.uint8)],
            20,
            r"frame 1 has the shape \(32, 34, 3\)",
        ),
        ([np.zeros((32, 32, 3), np.uint8)], 0, r"fps must be in 0\.\.1000, got 0"),
    ],
)
def test_bad_frames_are_named(tmp_path, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_video_leaves_the_older_one(tmp_path):
    write_video(tmp_path / "a.mp4", moving(), fps=20)
    before = (tmp_path / "a.mp4").read_bytes()

    def breaks():
        yield from moving(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", breaks(), fps=20)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


TEXTS = ["", "open the drawer", "push the window to the left until it is open and then leave it alone", "x" * 300]


@pytest.mark.parametrize("width", [96, 240, 640])
def test_the_strip_keeps_the_frame_and_one_height(width):
    frame = np.full((240, width, 3), 90, np.uint8)
    captioned = [add_caption(frame, t, c, m) for t in TEXTS for c, m in ((NEUTRAL, None), (SUCCESS, "tick"))]
    assert len({c.shape for c in captioned}) == 1
    assert captioned[0].shape[0] > 240
    assert captioned[0].shape[0] % 2 == 0
    assert all(np.array_equal(c[-240:], frame) for c in captioned)


def test_text_is_legible_at_240_pixels_and_stays_inside():
    frame = np.zeros((240, 240, 3), np.uint8)
    bright = [(add_caption(frame, text, NEUTRAL)[:-240] > 180).all(-1) for text in TEXTS]
    assert not bright[0].any()
    rows = np.flatnonzero(bright[1].any(1))
    assert rows[-1] - rows[0] + 1 >= 10  # from the top of d to the foot of p
    for strip in bright[1:]:
        assert not strip[:, :3].any()
        assert not strip[:, -3:].any()
        assert not strip[:2].any()
    assert np.flatnonzero(bright[2].any(1))[-1] - rows[0] > rows[-1] - rows[0]  # the long one takes a second line


def test_outcomes_differ_in_color_and_in_shape():
    frame = np.zeros((240, 240, 3), np.uint8)
    tick, cross = add_caption(frame, "go", SUCCESS, "tick")[:-240], add_caption(frame, "go", FAILURE, "cross")[:-240]
    assert tuple(tick[-1, 5]) == (0x1F, 0x9D, 0x61)
    assert tuple(cross[-1, 5]) == (0xD1, 0x45, 0x2B)
    white = [(s[:, 200:] > 200).all(-1) for s in (tick, cross)]
    assert white[0].any()
    assert white[1].any()
    assert not np.array_equal(white[0], white[1])


def test_an_unknown_color_is_refused():
    with pytest.raises(ValueError, match="unknown color"):
        add_caption(np.zeros((64, 64, 3), np.uint8), "go", "greenish")
