"""The parts of `gpu.py`, one of which this runs: python benchmarks/gpu_parts.py NAME --rows FILE [--device] [--small].

A part yields rows of numbers, each of which is written at once. It raises `Skip` with the reason where it cannot run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from full_size import SMALL, TINY, Training, count_weights, read_pi0
from torch import nn

from anyvla.config import build
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import open_mixture
from anyvla.fusers import LSTMFuser
from anyvla.interrupted import Interrupted
from anyvla.planning.inputs import ORDINARY_ARM
from anyvla.recipe import Recipe, read
from anyvla.robot.embodiment import Embodiment
from anyvla.training.flops import find_peak
from anyvla.training.loop import train
from anyvla.training.meter import Progress

SKIPPED = 77  # the exit status of a part that cannot run
GB = 2**30
RECOMPUTE = "--training.gradient_checkpointing=true"
Row = dict[str, Any]


class Skip(Exception):
    """The part cannot run here."""


@dataclass(frozen=True)
class Place:
    """The device of a part of the benchmark, and whether its models are small."""

    device: torch.device
    small: bool

    @property
    def has_gpu(self) -> bool:
        """Whether CUDA runs on the device."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait for the work of the device."""
        if self.has_gpu:
            torch.cuda.synchronize(self.device)

    def begin_memory(self) -> None:
        """Forget the peak of the memory so far."""
        gc.collect()
        if self.has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def read_memory(self) -> Row:
        """Return the peak of the GPU's memory, or the resident memory of the process on a CPU."""
        if not self.has_gpu:
            return {"GiB resident": psutil.Process().memory_info().rss / GB}
        return {
            "GiB peak": torch.cuda.max_memory_allocated(self.device) / GB,
            "GiB reserved": torch.cuda.max_memory_reserved(self.device) / GB,
        }


def run_tests(place: Place) -> Iterator[Row]:
    """Run all tests that are marked `gpu`."""
    if not place.has_gpu:
        raise Skip("tests marked gpu need CUDA")
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    run = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    last = run.stdout.strip().splitlines()[-1].strip("= ")
    for line in run.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            yield {"case": line[:200]}
    yield {"case": "marked gpu", "": last}
    if run.returncode:
        raise SystemExit(f"tests failed: {last}")


def train_fully(place: Place) -> Iterator[Row]:
    """Train all weights of a pi0."""
    yield _measure_training(place, "all weights", 16, [])


def train_recomputing(place: Place) -> Iterator[Row]:
    """Train all weights of a pi0 with gradient checkpointing."""
    yield _measure_training(
        place, "all weights, gradient checkpointing", 32, ["--training.gradient_checkpointing=true"]
    )


def train_lora(place: Place) -> Iterator[Row]:
    """Train a pi0 with LoRA beside frozen weights in bfloat16."""
    lora = [
        "--model.backbone.dtype=bfloat16",
        "--model.backbone.lora={rank: 32}",
        "--model.backbone.train.vision=false",
    ]
    for name, more in (
        ("LoRA 32", []),
        ("LoRA 32, gradient checkpointing", ["--training.gradient_checkpointing=true"]),
    ):
        yield _measure_training(place, name, 8, [*lora, "--training.precision=bfloat16", *more], seconds=5)


def _measure_training(place: Place, name: str, batch: int, changes: list[str], seconds: float = 12) -> Row:
    batch = 2 if place.small else batch
    options = [f"--training.batch_size={batch}", f"--training.device={place.device}", *changes]
    place.begin_memory()
    training = Training(read_pi0(place.small, options), place.device)
    for _ in range(1 if place.small else 3):
        training.step()
    synchronizations = _count_synchronizations(training.step) if place.has_gpu else None
    place.wait()
    steps, begin = 0, time.perf_counter()
    while steps < 2 or (not place.small and time.perf_counter() - begin < seconds):
        training.step()
        steps += 1
    place.wait()
    rate = steps * batch / (time.perf_counter() - begin)
    peak = find_peak(torch.cuda.get_device_name(place.device), torch.bfloat16) if place.has_gpu else None
    row = {
        "case": f"{name}, batch {batch}",
        "samples/s": rate,
        "% MFU": None if peak is None else 100 * rate * training.flops / peak,
        "ms a step": 1000 * batch / rate,
        **place.read_memory(),
        "synchronizations a step": synchronizations,
        "TFLOP a sample": training.flops / 1e12,
        "million weights": count_weights(training.vla) / 1e6,
        "million trained": count_weights(training.vla, trained=True) / 1e6,
    }
    return {key: value for key, value in row.items() if value is not None}


