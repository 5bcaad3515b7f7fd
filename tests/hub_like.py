"""Writes small LeRobot data sets as people have them on the hub: their features, names, ranges and rates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.data.formats import video

SO101 = [f"{j}.pos" for j in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")]
KOCH = [f"main_{name.removesuffix('.pos')}" for name in SO101]
VIPERX = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
ALOHA = [f"{side}_{joint}" for side in ("left", "right") for joint in VIPERX]
LEKIWI = [f"arm_{name}" for name in SO101] + ["x.vel", "y.vel", "theta.vel"]
FRANKA = [f"joint_{i}" for i in range(7)] + ["gripper"]
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]


def scene(length: int, size: int, seed: int) -> np.ndarray:
    """(length, size, size, 3) uint8: a block that moves over a shaded ground."""
    y, x = np.mgrid[:size, :size]
    ground = np.stack([120 + 5 * seed + x, 100 + y, 90 + (x + y) // 2], -1).astype(np.uint8)
    frames = np.repeat(ground[None], length, 0)
    for t in range(length):
        at = (3 * t + seed) % (size - 8)
        frames[t, at : at + 8, 4:12] = (210, 40, 30)
    return frames


Features = Mapping[str, tuple[Any, Sequence[np.ndarray]]]  # key -> names, and the rows (T, D) of each episode


def curves(dims: int, low: float | Sequence[float], high: float | Sequence[float], steps: int, seed: int) -> np.ndarray:
    """(steps, dims): smooth motion that reaches both ends."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 2 * np.pi, steps)[:, None]
    wave = (1 + np.sin(t * rng.uniform(1.0, 2.0, dims) + rng.uniform(0, 6, dims))) / 2
    wave = (wave - wave.min(0)) / (wave.max(0) - wave.min(0))
    return np.asarray(low) + wave * (np.asarray(high) - np.asarray(low))


def opening(closed: float, opened: float, steps: int, seed: int) -> np.ndarray:
    """(steps, 1): a gripper that closes half way through."""
    return np.where(np.arange(steps)[:, None] < steps // 2 + seed % 3, opened, closed).astype(float)


def following(action: np.ndarray, lag: float = 0.7) -> np.ndarray:
    """The state of a robot that follows absolute commands: state t + 1 is close to action t."""
    state = np.empty_like(action)
    state[0] = action[0]
    for t in range(1, len(action)):
        state[t] = state[t - 1] + lag * (action[t - 1] - state[t - 1])
    return state


def write_hub_like(
    root: Path,
    features: Features,
    *,
    robot_type: str | None = "unknown",
    version: str = "v2.1",
    fps: int = 30,
    cameras: Sequence[str] = ("observation.images.front",),
    tasks: Sequence[str] = ("Pick up the cube.",),
    size: int = 32,
) -> Path:
    """Write a data set of v2.1 or v3.0; returns `root`."""
    lengths = [len(rows) for rows in next(iter(features.values()))[1]]
    (root / "meta").mkdir(parents=True)
    described: dict[str, Any] = {
        key: {"dtype": "float32", "shape": [int(rows[0].shape[1])], "names": names}
        for key, (names, rows) in features.items()
    }
    for key in cameras:
        info = {"video.fps": float(fps), "video.codec": "h264", "video.is_depth_map": False}
        names = ["height", "width", "channels"]
        described[key] = {"dtype": "video", "shape": [size, size, 3], "names": names, "info": info}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        described[key] = {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
    old = version.startswith("v2")
    facts = {
        "codebase_version": version,
        "robot_type": robot_type,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        if old
        else "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if old
        else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": described,
    }
    (root / "meta/info.json").write_text(json.dumps(facts, indent=4), encoding="utf-8")
    tables = [_rows(features, number, length, fps, len(tasks)) for number, length in enumerate(lengths)]
    frames = [scene(length, size, seed=number) for number, length in enumerate(lengths)]
    (_write_v2 if old else _write_v3)(root, tables, frames, lengths, cameras, tasks, fps)
    return root


def _rows(features: Features, number: int, length: int, fps: int, tasks: int) -> pa.Table:
    columns: dict[str, Any] = {}
    for key, (_, rows) in features.items():
        flat = pa.array(rows[number].astype(np.float32).ravel())
        width = rows[number].shape[1]
        columns[key] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
    columns["timestamp"] = (np.arange(length) / fps).astype(np.float32)
    columns["frame_index"] = np.arange(length)
    columns["episode_index"] = np.full(length, number)
    columns["index"] = np.arange(length)
    columns["task_index"] = np.full(length, number % tasks)
    return pa.table(columns)


def _write_v2(root: Path, tables: Any, frames: Any, lengths: Any, cameras: Any, tasks: Any, fps: int) -> None:
    (root / "data/chunk-000").mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, root / f"data/chunk-000/episode_{number:06d}.parquet")
        for key in cameras:
            (root / f"videos/chunk-000/{key}").mkdir(parents=True, exist_ok=True)
            video.encode(root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4", frames[number], fps)
    episodes = [
        {"episode_index": i, "tasks": [tasks[i % len(tasks)]], "length": length} for i, length in enumerate(lengths)
    ]
    _jsonl(root / "meta/episodes.jsonl", episodes)
    _jsonl(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])


def _write_v3(root: Path, tables: Any, frames: Any, lengths: Any, cameras: Any, tasks: Any, fps: int) -> None:
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    episodes: dict[str, Any] = {
        "episode_index": list(range(len(lengths))),
        "tasks": [[tasks[i % len(tasks)]] for i in range(len(lengths))],
        "length": list(lengths),
        "dataset_from_index": starts[:-1],
        "dataset_to_index": starts[1:],
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [0] * len(lengths),
    }
    for key in cameras:
        (root / f"videos/{key}/chunk-000").mkdir(parents=True)
        video.encode(root / f"videos/{key}/chunk-000/file-000.mp4", np.concatenate(frames), fps)
        episodes |= {f"videos/{key}/{name}": [0] * len(lengths) for name in ("chunk_index", "file_index")}
        episodes[f"videos/{key}/from_timestamp"] = starts[:-1] / fps
        episodes[f"videos/{key}/to_timestamp"] = starts[1:] / fps
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": list(range(len(tasks))), "task": list(tasks)}), root / "meta/tasks.parquet")


def _jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def so101(root: Path, version: str = "v3.0", episodes: int = 3, steps: int = 40) -> Path:
    """SO-101 as LeRobot records it: -100..100, and a gripper of 0..100."""
    action = [
        np.concatenate([curves(5, -98, 99, steps + i, i), opening(2, 96, steps + i, i)], 1) for i in range(episodes)
    ]
    features = {"action": (SO101, action), "observation.state": (SO101, [following(a) for a in action])}
    cameras = ("observation.images.front", "observation.images.wrist")
    return write_hub_like(root, features, robot_type="so101_follower", version=version, cameras=cameras)
