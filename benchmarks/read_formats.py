"""Measure reading: windows per second of each format, statistics of a million steps, and memory of RLDS over time.

    python benchmarks/read_formats.py windows                 # 40 episodes of 100 steps, two 128 px cameras, W = 8
    python benchmarks/read_formats.py statistics              # 10,000 episodes of 100 steps, 7 + 7 dims
    python benchmarks/read_formats.py memory --minutes 10 --out rss.csv
    python benchmarks/read_formats.py index --episodes 100000 # of RLDS: made once, then opened

Frames are never kept (`cache_gb` 0): each window is decoded each time, by the decoding threads of one process. The data
is made up; RLDS records are written by the few lines below, in the format of tensorflow-datasets.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from google_crc32c import value as crc32c
from PIL import Image

from anyvla.config import to_dict
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.formats.folder import write_description
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.formats.rlds.dataset import RLDSDataset
from anyvla.data.formats.rlds.index import RLDSConfig
from anyvla.data.open import open_dataset
from anyvla.data.robot_statistics import pool_statistics
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import MixtureSampler
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group

CAMERAS, SIZE, STEPS = ("front", "wrist"), 128, 100
JOINTS = ActionSpace(groups=(Group(name="joints", size=7, kind="joints"),))
ROBOT = Embodiment(name="arm", cameras=CAMERAS, proprio=JOINTS, action=JOINTS, control_hz=20)


def scene(seed: int) -> np.ndarray:
    """Return frames (T, H, W, 3) of a moving block on shaded ground with a little noise."""
    y, x = np.mgrid[:SIZE, :SIZE]
    rng = np.random.default_rng(seed)
    ground = np.stack([120 + 50 * np.sin(x / 9 + seed), 100 + 40 * np.cos(y / 8), 90 + (x + y) / 4], -1)
    frames = np.empty((STEPS, SIZE, SIZE, 3), np.uint8)
    for t in range(STEPS):
        frames[t] = (ground + rng.normal(scale=3, size=ground.shape)).clip(0, 255)
        at = 2 + (3 * t + seed) % (SIZE - 30)
        frames[t, at : at + 24, 20:44] = (210, 40, 30)
    return frames


def episodes(count: int) -> list[Episode]:
    out = []
    for seed in range(count):
        numbers = np.random.default_rng(seed).normal(size=(2, STEPS, 7)).astype(np.float32)
        images = {camera: scene(2 * seed + i) for i, camera in enumerate(CAMERAS)}
        out.append(
            Episode(
                embodiment=ROBOT,
                images=images,
                proprio=numbers[0],
                actions=numbers[1],
                instructions=("do it",),
                timestamps=steady_timestamps(STEPS, 20),
            )
        )
    return out


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: dict[str, bytes]) -> bytes:
    entries = [field(1, field(1, name.encode()) + field(2, feature)) for name, feature in features.items()]
    return field(1, b"".join(entries))


def record(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def write_rlds(root: Path, records: list[bytes], shape: tuple[int, ...]) -> None:
    shards = min(8, len(records))
    tensor = {"tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32", "encoding": "none"}}
    image = {"image": {"shape": {"dimensions": [str(n) for n in shape]}, "encodingFormat": "jpeg"}}
    observation = {"state": tensor} | {camera: image for camera in CAMERAS if shape}
    steps = {"action": tensor, "language_instruction": {"text": {}}}
    steps["observation"] = {"featuresDict": {"features": observation}}
    top = {"steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}}}
    root.mkdir(parents=True)
    (root / "features.json").write_text(json.dumps({"featuresDict": {"features": top}}), encoding="utf-8")
    parts = [records[i::shards] for i in range(shards)]
    split = {"name": "train", "shardLengths": [str(len(p)) for p in parts]}
    (root / "dataset_info.json").write_text(json.dumps({"name": "made_up", "splits": [split]}), encoding="utf-8")
    for i, part in enumerate(parts):
        with (root / f"made_up-train.tfrecord-{i:05d}-of-{shards:05d}").open("wb") as file:
            file.writelines(part)


def rlds_record(episode: Episode, frames: bool) -> bytes:
    def jpeg(frame: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    features = {
        "steps/action": field(2, field(1, episode.actions.astype("<f4").tobytes())),
        "steps/observation/state": field(2, field(1, episode.proprio.astype("<f4").tobytes())),
        "steps/language_instruction": field(1, field(1, b"do it") * len(episode)),
    }
    if frames:
        for camera in CAMERAS:
            encoded = b"".join(field(1, jpeg(frame)) for frame in episode.images[camera][:])
            features[f"steps/observation/{camera}"] = field(1, encoded)
    return record(example(features))


def open_rlds(root: Path, cameras: tuple[str, ...] = CAMERAS) -> RLDSDataset:
    robot = Embodiment(**{**vars(ROBOT), "cameras": cameras})
    return RLDSDataset(RLDSConfig(proprio=("observation/state",)), root, robot)


def make(root: Path, count: int) -> dict[str, WindowDataset]:
    """Write the same episodes in every format."""
    data = episodes(count)
    write_dataset(root / "lerobot", ROBOT, data)
    write_description(root / "npz", ROBOT)
    write_description(root / "hdf5", ROBOT)
    for i, episode in enumerate(data):
        arrays = {"actions": episode.actions, "proprio": episode.proprio, "instruction": np.array("do it")}
        arrays |= {f"images/{camera}": frames for camera, frames in episode.images.items()}
        np.savez(root / f"npz/{i:04d}.npz", **arrays)
        with h5py.File(root / f"hdf5/{i:04d}.hdf5", "w") as file:
            for key, value in arrays.items():
                file[key] = "do it" if key == "instruction" else value
    write_rlds(root / "rlds", [rlds_record(e, True) for e in data], (SIZE, SIZE, 3))
    opened = {name: open_dataset(root / name) for name in ("lerobot", "npz", "hdf5")}
    opened["rlds"] = open_rlds(root / "rlds")
    config = WindowConfig(window=8, chunk=8, cache_gb=0)
    return {name: WindowDataset(Mixture([d], [1.0], [None]), config) for name, d in opened.items()}


def windows(options: argparse.Namespace, root: Path) -> None:
    made = make(root, 40)
    samplers = {name: MixtureSampler(w.sizes, [1.0], 16, 0) for name, w in made.items()}
    rates: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(options.rounds):
        for name, data in made.items():
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < 2:
                data.batch(samplers[name].sample(turn * 1000 + count))
                count += 1
            rates[name].append(16 * count / (time.perf_counter() - begin))
    for name, found in rates.items():
        size = sum(p.stat().st_size for p in (root / name).rglob("*") if p.is_file()) / 1e6
        print(f"{name:>8}: {np.median(found):6.0f} windows/s ({min(found):.0f} to {max(found):.0f}), {size:.0f} MB")


def statistics(options: argparse.Namespace, root: Path) -> None:
    count = options.episodes or 10_000
    robot = Embodiment(**{**vars(ROBOT), "cameras": ()})
    folder = root / "lerobot"
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    vector = {"dtype": "float32", "shape": [7], "names": None}
    info = {"codebase_version": "v3.0", "fps": 20, "total_episodes": count, "features": {}}
    info["features"] = {"action": vector, "observation.state": vector}
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["anyvla"] = {"embodiment": to_dict(robot)}
    (folder / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    pq.write_table(pa.table({"task_index": [0], "task": ["do it"]}), folder / "meta/tasks.parquet")
    first, zeros = np.arange(count) * STEPS, np.zeros(count, int)
    table = {"episode_index": np.arange(count), "tasks": [["do it"]] * count, "length": np.full(count, STEPS)}
    table |= {"dataset_from_index": first, "dataset_to_index": first + STEPS}
    table |= {"data/chunk_index": zeros, "data/file_index": zeros}
    pq.write_table(pa.table(table), folder / "meta/episodes/chunk-000/file-000.parquet")
    rng, writer = np.random.default_rng(0), None
    for i in range(count):
        columns: dict[str, pa.Array] = {}
        for key in ("action", "observation.state"):
            flat = pa.array(rng.normal(size=7 * STEPS).astype(np.float32))
            columns[key] = pa.FixedSizeListArray.from_arrays(flat, 7)
        columns["timestamp"] = pa.array((np.arange(STEPS) / 20).astype(np.float32))
        for key, values in (
            ("frame_index", np.arange(STEPS)),
            ("episode_index", np.full(STEPS, i)),
            ("index", i * STEPS + np.arange(STEPS)),
            ("task_index", np.zeros(STEPS, int)),
        ):
            columns[key] = pa.array(values)
        part = pa.table(columns)
        writer = writer or pq.ParquetWriter(folder / "data/chunk-000/file-000.parquet", part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()
    os.environ["ANYVLA_CACHE"] = str(root / "cache")
    for turn in ("computed", "kept"):
        begin = time.perf_counter()
        dataset = open_dataset(folder)
        pool_statistics([dataset])
        print(f"{turn}: {time.perf_counter() - begin:.2f} s for {count * STEPS:,} steps of 7 + 7 dims")


def resident(kind: str) -> float:
    """Return the memory of this process in MB: RssAnon (private) and RssFile (pages of mapped files)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024 / 1e6