def _count_synchronizations(work: Callable[[], None]) -> int:
    """Return how often the host waits for the GPU while it does some work."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def time_chunks(place: Place) -> Iterator[Row]:
    """Measure the milliseconds of a chunk of a pi0: eager, as CUDA graphs, compiled."""
    script = Path(__file__).with_name("expert_latency.py")
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("none", "default") if place.has_gpu else ("none",):
            found = Path(folder) / f"{mode}.json"
            options = ["--device", str(place.device), "--repeats", "3" if place.small else "30", "--mode", mode]
            options += ["--small"] if place.small else []
            subprocess.run([sys.executable, str(script), *options, "--json", str(found)], check=True, stdout=sys.stderr)
            facts = json.loads(found.read_text(encoding="utf-8"))
            for case, row in facts["rows"].items():
                if mode == "none" or "compiled" in case:
                    yield {"case": case, "ms": row["median_ms"], "ms in 9 of 10": row["p90_ms"]}
            if mode == "none":
                yield {"case": "lower bound of the hardware", "ms at least": sum(facts["floor_ms"].values())}


def train_mt50(place: Place) -> Iterator[Row]:
    """Train the recipe mt50, on made-up episodes of its shapes, data and all."""
    tiny = {"name": "nano", "width": 32, "layers": 1, "heads": 2, "mlp": 32, "image_size": 96}
    changes = [f"--model.backbone={tiny}", "--training.batch_size=4"] if place.small else []
    steps, every = (6, 3) if place.small else (90, 30)
    with _made_up_data(place, 4 if place.small else 40, 40, 96) as data:
        recipe = read("mt50", [*changes, *_options(place, data, steps), f"--training.log_every={every}"])
        lines: list[Progress] = []
        with tempfile.TemporaryDirectory() as run:
            train(recipe, open_mixture(recipe.data, data), Path(run), progress=lines.append)
    after = lines[1:]  # the first line has the first steps
    yield {
        "case": f"batch {recipe.training.batch_size}, window 2",
        "samples/s": statistics.median(line.samples_per_s for line in after),
        "% waiting for data": 100 * statistics.mean(line.wait_share for line in after),
        **({} if after[-1].mfu is None else {"% MFU": 100 * after[-1].mfu}),
        **place.read_memory(),
    }


def run_lstm(place: Place) -> Iterator[Row]:
    """Compare the gradient of an LSTM under bfloat16 autocast with that in float32, at RoboVLMs' batch and window."""
    hidden, rows, steps = (32, 4, 3) if place.small else (1024, 128, 16)
    torch.manual_seed(0)
    features = torch.randn(rows, steps, 2 * hidden, device=place.device)
    fuser = LSTMFuser(build(LSTMFuser.Config, {"hidden": hidden}), 2 * hidden, steps).to(place.device).train()
    out = nn.Linear(hidden, 70).to(place.device)
    target = torch.randn(rows, steps, 70, device=place.device)

    def gradient(kind: torch.dtype) -> torch.Tensor:
        given = features.clone().requires_grad_()
        with torch.autocast(place.device.type, kind, enabled=kind != torch.float32):
            loss = (out(fuser(given)).float() - target).square().mean()
        [of_input] = torch.autograd.grad(loss, [given])
        return of_input.float()

    exact, mixed = gradient(torch.float32), gradient(torch.bfloat16)
    yield {
        "case": f"batch {rows}, window {steps}, 4 x {hidden}",
        "% of the gradient is zero": 100 * float((mixed == 0).float().mean()),
        "cosine with float32": float(nn.functional.cosine_similarity(exact.flatten(), mixed.flatten(), 0)),
    }


def run_quantized(place: Place) -> Iterator[Row]:
    """Move quantized backbones to the device, train a step of LoRA beside them, and act."""
    if not place.has_gpu:
        raise Skip("it checks that the state of quantized layers moves to a GPU")
    for kind in ("int8", "int4"):
        backbone = TINY | {"quantize": kind, "lora": {"rank": 4}, "dtype": "bfloat16"}
        changes = [*SMALL, f"--model.backbone={backbone}", "--training.precision=bfloat16", "--training.batch_size=2"]
        training = Training(read("pi0", [*changes, f"--training.device={place.device}"]), place.device)
        before = {n: p.detach().clone() for n, p in training.vla.named_parameters() if p.requires_grad}
        results = [training.take_step(training.batch, step, None).loss for step in range(3)]
        moved = sum(not torch.equal(before[n], p) for n, p in training.vla.named_parameters() if n in before)
        elsewhere = [n for n, x in training.vla.named_parameters() if x.device.type != place.device.type]
        if not np.isfinite(results).all() or not moved or elsewhere:
            raise SystemExit(f"{kind}: losses {results}, {moved} trained weights moved, on the CPU: {elsewhere[:3]}")
        yield {"case": kind, "loss": results[0], "loss after 2 steps": results[-1], "trained tensors moved": moved}


