"""Measure the time and memory to open the index of a LeRobot v3.0 data set, by its number of episodes.

    python benchmarks/open_index.py [--episodes 100000] [--rows-per-group 1000] [--json]

The index is made up (three files of data and of each of two cameras, statistics of each episode as LeRobot writes
them); the data files are empty, since opening reads none. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAMERAS = ("corner", "wrist")
LENGTH = 120
MEASURE = """
import re, sys, time
from pathlib import Path
from anyvla.data.formats.lerobot.dataset import LeRobotDataset
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
begin = time.perf_counter()
dataset = LeRobotDataset(LeRobotDataset.Config(), sys.argv[1])
seconds = time.perf_counter() - begin
assert len(dataset) == int(sys.argv[2]) and dataset.task(len(dataset) - 1)
print(seconds, peak() - before)
"""


def make(root: Path, episodes: int, rows_per_group: int) -> None:
    """Make a data set with a real index and empty data files."""
    group = {"name": "hand", "size": 7}
    vector = {"dtype": "float32", "shape": [7], "names": None}
    image = {"dtype": "video", "shape": [128, 128, 3], "names": ["height", "width", "channels"]}
    keys = [f"observation.images.{camera}" for camera in CAMERAS]
    robot = {"name": "arm", "cameras": CAMERAS, "control_hz": 20}
    robot |= {"proprio": {"groups": [group]}, "action": {"groups": [group]}}
    info = {
        "codebase_version": "v3.0",
        "fps": 20,
        "total_episodes": episodes,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {"action": vector, "observation.state": vector, **dict.fromkeys(keys, image)},
        "anyvla": {"embodiment": robot},
    }
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    number = np.arange(episodes)
    file = number * 3 // episodes
    columns = {
        "episode_index": number,
        "tasks": [[f"do task number {i % 500} of the suite"] for i in number],
        "length": np.full(episodes, LENGTH),
        "dataset_from_index": number * LENGTH,
        "dataset_to_index": (number + 1) * LENGTH,
        "data/chunk_index": np.zeros(episodes, int),
        "data/file_index": file,
        "anyvla/extra": [f'{{"task": "t{i % 500}", "seed": {i}}}' for i in number],
    }
    for key in keys:
        columns |= {f"videos/{key}/chunk_index": np.zeros(episodes, int), f"videos/{key}/file_index": file}
        columns[f"videos/{key}/from_timestamp"] = (number - np.searchsorted(file, file)) * LENGTH / 20
        columns[f"videos/{key}/to_timestamp"] = columns[f"videos/{key}/from_timestamp"] + LENGTH / 20
    statistics = np.random.default_rng(0).normal(size=7 * episodes)
    for key in ("action", "observation.state", *keys):
        for name in ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"):
            columns[f"stats/{key}/{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(statistics), 7)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    tasks = [f"do task number {i} of the suite" for i in range(500)]
    pq.write_table(pa.table({"task_index": range(500), "task": tasks}), root / "meta/tasks.parquet")
    for i in range(3):
        paths = [root / info["data_path"].format(chunk_index=0, file_index=i)]
        paths += [root / info["video_path"].format(chunk_index=0, file_index=i, video_key=k) for k in keys]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rows-per-group", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for episodes in options.episodes:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "set"
            make(root, episodes, options.rows_per_group)
            command = [sys.executable, "-c", MEASURE, str(root), str(episodes)]
            runs = [
                subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
                for _ in range(options.rounds)
            ]
        found = np.array([run.stdout.split() for run in runs], float)
        seconds, megabytes = np.median(found, axis=0)
        results.append({"episodes": episodes, "seconds": round(seconds, 3), "MB": round(megabytes, 1)})
    if options.json:
        print(json.dumps(results))
        return
    for result in results:
        print(f"{result['episodes']:>8} episodes: {result['seconds']:.2f} s, {result['MB']:.0f} MB more")


if __name__ == "__main__":
    main()
