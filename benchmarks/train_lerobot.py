"""Measure training beside lerobot's own training script, each in its own environment, on the nearest equal model.

    python benchmarks/train_lerobot.py --python LEROBOT_ENV/bin/python [--pairs 3] [--steps 30] [--json FILE]

Both train an action expert on a frozen SmolVLM with random weights, from one data set of made-up episodes: two cameras,
a chunk of 50 actions, flow matching, AdamW. lerobot runs `lerobot.scripts.lerobot_train` with the policy smolvla,
anyvla its loop with the recipe smolvla-like. The models differ: smolvla's expert attends to itself in every second
layer and to the language model in the others, ours to both in each. Weights are counted and shown.

The two run one after another, alternating, on as many threads as OMP_NUM_THREADS says. A line is printed for each pair:
samples per second by the clock of each side's own log, and CPU seconds of all its processes for a sample, which other
work on the machine changes less. The first `--warm-up` steps are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from anyvla.backbones.tiny import FAMILIES, TinyBackbone
from anyvla.config import build
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.planning.inputs import ORDINARY_ARM
from anyvla.robot.embodiment import Embodiment

SIDE, CHUNK = 128, 50
WIDTH, LAYERS, HEADS = 192, 4, 6
EXPERT = {"width": 144, "mlp": 512}  # of smolvla: 0.75 of the width, and its rule for the feed-forward
_STEP = re.compile(r"step:(\d+).*?updt_s:([\d.]+) data_s:([\d.]+)")  # a line of lerobot's log
_WEIGHTS = re.compile(r"num_(learnable|total)_params=(\d+)")


@dataclass(frozen=True)
class Speed:
    """The speed of one run."""

    samples_per_s: float
    cpu_s: float  # of a sample
    weights: int
    trained: int


def write_model(folder: Path) -> None:
    """Write the configuration, tokenizer and processors of a small SmolVLM, as transformers 4 and 5 read them."""
    keys = {"family": "smolvlm", "width": WIDTH, "layers": LAYERS, "vision_layers": LAYERS, "heads": HEADS}
    config = build(TinyBackbone.Config, {**keys, "image_size": SIDE})
    family = FAMILIES["smolvlm"]
    tokenizer = family.make_tokenizer()
    family.build(config, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    given |= {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "SmolVLMProcessor"}
    given["extra_special_tokens"] = {  # transformers 4 wants names
        "image_token": tokenizer.convert_ids_to_tokens(tokenizer.image_token_id),
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": tokenizer.eos_token,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(given), encoding="utf-8")
    size = {"size": {"height": SIDE, "width": SIDE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    kinds = {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(size | kinds), encoding="utf-8")


def write_episodes(folder: Path, count: int = 8, steps: int = 80) -> None:
    """Write made-up episodes of an arm with two cameras."""
    robot, rng = build(Embodiment, ORDINARY_ARM), np.random.default_rng(0)

    def episode(number: int) -> Episode:
        block = rng.integers(0, 255, (SIDE // 8, SIDE // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        frames = np.stack([np.roll(block, step, 0) for step in range(steps)])
        actions = np.tanh(rng.normal(size=(steps, robot.action.size))).astype(np.float32)
        return Episode(
            embodiment=robot,
            images=dict.fromkeys(robot.cameras, frames),
            proprio=np.cumsum(rng.normal(size=(steps, robot.proprio.size)), 0).astype(np.float32),
            actions=actions,
            instructions=(f"put cup {number} on the plate",),
            timestamps=steady_timestamps(steps, robot.control_hz),
        )

    write_dataset(folder, robot, (episode(number) for number in range(count)))


def train_lerobot(python: str, model: Path, data: Path, run: Path, options: argparse.Namespace) -> Speed:
    """Run lerobot's training script."""
    given = {
        "dataset.repo_id": "local/made_up",
        "dataset.root": data,
        "dataset.video_backend": "pyav",
        "policy.type": "smolvla",
        "policy.device": options.device,
        "policy.push_to_hub": "false",
        "policy.vlm_model_name": model,
        "policy.load_vlm_weights": "false",
        "policy.num_vlm_layers": LAYERS,
        "policy.chunk_size": CHUNK,
        "policy.n_action_steps": CHUNK // 2,
        "policy.resize_imgs_with_padding": f"[{SIDE},{SIDE}]",
        "batch_size": options.batch,
        "steps": options.steps,
        "log_freq": options.warm_up,
        "eval_freq": 0,
        "save_checkpoint": "false",
        "num_workers": 1,
        "output_dir": run,
    }
    command = [python, "-m", "lerobot.scripts.lerobot_train", *(f"--{key}={value}" for key, value in given.items())]
    seconds: list[float] = []
    weights: dict[str, int] = {}
    clock = _Clock()

    def read(line: str, process: psutil.Process) -> None:
        weights.update({kind: int(count) for kind, count in _WEIGHTS.findall(line)})
        if found := _STEP.search(line):
            seconds.append(float(found[2]) + float(found[3]))
            clock.read(process)

    _follow(command, read)
    rate = options.batch / statistics.mean(seconds[1:])
    return Speed(rate, clock.between(options), weights["total"], weights["learnable"])


