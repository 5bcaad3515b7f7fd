"""Tests that no reader opens a file outside of the data set's folder, or anything but a regular file."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anyvla.cli.main import main
from anyvla.data.formats import video
from anyvla.data.formats.calvin.dataset import CalvinConfig, CalvinDataset
from anyvla.data.formats.lerobot import parquet
from anyvla.data.formats.lerobot.paths import PathTemplate
from anyvla.data.formats.rlds import frames as rlds_frames
from anyvla.data.formats.rlds import tf_example
from anyvla.data.formats.rlds.features import FeatureSpec
from anyvla.data.open import open_dataset
from anyvla.data.vqa import open_vqa
from tests.data.formats.lerobot.test_package import FIXTURES, SO101

NUMBERS = ("chunk_index", "file_index")
START = np.zeros(1)  # the time of the first frame


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "set"))


def opened(root: Path) -> Any:
    return open_dataset(root, embodiment=SO101)


def edit(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def template(pattern: Any, fields: tuple[str, ...] = NUMBERS) -> PathTemplate:
    return PathTemplate(Path("set"), {"data_path": pattern}, "data_path", fields)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "data/chunk-002/file-1234.parquet"),
        ("data/{chunk_index}/{file_index:d}.parquet", "data/2/1234.parquet"),
        ("data/all.parquet", "data/all.parquet"),
        ("{file_index:06d}/{file_index:06d}", "001234/001234"),
    ],
)
def test_templates_of_lerobot_are_filled(pattern: str, path: str) -> None:
    assert template(pattern).fill(chunk_index=2, file_index=1234) == path


@pytest.mark.parametrize(
    "pattern",
    [
        "data/{chunk_index.__class__}/{file_index}",
        "data/{chunk_index[0]}",
        "data/{chunk_index!r}",
        "data/{0}",
        "data/{}",
        "data/{file_index:999999999d}",
        "data/{file_index:0{chunk_index}d}",
        "data/{file_index:>9}",
        "data/{file_index:.9f}",
        "data/{other}",
        "data/{{file_index}}",
        "data/{file_index",
        "data/file_index}",
        None,
        7,
        ["data"],
    ],
)
def test_templates_with_anything_but_fields_are_refused(pattern: Any) -> None:
    with pytest.raises(ValueError, match=r"set/meta/info\.json, 'data_path' is"):
        template(pattern)


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../{file_index}", "data/../../x", "C:/x", "data\\x", "data/\0"])
def test_paths_that_lead_out_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="set names the file"):
        template(pattern).fill(chunk_index=0, file_index=0)


@pytest.mark.parametrize("name", ["v2_image", "v2_video", "v3_image", "v3_video"])
def test_lerobot_reads_no_data_outside(name: str, tmp_path: Path) -> None:
    root = copied(name, tmp_path)
    (tmp_path / "secret.parquet").write_bytes(b"x")
    keys = ["data_path", *(["video_path"] if "video" in name else [])]
    for key in keys:
        kept = json.loads((root / "meta/info.json").read_text())[key]
        for path in ("../secret.parquet", str(tmp_path / "secret.parquet"), "data/{chunk_index.__init__}"):
            edit(root, **{key: path})
            with pytest.raises(ValueError, match=r"names the file|'(data|video)_path' is"):
                opened(root)
        edit(root, **{key: kept})
    first = next(iter(sorted(root.glob("data/*/*.parquet"))))
    first.rename(tmp_path / "moved")
    first.symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match="a symbolic link to"):
        opened(root)[0]
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(ValueError, match="a pipe"):
        opened(root)[0]


def test_an_index_of_lerobot_outside_the_folder_is_refused(tmp_path: Path) -> None:
    root = copied("v3_image", tmp_path)
    for name in ("meta/info.json", "meta/tasks.parquet", next(root.glob("meta/episodes/*/*"))):
        path = root / name
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
        with pytest.raises(ValueError, match=rf"{path.name}', a symbolic link to"):
            opened(root)[0]
        path.unlink()
        (tmp_path / "moved").rename(path)
    assert len(opened(root)[0])


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "..\\secret.png", "link.png", "pipe.png"])
def test_still_images_outside_the_folder_are_refused(path: str, tmp_path: Path) -> None:
    root = copied("v2_image", tmp_path)
    (tmp_path / "secret.png").write_bytes(b"x")
    (root / "link.png").symlink_to("../secret.png")
    os.mkfifo(root / "pipe.png")
    file = next(iter(sorted(root.glob("data/*/*.parquet"))))
    table = pq.read_table(file)
    camera = next(k for k in table.column_names if k.startswith("observation.images"))
    rows = pa.array([{"bytes": None, "path": path}] * len(table))
    pq.write_table(table.set_column(table.column_names.index(camera), camera, rows), file)
    with pytest.raises(ValueError, match=r"secret\.png|passwd|link\.png|pipe\.png"):
        np.asarray(opened(root)[0].images[camera.removeprefix("observation.images.")])


def test_a_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    """huggingface_hub keeps each file as a link to a blob."""
    repository = tmp_path / "datasets--someone--pushes"
    snapshot, blobs = repository / "snapshots/0123", repository / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(p for p in sorted((FIXTURES / "v3_video").rglob("*")) if p.is_file()):
        link = snapshot / path.relative_to(FIXTURES / "v3_video")
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / f"{number:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    dataset = opened(snapshot)
    assert len(np.asarray(next(iter(dataset[0].images.values())))) == len(dataset[0])
    assert dataset.fingerprint


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "sub/../../a.png", "..\\a.png", "C:\\a.png", "link.png"])
def test_pictures_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "vqa"
    root.mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    (root / "link.png").symlink_to("../a.png")
    (root / "questions.jsonl").write_text(json.dumps({"image": name, "question": "?", "answer": "!"}) + "\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl, entry 0.* names the file"):
        _ = open_vqa(root)[0].images


def test_a_parquet_file_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"action": pa.array(np.zeros(20_000_000, np.int8))}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"a\.parquet promises \d+ rows"):
        parquet.open_parquet(path)


def test_endless_numbers_in_records_are_refused() -> None:
    feature = tf_example.ExampleFeature(3, memoryview(b"\x0a\x0b" + b"\xff" * 11))
    for data in (feature, tf_example.ExampleFeature(3, memoryview(b"\x0a\x01\x80"))):
        with pytest.raises(ValueError, match="a number has no end"):
            data.numbers()
    with pytest.raises(ValueError, match="a number has no end"):
        tf_example.parse_example(memoryview(b"\x80" * 1_000_000))


def test_a_tensor_that_unpacks_to_too_much_is_refused() -> None:
    import zlib

    bomb = zlib.compress(bytes(80 << 20))
    data = b"\x0a" + tf_varint(len(bomb)) + bomb
    record = {"steps/depth": tf_example.ExampleFeature(1, memoryview(data))}
    with pytest.raises(ValueError, match="decompresses to more than"):
        rlds_frames.read_numbers(record, "steps/depth", FeatureSpec("tensor", (1,), "uint8", "zlib", False), 1)


def tf_varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("name", ["a.hdf5", "meta/info.json", "dataset.yaml", "ep_start_end_ids.npy"])
def test_a_pipe_in_place_of_a_file_does_not_hang(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    (root / name).parent.mkdir(parents=True)
    os.mkfifo(root / name)
    assert main(["data", "info", str(root)])
    assert str(root) in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(ValueError, match="set"):
        open_dataset(root)


def test_a_video_that_lists_other_files_is_refused(tmp_path: Path) -> None:
    """FFmpeg detects playlists by their contents and would open the files that they name."""
    secret = next((FIXTURES / "v3_video").rglob("*.mp4"))
    shutil.copy(secret, tmp_path / "secret.mp4")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "b.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n")
    assert len(video.decode_at(tmp_path / "secret.mp4", START, 0.1)) == 1
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            video.decode_at(tmp_path / name, START, 0.1)


def test_a_video_of_depth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "depth.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "gray16le"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16), 900, np.uint16), format="gray16le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"depth\.mkv holds gray16le, which is depth"):
        video.decode_at(path, START, 0.1)


def encoded_depth() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 24), 900, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def test_depth_in_the_rows_of_lerobot_is_refused(tmp_path: Path) -> None:
    root = copied("v3_image", tmp_path)
    file = next(iter(sorted(root.glob("data/*/*.parquet"))))
    table = pq.read_table(file)
    place = table.column_names.index("observation.images.top")
    rows = pa.array([{"bytes": encoded_depth(), "path": None}] * len(table))
    pq.write_table(table.set_column(place, "observation.images.top", rows), file)
    with pytest.raises(ValueError, match=r"the image of step 0: the image .*16 bits.*leave a camera of depth"):
        np.asarray(opened(root)[0].images["top"])


def test_depth_in_a_record_is_refused() -> None:
    png = encoded_depth()
    feature = tf_example.ExampleFeature(1, memoryview(b"\x0a" + tf_varint(len(png)) + png))
    frames = rlds_frames.EncodedFrames.__new__(rlds_frames.EncodedFrames)
    frames._where, frames._swapped = "record 3, depth", False
    with pytest.raises(ValueError, match=r"record 3, depth, the image of step 0: .*16 bits"):
        frames._decode(feature.byte_strings()[0], 0)


def test_steps_and_index_of_calvin_outside_the_folder_are_refused(tmp_path: Path) -> None:
    split = tmp_path / "training"
    split.mkdir()
    np.save(tmp_path / "ids.npy", np.array([[0, 0]]))
    np.savez(tmp_path / "step.npz", rgb_static=np.zeros((8, 8, 3), np.uint8))
    (split / "ep_start_end_ids.npy").symlink_to("../ids.npy")
    with pytest.raises(ValueError, match=r"ep_start_end_ids\.npy', a symbolic link to"):
        CalvinDataset(CalvinConfig(segments="play"), tmp_path)
    (split / "ep_start_end_ids.npy").unlink()
    shutil.copy(tmp_path / "ids.npy", split / "ep_start_end_ids.npy")
    (split / "episode_0000000.npz").symlink_to("../step.npz")
    with pytest.raises(ValueError, match=r"episode_0000000\.npz', a symbolic link to"):
        CalvinDataset(CalvinConfig(segments="play"), tmp_path)
    (tmp_path / "linked").symlink_to(split)  # the user chose this one
    (split / "episode_0000000.npz").unlink()
    shutil.copy(tmp_path / "step.npz", split / "episode_0000000.npz")
    with pytest.raises(ValueError, match=r"has no key 'rel_actions'"):
        _ = CalvinDataset(CalvinConfig(segments="play"), tmp_path / "linked")[0]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("fps",), [[]]),
        (("fps",), 0),
        (("fps",), 1e400),
        (("total_episodes",), "3"),
        (("features",), None),
        (("features", "action"), ["a"]),
        (("features", "action", "shape"), None),
        (("features", "action", "shape"), [10**30]),
        (("features", "action", "names"), 7),
        (("features", "observation.image", "dtype"), {}),
        (("features", "observation.image", "shape"), 1.5),
        (("features", "observation.image", "info"), "x"),
        (("anyvla",), []),
        (("chunks_size",), 0),
        (("data_path",), None),
    ],
)
def test_facts_of_other_types_are_refused_with_their_key(keys: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    root = copied("v2_image", tmp_path)
    path = root / "meta/info.json"
    facts = json.loads(path.read_text())
    at = facts
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=rf"info\.json.*{keys[-1]}"):
        opened(root)


@pytest.mark.parametrize("at", [254, 4, 300, 1000, 2190])
def test_damaged_parquet_does_not_abort_the_process(at: int, tmp_path: Path) -> None:
    """With byte 254 changed, pyarrow aborts the process if it is asked about the column before it is read."""
    data = bytearray((FIXTURES / "v3_video/meta/tasks.parquet").read_bytes())
    data[at] = 108
    path = tmp_path / "tasks.parquet"
    path.write_bytes(data)
    code = (
        "import sys; from pathlib import Path\n"
        "from anyvla.data.formats.lerobot.parquet import errors_naming, open_parquet\n"
        "path = Path(sys.argv[1])\n"
        "try:\n    with errors_naming(path): open_parquet(path).read()\nexcept ValueError: pass"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