def run_resume(place: Place) -> Iterator[Row]:
    """Compare 4 steps with 2 steps, a stop and 2 more, with dropout."""
    backbone = TINY | {"lora": {"rank": 4, "dropout": 0.3}}
    weights: list[dict[str, torch.Tensor]] = []
    losses: list[list[float]] = []
    with _made_up_data(place, 3, 20, 64) as data:
        changes = [*SMALL, f"--model.backbone={backbone}", "--training.batch_size=2", "--training.log_every=1"]
        changes += ["--training.optim={lr: 0.001, warmup_steps: 0}"]
        recipe = read("pi0", [*changes, *_options(place, data, 4)])
        for stops in (0, 1):
            lines: list[Progress] = []
            with tempfile.TemporaryDirectory() as run:
                for number in range(stops + 1):
                    stopped = contextlib.suppress(Interrupted) if number < stops else contextlib.nullcontext()
                    with stopped:
                        _train_until(recipe, data, Path(run), lines, 2 if number < stops else 4)
                from safetensors.torch import load_file

                weights.append(load_file(Path(run) / "checkpoint" / "model.safetensors"))
            losses.append([line.loss for line in lines])
    straight, resumed = weights
    off = max(float((straight[name].double() - resumed[name].double()).abs().max()) for name in straight)
    loss_off = max(abs(a - b) for a, b in zip(*losses, strict=True))
    yield {"case": "2 + 2 steps against 4", "largest difference of a weight": off, "of a loss": loss_off}
    if off > 1e-4 or loss_off > 1e-3:
        raise SystemExit(f"a resumed run differs: weights by {off}, losses by {loss_off}")


def _train_until(recipe: Recipe, data: Path, run: Path, lines: list[Progress], last: int) -> None:
    before = len(lines)
    train(
        recipe,
        open_mixture(recipe.data, data),
        run,
        progress=lines.append,
        stop=lambda: len(lines) - before >= last - before and last < recipe.training.steps,
    )


@contextlib.contextmanager
def _made_up_data(place: Place, episodes: int, steps: int, side: int) -> Iterator[Path]:
    """Yield the folder of a data set of random motions of an arm with two cameras."""
    robot = build(Embodiment, ORDINARY_ARM)
    rng = np.random.default_rng(0)

    def episode(number: int) -> Episode:
        block = rng.integers(0, 255, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        frames = np.stack([np.roll(block, step, 0) for step in range(steps)])
        proprio = np.cumsum(rng.normal(size=(steps, robot.proprio.size)), 0).astype(np.float32)
        actions = np.tanh(rng.normal(size=(steps, robot.action.size))).astype(np.float32)
        actions[:, -1] = np.sign(actions[:, -1])
        times = steady_timestamps(steps, robot.control_hz)
        return Episode(
            embodiment=robot,
            images=dict.fromkeys(robot.cameras, frames),
            proprio=proprio,
            actions=actions,
            instructions=(f"task {number}",),
            timestamps=times,
            extra={},
        )

    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "dataset", robot, (episode(number) for number in range(episodes)))
        yield Path(folder) / "dataset"


def _options(place: Place, data: Path, steps: int) -> list[str]:
    given = {"device": place.device, "steps": steps, "track": "none", "checkpoint_every": steps}
    return [f"--data.sources=[{{path: {data}}}]", *(f"--training.{key}={value}" for key, value in given.items())]


@dataclass(frozen=True)
class Part:
    """A part, and its limit of time."""

    run: Callable[[Place], Iterator[Row]]
    limit_s: float


PARTS: Mapping[str, Part] = {  # the limits add up to less than eight minutes
    "lstm": Part(run_lstm, 25),
    "quantized": Part(run_quantized, 30),
    "resume": Part(run_resume, 35),
    "full": Part(train_fully, 65),
    "checkpointing": Part(train_recomputing, 65),
    "lora": Part(train_lora, 60),
    "mt50": Part(train_mt50, 45),
    "tests": Part(run_tests, 70),
    "chunk": Part(time_chunks, 80),
}
GOALS: Mapping[str, Mapping[str, str]] = {
    "full": {"samples/s": ">= 40", "% MFU": ">= 45"},
    "checkpointing": {"samples/s": ">= 40"},
    "chunk": {"ms": "<= 12"},
    "lstm": {"% of the gradient is zero": "<= 1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    try:
        for row in PARTS[options.part].run(Place(options.device, options.small)):
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    except Skip as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(SKIPPED) from None


if __name__ == "__main__":
    main()
