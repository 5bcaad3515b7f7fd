from __future__ import annotations

import av
import numpy as np
import pytest

from anyvla.data.formats import video
from tests.data.demonstrations import psnr, scene
from tests.data.numbered_videos import no_priority, priority


def decode(path, fps, indices):
    return video.decode_at(path, np.asarray(indices, np.float64) / fps, 1 / fps)


@pytest.mark.parametrize("shape", [(32, 32), (31, 45), (2, 2)])
@pytest.mark.parametrize("fps", [10, 12.5, 29.97])
def test_decoded_frames_are_close_and_in_order(tmp_path, shape, fps):
    frames = scene(30, 48)[:, : shape[0], : shape[1]]
    video.encode(tmp_path / "a.mp4", frames, fps)
    decoded = decode(tmp_path / "a.mp4", fps, range(30))
    assert decoded.shape == frames.shape
    assert psnr(frames, decoded) > 33


def test_loss_on_a_larger_scene_is_small_and_unbiased(tmp_path):
    frames = scene(24, 96)
    video.encode(tmp_path / "a.mp4", frames, 20)
    decoded = decode(tmp_path / "a.mp4", 20, range(24))
    assert psnr(frames, decoded) > 38
    assert np.abs((decoded.astype(float) - frames).mean(axis=(0, 1, 2))).max() < 0.5


COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (250, 128, 4)]


def test_pure_colors_come_back(tmp_path):
    """Red and blue are not swapped, and the stream declares BT.601, so that players show equal colors."""
    frames = np.stack([np.full((32, 32, 3), color, np.uint8) for color in COLORS])
    video.encode(tmp_path / "a.mp4", frames, 20)
    decoded = decode(tmp_path / "a.mp4", 20, range(len(COLORS)))
    assert np.abs(decoded.astype(int) - frames).max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert (container.streams.video[0].codec_context.colorspace, container.streams.video[0].pix_fmt) == (
            6,
            "yuv444p",
        )
        # BT.601, limited range: Y = 16 + 219 (0.299 R + 0.587 G + 0.114 B)
        for frame, (red, green, blue) in zip(container.decode(video=0), COLORS, strict=True):
            luma = 16 + 219 / 255 * (0.299 * red + 0.587 * green + 0.114 * blue)
            assert abs(frame.to_ndarray()[0].mean() - luma) < 3


def test_a_border_between_two_colors_stays_sharp(tmp_path):
    """Color is kept at full resolution: a column of red beside one of blue."""
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[:, :, ::2, 0], frames[:, :, 1::2, 2] = 200, 200
    video.encode(tmp_path / "a.mp4", frames, 20)
    decoded = decode(tmp_path / "a.mp4", 20, range(4)).astype(int)
    assert decoded[:, :, ::2, 0].mean() > 180
    assert decoded[:, :, 1::2, 0].mean() < 20


def test_key_frames_are_near_and_there_are_no_b_frames(tmp_path):
    video.encode(tmp_path / "a.mp4", scene(40), 20)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.dts is not None]
    assert len(packets) == 40
    assert all(p.pts == p.dts for p in packets)
    keys = [i for i, p in enumerate(packets) if p.is_keyframe]
    assert keys[0] == 0
    assert max(np.diff([*keys, 40])) <= 8


def test_any_part_can_be_decoded(tmp_path):
    video.encode(tmp_path / "a.mp4", scene(50), 25)
    whole = decode(tmp_path / "a.mp4", 25, range(50))
    for start, count in [(0, 1), (7, 1), (8, 9), (13, 30), (49, 1)]:
        assert np.array_equal(decode(tmp_path / "a.mp4", 25, range(start, start + count)), whole[start : start + count])
    chosen = [40, 3, 3, 12, 49, 0, 13]
    assert np.array_equal(decode(tmp_path / "a.mp4", 25, chosen), whole[chosen])


