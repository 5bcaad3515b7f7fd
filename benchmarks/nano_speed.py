"""Compare the speed of the nano backbone in two versions of anyvla and with two vision stems, in one run.

    git worktree add ../before COMMIT
    python benchmarks/nano_speed.py outputs/quickstart/dataset --before ../before [--steps 30] [--rounds 3]
    python benchmarks/nano_speed.py --acting outputs/quickstart    # any checkpoint: act beside its call of the backbone

It prints the CPU time of a training step in each precision, of `act` with one session, and of its call of the backbone.
Each measurement runs in a process of its own; versions and stems alternate in every round. Each further convolution of
a stem halves the sides of the grid of image tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEMS = ("[64, 128]", "[32, 64, 128]")
PRECISIONS = ("auto", "float32")
LEFT_OUT = 5  # steps or calls, at the beginning


def measure(dataset: Path, stem: str, precision: str, steps: int, recipe_name: str) -> dict[str, float]:
    """Train, act, and return the median milliseconds of CPU time of a step, a call of `act` and one of the backbone."""
    from anyvla.data.training.mixture import DataConfig, open_mixture
    from anyvla.recipe import read
    from anyvla.training.loop import train

    backbone = f"--model.backbone={{name: nano, channels: {stem}}}"
    options = [f"--training.steps={steps}", "--training.log_every=1", f"--training.precision={precision}"]
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            read(recipe_name, [backbone, *options]),
            open_mixture(DataConfig(), dataset),
            Path(folder),
            progress=lambda _: marks.append(time.process_time()),
        )
        step = statistics.median(b - a for a, b in itertools.pairwise(marks[LEFT_OUT:]))
        return {"step": 1e3 * step, **time_acting(Path(folder) / "checkpoint")}


def time_acting(checkpoint: Path, calls: int = 150) -> dict[str, float]:
    """Return the median milliseconds of `act` with one session, and of its call of the backbone alone."""
    import numpy as np
    import torch

    from anyvla import VLA, Observation

    vla = VLA.load(checkpoint).eval()
    robot = vla.robots[0]
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    proprio = np.asarray(robot.statistics.proprio["mean"], np.float32)
    observation = Observation(images=dict.fromkeys(robot.embodiment.cameras, image), proprio=proprio)
    session = vla.start("open the drawer")
    inputs: list[Any] = []
    with vla.backbone.register_forward_pre_hook(lambda _, given: inputs.append(given)):
        vla.act([observation], [session])
    spent: dict[str, list[float]] = {"act": [], "backbone": []}
    run: dict[str, Callable[[], Any]] = {
        "act": lambda: vla.act([observation], [session]),
        "backbone": lambda: vla.backbone(*inputs[0]),
    }
    with torch.inference_mode():
        for _, name in itertools.product(range(calls), run):
            begin = time.process_time()
            run[name]()
            spent[name].append(time.process_time() - begin)
    return {name: 1e3 * statistics.median(times[LEFT_OUT:]) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--acting", type=Path, metavar="RUN", help="measure only the acting of this policy")
    parser.add_argument("--before", type=Path, help="a working tree of another version")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("STEM", "PRECISION"), help="measure this in this process")
    options = parser.parse_args()
    if options.acting:
        from anyvla.checkpoint.files import checkpoint_of

        spent = time_acting(checkpoint_of(options.acting))
        act, backbone = spent["act"], spent["backbone"]
        print(f"act {act:.2f} ms, backbone {backbone:.2f} ms: {act / backbone:.2f} times (CPU time)")
        return
    if options.dataset is None:
        parser.error("give a data set, or --acting RUN")
    if options.measure:
        print(json.dumps(measure(options.dataset, *options.measure, options.steps, options.recipe)))
        return
    trees = {"now": ROOT} | ({"before": options.before} if options.before else {})
    cases = list(itertools.product(trees, STEMS, PRECISIONS))
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _, case in itertools.product(range(options.rounds), cases):
        tree, stem, precision = case
        source = trees[tree].resolve()
        path = os.pathsep.join(str(p) for p in (source / "src", source / "packages" / "anyvla-sim" / "src"))
        command = [sys.executable, __file__, str(options.dataset), "--recipe", options.recipe]
        command += ["--steps", str(options.steps), "--measure", stem, precision]
        out = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout
        found[case].append(json.loads(out.splitlines()[-1]))
    print("| version | stem | precision of training | step | act | backbone | act / backbone |")
    print("|---|---|---|---|---|---|---|")
    for (tree, stem, precision), rounds in found.items():
        step, act, backbone = (statistics.median(r[name] for r in rounds) for name in ("step", "act", "backbone"))
        numbers = f"{step:.0f} ms | {act:.2f} ms | {backbone:.2f} ms | {act / backbone:.2f}"
        print(f"| {tree} | {stem} | {precision} | {numbers} |")


if __name__ == "__main__":
    main()
