"""Run the quickstart for several training seeds on one set of demonstrations; print scores, time and memory by stage.

    python benchmarks/quickstart_seeds.py outputs/seeds --seeds 0 1 2

The first seed runs every stage; the others link to its demonstrations, which do not depend on the training seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    first = options.out / f"seed-{options.seeds[0]}"
    for seed in options.seeds:
        run = options.out / f"seed-{seed}"
        if run != first:
            run.mkdir(parents=True, exist_ok=True)
            link = run / "dataset"
            if not link.exists():
                link.symlink_to((first / "dataset").resolve(), target_is_directory=True)
        command = ["quickstart", "--out", str(run), "--json", f"--training.seed={seed}"]
        done = subprocess.run(
            [sys.executable, "-m", "anyvla.cli.main", *command], stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        if done.returncode:
            sys.exit(done.returncode)
        result = json.loads(done.stdout.splitlines()[-1])
        shares = {
            k: f"{result[k]['value']:.3f} [{result[k]['low']:.3f}, {result[k]['high']:.3f}] of {result[k]['episodes']}"
            for k in ("success", "success_swapped", "success_shuffled")
        }
        print(f"seed {seed}: {shares}, {result['minutes']:.2f} minutes, {result['peak_memory_gb']:.2f} GB")
        for line in (run / "stages.jsonl").read_text(encoding="utf-8").splitlines():
            print("   ", line)


if __name__ == "__main__":
    main()