@pytest.mark.parametrize("fps", [10, 12.5, 29.97])
def test_joined_files_hold_every_frame_at_its_time(tmp_path, fps):
    lengths = [11, 1, 30, 8]
    for i, length in enumerate(lengths):
        video.encode(tmp_path / f"{i}.mp4", scene(length, seed=5 * i), fps)
    parts = [decode(tmp_path / f"{i}.mp4", fps, range(n)) for i, n in enumerate(lengths)]
    starts = video.join([tmp_path / f"{i}.mp4" for i in range(4)], tmp_path / "all.mp4", fps)
    assert starts == [0, 11, 12, 42]
    assert np.array_equal(decode(tmp_path / "all.mp4", fps, range(50)), np.concatenate(parts))  # no re-encoding
    with av.open(str(tmp_path / "all.mp4")) as container:
        times, seconds = [frame.time for frame in container.decode(video=0)], container.duration / av.time_base
    assert np.allclose(times, np.arange(50) / fps, atol=1e-4)  # LeRobot's tolerance; 29.97 is kept as 2997/100
    assert seconds == pytest.approx(50 / fps, abs=2e-3)


def test_missing_frames_are_named(tmp_path):
    video.encode(tmp_path / "a.mp4", scene(10), 20)
    with pytest.raises(ValueError, match=r"a\.mp4: frame 10 is missing or damaged \(frames 5 to 14 asked\)"):
        decode(tmp_path / "a.mp4", 20, range(5, 15))


def test_the_header_of_a_damaged_video_closes_the_open_videos(tmp_path):
    video.encode(tmp_path / "a.mp4", scene(10), 20)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    opened = video._open_videos(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"b\.mp4 is damaged"):
        video.read_info(tmp_path / "b.mp4")
    assert video._open_videos(tmp_path / "a.mp4") is not opened
    assert video.read_info(tmp_path / "a.mp4").frames == 10


@pytest.mark.parametrize("frames", [scene(3).astype(np.float32), scene(3)[0], scene(3)[..., :1]])
def test_only_uint8_rgb_is_encoded(tmp_path, frames):
    with pytest.raises(ValueError, match=r"uint8 frames \(H, W, 3\)"):
        video.encode(tmp_path / "a.mp4", frames, 20)


def test_a_video_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        video.encode(tmp_path / "a.mp4", [], 20)


def foreign(path, frames, fps, codec, **options):
    """Write a video as other programs do: with their codec, B-frames and distant key frames."""
    with no_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array)))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "250", "bf": "3"}),
        ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}),
        # Without threads, of which x265 once waited for ever.
        (
            "libx265",
            {"g": "20", "bf": "4", "x265-params": "log-level=none:open-gop=1:keyint=20:pools=none:frame-threads=1"},
        ),
        ("libsvtav1", {"g": "2", "crf": "30"}),
        ("libsvtav1", {"g": "32", "crf": "30", "preset": "12"}),
        ("mpeg4", {"g": "10", "bf": "2", "b": "4000000"}),
    ],
)
def test_frames_of_any_codec_are_found_by_their_time(tmp_path, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    frames = np.stack([np.full((64, 64, 3), (4 * t, 250 - 4 * t, 100), np.uint8) for t in range(60)])
    before = priority()
    foreign(tmp_path / "a.mp4", frames, 10, codec, **options)
    assert priority() == before
    whole = decode(tmp_path / "a.mp4", 10, range(60))
    assert np.abs(whole.astype(float) - frames).mean(axis=(1, 2, 3)).max() < 3
    rng = np.random.default_rng(0)
    for _ in range(30):
        chosen = rng.integers(0, 60, size=rng.integers(1, 9))
        assert np.array_equal(decode(tmp_path / "a.mp4", 10, chosen), whole[chosen])


def test_only_the_needed_span_is_decoded(tmp_path, monkeypatch):
    video.encode(tmp_path / "a.mp4", scene(200), 25)
    decode(tmp_path / "a.mp4", 25, [0])
    opened = video._open_videos(tmp_path / "a.mp4")
    decoded = []
    container = opened._container

    class Counting:
        def seek(self, *args, **kwargs):
            return container.seek(*args, **kwargs)

        def decode(self, stream):
            for frame in container.decode(stream):
                decoded.append(frame.pts)
                yield frame

    monkeypatch.setattr(opened, "_container", Counting())
    for wanted, most in (([100, 101, 102], 3 + 8), ([3, 150], 2 + 2 * 8), ([77] * 5, 8)):
        decoded.clear()
        decode(tmp_path / "a.mp4", 25, wanted)
        assert len(decoded) <= most
        assert len(set(decoded)) == len(decoded)  # each frame once