def train_anyvla(model: Path, data: Path, run: Path, options: argparse.Namespace) -> Speed:
    """Run `anyvla train` on the recipe smolvla-like."""
    backbone = {"name": "auto", "path": str(model), "pretrained": "none", "prompt": "{instruction}", "layers": LAYERS}
    frozen = dict.fromkeys(("vision", "projector", "language", "embeddings"), False)
    training = {
        "device": options.device,
        "steps": options.steps,
        "batch_size": options.batch,
        "log_every": options.warm_up,
        "track": "none",
        "precision": "float32",
        "features_gb": 0,
        "augment": {"shift": 0},
        "checkpoint_every": options.steps,
    }
    document = {
        "model.backbone": backbone | {"train": frozen},
        "model.decoder": {"name": "expert", **EXPERT, "time": "beta"},
        "model.chunk": CHUNK,
        "data.sources": [{"path": str(data)}],
        **{f"training.{key}": value for key, value in training.items()},
    }
    changes = [f"--{key}={json.dumps(value)}" for key, value in document.items()]
    rates: list[float] = []
    counts: list[int] = []
    clock = _Clock()

    def read(line: str, process: psutil.Process) -> None:
        if line.startswith("weights "):
            counts.extend(map(int, line.split()[1:]))
        if line.startswith("rate "):
            rates.append(float(line.split()[1]))
            clock.read(process)

    _follow([sys.executable, __file__, "--run", str(run), *changes], read)
    return Speed(statistics.mean(rates[1:]), clock.between(options), *counts)


def run_anyvla(run: Path, changes: Sequence[str]) -> None:
    """Train in this process, and print the speed of each line of the log."""
    from anyvla.data.training.mixture import open_mixture
    from anyvla.policy import VLA
    from anyvla.recipe import read
    from anyvla.training.loop import train

    recipe = read("smolvla-like", list(changes))
    train(
        recipe, open_mixture(recipe.data, run), run, progress=lambda line: print("rate", line.samples_per_s, flush=True)
    )
    vla = VLA.load(run / "checkpoint")
    frozen = sum(p.numel() for p in vla.backbone.parameters())
    total = sum(p.numel() for p in vla.parameters())
    print("weights", total, total - frozen, flush=True)


class _Clock:
    """CPU seconds of a process and its children, at each line of its log."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def read(self, process: psutil.Process) -> None:
        every = [process, *process.children(recursive=True)]
        self.seconds.append(sum(sum(of.cpu_times()[:4]) for of in every))

    def between(self, options: argparse.Namespace) -> float:
        """Return the CPU seconds of a sample between the first and the last line."""
        steps = options.warm_up * (len(self.seconds) - 1)
        return (self.seconds[-1] - self.seconds[0]) / (steps * options.batch)


def _follow(command: Sequence[str], read: Any) -> None:
    """Run a command, and give each of its lines to `read`."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            read(line, psutil.Process(process.pid))
    if process.returncode:
        raise SystemExit("".join(lines[-30:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the Python of an environment with lerobot[smolvla]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=10, help="steps; a line of the log comes as often")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # train anyvla in this process
    options, changes = parser.parse_known_args()
    if options.run:
        run_anyvla(options.run, changes)
        return
    if options.python is None or options.steps < 2 * options.warm_up:
        parser.error("--python is needed, and --steps at least twice --warm-up")
    pairs: list[tuple[Speed, Speed]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_episodes(folder / "data")
        for number in range(options.pairs):
            theirs = train_lerobot(options.python, folder / "model", folder / "data", folder / f"l{number}", options)
            ours = train_anyvla(folder / "model", folder / "data", folder / f"a{number}", options)
            pairs.append((theirs, ours))
            print(f"lerobot {theirs}\nanyvla  {ours}", flush=True)
    facts = {
        "machine": platform.processor() or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "batch": options.batch,
        "steps": options.steps,
        "pairs": [{"lerobot": asdict(theirs), "anyvla": asdict(ours)} for theirs, ours in pairs],
        "times as fast, clock": statistics.median(b.samples_per_s / a.samples_per_s for a, b in pairs),
        "times as fast, CPU": statistics.median(a.cpu_s / b.cpu_s for a, b in pairs),
    }
    print(json.dumps(facts))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