def drawn(megabytes: np.ndarray, minutes: float) -> str:
    """Return an SVG of private memory and mapped files (n, 2) over time."""
    width, height, top = 640, 220, max(1.0, float(megabytes.max()) * 1.25)
    x = np.linspace(50, width - 10, len(megabytes))
    parts = []
    for name, values, color in zip(("own memory", "mapped files"), megabytes.T, ("#2160c4", "#c2410c"), strict=True):
        y = height - 30 - values / top * (height - 50)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 12}" y="{y[-1] - 8:.1f}" text-anchor="end" fill="{color}">{name}</text>')
    frame = f'<path d="M50 10V{height - 30}H{width - 10}" fill="none" stroke="#808080"/>'
    labels = f'<text x="46" y="18" text-anchor="end">{top:.0f} MB</text>'
    labels += f'<text x="46" y="{height - 30}" text-anchor="end">0</text>'
    labels += f'<text x="{width - 10}" y="{height - 10}" text-anchor="end">{minutes:g} minutes</text>'
    style = 'font-family="sans-serif" font-size="13" fill="#808080"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>'
    return f"{head}{frame}{labels}{''.join(parts)}</svg>\n"


def memory(options: argparse.Namespace, root: Path) -> None:
    records = [rlds_record(e, True) for e in episodes(20)]  # repeat each one often, so that the files are large
    write_rlds(root / "rlds", records * ((options.episodes or 1000) // 20), (SIZE, SIZE, 3))
    data = WindowDataset(Mixture([open_rlds(root / "rlds")], [1.0], [None]), WindowConfig(window=8, cache_gb=0))
    sampler = MixtureSampler(data.sizes, [1.0], 16, 0)
    begin = reported = time.perf_counter()
    lines, step = ["seconds,windows,own_mb,mapped_mb"], 0
    while time.perf_counter() - begin < 60 * options.minutes:
        data.batch(sampler.sample(step))
        step += 1
        if time.perf_counter() - reported > 60 * options.minutes / 200:
            reported = time.perf_counter()
            own, mapped = (resident(kind) for kind in ("RssAnon", "RssFile"))
            lines.append(f"{reported - begin:.1f},{16 * step},{own:.1f},{mapped:.1f}")
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = np.array([line.split(",")[2:] for line in lines[1:]], float)  # (n, 2)
    options.out.with_suffix(".svg").write_text(drawn(found, options.minutes), encoding="utf-8")
    tenth = max(1, len(found) // 10)
    print(f"{16 * step:,} windows, {16 * step / (time.perf_counter() - begin):.0f} a second")
    for name, values in zip(("own memory", "mapped files"), found.T, strict=True):
        first, last = values[:tenth].mean(), values[-tenth:].mean()
        print(
            f"{name}: {first:.0f} MB in the first tenth of the time, {last:.0f} in the last, {values.max():.0f} at most"
        )


def index(options: argparse.Namespace, root: Path) -> None:
    count = options.episodes or 100_000
    one = rlds_record(episodes(1)[0], False)
    write_rlds(root / "rlds", [one] * count, ())
    os.environ["ANYVLA_CACHE"] = str(root / "cache")
    for turn in ("made", "opened"):
        before, begin = psutil.Process().memory_info().rss, time.perf_counter()
        dataset = open_rlds(root / "rlds", ())
        seconds = time.perf_counter() - begin
        used = (psutil.Process().memory_info().rss - before) / 1e6
        print(f"{turn}: {len(dataset):,} episodes in {seconds:.2f} s, {used:.0f} MB more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {"windows": windows, "statistics": statistics, "memory": memory, "index": index}
    parser.add_argument("what", choices=measures)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("rss.csv"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measures[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
