"""Measure random windows per second and worker from a LeRobot v3.0 data set: anyvla against the lerobot package.

    python benchmarks/read_windows_lerobot.py outputs/quickstart/dataset --lerobot-python PATH --rewrite COPIES
    python benchmarks/read_windows_lerobot.py COPIES/anyvla --lerobot-python PATH [--json]
    python benchmarks/read_windows_lerobot.py COPIES/lerobot --embodiment COPIES/robot.yaml --lerobot-python PATH

A window is W frames of each camera and the state and chunk of actions at its last step. Both read the same windows, in
processes of one thread each, alternating. anyvla is measured twice: episodes read directly (each window decodes its
own frames), and `WindowDataset`, which keeps decoded frames (--cache-gb), once all are decoded. `--rewrite` writes the
data set again at 128 px, with both packages and their defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent
CHUNK = 8
SIZE = 128  # of the frames of --rewrite


def indices(count: int, size: int, seed: int) -> list[int]:
    """Return the steps of the data set at which windows end."""
    import random

    return random.Random(seed).sample(range(size), min(count, size))


def lerobot(options: argparse.Namespace, seed: int) -> float:
    """Return the windows/s of the lerobot package, in this interpreter."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    plain = LeRobotDataset("local/set", root=options.dataset)
    step = 1 / plain.fps
    deltas = {key: [-step * k for k in reversed(range(options.window))] for key in plain.meta.camera_keys}
    deltas |= {"action": [step * k for k in range(CHUNK)]}
    dataset = LeRobotDataset("local/set", root=options.dataset, delta_timestamps=deltas)
    dataset[0]
    chosen = indices(options.windows, len(dataset), seed)
    begin = time.perf_counter()
    for i in chosen:
        dataset[i]
    return len(chosen) / (time.perf_counter() - begin)


def rewrite_lerobot(options: argparse.Namespace, seed: int) -> float:
    """Rewrite the data set with the lerobot package, in this interpreter. Return frames/s."""
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from PIL import Image

    source = LeRobotDataset("local/set", root=options.dataset)
    features = {k: dict(source.meta.features[k]) for k in ("action", "observation.state", *source.meta.camera_keys)}
    for key in source.meta.camera_keys:
        features[key] = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    target = LeRobotDataset.create("local/copy", source.fps, features, root=options.rewrite / "lerobot")
    begin, number = time.perf_counter(), 0
    for i in range(len(source)):
        item = source[i]
        if int(item["episode_index"]) != number:
            target.save_episode()
            number += 1
        frame = {key: np.asarray(item[key]) for key in ("action", "observation.state")}
        for key in source.meta.camera_keys:
            image = (np.asarray(item[key]).transpose(1, 2, 0) * 255).round().astype(np.uint8)
            frame[key] = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        target.add_frame(frame | {"task": item["task"]})
    target.save_episode()
    target.finalize()
    return len(source) / (time.perf_counter() - begin)


def rewrite_anyvla(options: argparse.Namespace, seed: int) -> float:
    """Rewrite the data set with anyvla. Return frames/s."""
    from dataclasses import replace

    import numpy as np
    import yaml
    from PIL import Image

    from anyvla.config import to_dict
    from anyvla.data.formats.lerobot.writer import write_dataset

    def resized(episode):
        images = {}
        for camera, frames in episode.images.items():
            small = [Image.fromarray(f).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for f in frames[:]]
            images[camera] = np.stack([np.asarray(image) for image in small])
        return replace(episode, images=images)

    dataset = opened(options)
    begin = time.perf_counter()
    write_dataset(options.rewrite / "anyvla", dataset.embodiment, (resized(dataset[i]) for i in range(len(dataset))))
    robot = yaml.safe_dump({"embodiment": to_dict(dataset.embodiment)}, sort_keys=False)
    (options.rewrite / "robot.yaml").write_text(robot, encoding="utf-8")
    return int(dataset.lengths.sum()) / (time.perf_counter() - begin)


def direct(options: argparse.Namespace, seed: int) -> float:
    """Return the windows/s of episodes read directly."""
    import numpy as np

    dataset = opened(options)
    ends = np.cumsum(dataset.lengths)
    chosen = indices(options.windows, int(ends[-1]), seed)
    begin = time.perf_counter()
    for i in chosen:
        number = int(np.searchsorted(ends, i, side="right"))
        last = i - int(ends[number - 1] if number else 0)
        episode = dataset[number]
        steps = np.arange(max(0, last - options.window + 1), last + 1)
        for camera in episode.embodiment.cameras:
            episode.images[camera][steps]
        _ = episode.proprio[last], episode.actions[last : last + CHUNK]
    return len(chosen) / (time.perf_counter() - begin)


def cached(options: argparse.Namespace, seed: int) -> float:
    """Return the windows/s of `WindowDataset` with its frames in memory, in batches of 16."""
    import numpy as np

    from anyvla.data.training.mixture import Mixture
    from anyvla.data.training.sampler import WindowIndices
    from anyvla.data.training.window import WindowConfig, WindowDataset

    config = WindowConfig(window=options.window, chunk=CHUNK, cache_gb=options.cache_gb)
    windows = WindowDataset(Mixture([opened(options)], [1.0], [None]), config)
    chosen = np.array(indices(options.windows, windows.sizes[0], seed))
    batches = [
        WindowIndices(np.zeros(len(part), np.int64), part, np.zeros(len(part), np.int64))
        for part in np.array_split(chosen, max(1, len(chosen) // 16))
    ]
    for batch in batches:
        windows.batch(batch)
    begin = time.perf_counter()
    for batch in batches:
        windows.batch(batch)
    return len(chosen) / (time.perf_counter() - begin)


def opened(options: argparse.Namespace):
    """Open the data set with anyvla."""
    import yaml

    from anyvla.config import build
    from anyvla.data.open import open_dataset
    from anyvla.robot.embodiment import Embodiment

    robot = None
    if options.embodiment:
        robot = build(Embodiment, yaml.safe_load(options.embodiment.read_text(encoding="utf-8"))["embodiment"])
    return open_dataset(options.dataset, embodiment=robot)


SIDES = {f.__name__: f for f in (direct, cached, lerobot, rewrite_anyvla, rewrite_lerobot)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--lerobot-python", type=Path, help="the interpreter of an environment that has lerobot 0.4")
    parser.add_argument("--embodiment", type=Path, help="YAML file for a data set that declares no embodiment")
    parser.add_argument("--rewrite", type=Path, help="a folder to write two copies of the dataset into")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-gb", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(f"per second {SIDES[options.side](options, options.seed)}")
        return
    sides = ["rewrite_anyvla", "rewrite_lerobot"] if options.rewrite else ["direct", "cached", "lerobot"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found: dict[str, list[float]] = {}
    for seed in range(1 if options.rewrite else options.rounds):
        for side in sides:
            python = options.lerobot_python if side.endswith("lerobot") else sys.executable
            if python is None:
                continue
            command = [python, __file__, *sys.argv[1:], "--side", side, "--seed", str(seed)]
            run = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False, encoding="utf-8"
            )
            if run.returncode:
                sys.exit(f"{side}: {run.stderr[-2000:]}")
            found.setdefault(side, []).append(float(run.stdout.split("per second")[1]))
    if options.json:
        print(json.dumps(found))
        return
    for side, rates in found.items():
        what = "frames/s" if options.rewrite else "windows/s"
        print(f"{side:15} {statistics.median(rates):8.1f} {what}   (rounds: {', '.join(f'{r:.1f}' for r in rates)})")


if __name__ == "__main__":
    main()
