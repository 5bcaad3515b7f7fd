"""Train structures on the quickstart's demonstrations with an equal budget: 800 optimizer steps of 64 frames each.

    python benchmarks/structures.py outputs/structures [--only NAME ...] [--jobs 2]

Each run is the recipe `quickstart` with another structure and the same backbone, chunk, optimizer and seed.
Demonstrations are collected once (or linked: --dataset FOLDER). It prints a Markdown table, and reuses finished runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ONE_STEP = {"history": "none", "fuser": "identity"}
HEAD = {"history": "{name: policy_head, window: 2}", "fuser": "{name: gpt, width: 256, layers: 1, heads: 4}"}
REGRESSION = {"decoder": "{name: regression, loss: l1, hidden: 256, layers: 1}"}
STRUCTURES: dict[str, dict[str, str]] = {
    "policy head, regression": HEAD | REGRESSION,
    "one step, regression": ONE_STEP | REGRESSION,
    "interleaved, regression": {"history": "{name: interleaved, window: 2}", "fuser": "identity"} | REGRESSION,
    "one step, lm_tokens, bins": ONE_STEP | {"decoder": "lm_tokens", "representation": "bins"},
    "policy head, flow": HEAD | {"decoder": "{name: flow, layers: 2}"},
    "policy head, diffusion": HEAD | {"decoder": "{name: diffusion, layers: 2}"},
    "one step, lm_tokens, fast": ONE_STEP | {"decoder": "{name: lm_tokens, ids: added}", "representation": "fast"},
    "policy head, tokens, vq": HEAD | {"decoder": "tokens", "representation": "vq"},
    "one step, expert": ONE_STEP | {"decoder": "{name: expert, width: 256, mlp: 1024}"},
    "one step, expert insulated, bins": ONE_STEP
    | {"decoder": "{name: expert, width: 256, mlp: 1024}", "representation": "bins"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=list(STRUCTURES), choices=list(STRUCTURES), metavar="NAME")
    parser.add_argument("--dataset", type=Path, help="demonstrations of the quickstart (default: collect them)")
    parser.add_argument("--jobs", type=int, default=1, help="structures trained at the same time")
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    dataset = options.dataset or options.out / "demonstrations" / "dataset"
    if not dataset.is_dir():
        anyvla("data", "collect", "quickstart", "--out", str(dataset.parent))
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda name: train(name, options, dataset), options.only))
    print("| structure | original | swapped: original goal reached | training |\n|---|---|---|---|")
    print("\n".join(rows))


def train(name: str, options: argparse.Namespace, dataset: Path) -> str:
    """Run one structure. Return its row of the table."""
    run = options.out / name.replace(", ", "--").replace(" ", "-")
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "dataset").exists():
        (run / "dataset").symlink_to(dataset.resolve(), target_is_directory=True)
    model = STRUCTURES[name]
    batch = 64 if model["history"] == "none" else 32  # windows; two frames each where there is a history
    keys = [f"--model.{axis}={value}" for axis, value in model.items()]
    keys += [f"--training.batch_size={batch}", f"--training.steps={options.steps}", "--name=structures"]
    out = anyvla(
        "quickstart", "--out", str(run), "--json", *keys, threads=max(1, (os.cpu_count() or 1) // options.jobs)
    )
    found = json.loads(out.splitlines()[-1])
    original, swapped = (interval(found[k]) for k in ("success", "success_swapped"))
    stages = [json.loads(line) for line in (run / "stages.jsonl").read_text(encoding="utf-8").splitlines()]
    minutes = next(s["minutes"] for s in reversed(stages) if s["stage"] == "train")
    return f"| {name} | {original} | {swapped} | {minutes:.1f} min |"


def interval(share: dict[str, float]) -> str:
    """Return a share with its 95 % Wilson interval as text."""
    n = share["episodes"]
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{round(share['value'] * n)} of {n}: {100 * share['value']:.1f} % [{low:.1f}, {high:.1f}]"


def anyvla(*arguments: str, threads: int = 2) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "anyvla.cli.main", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
