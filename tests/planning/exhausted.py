"""Trains with too little memory, as a process of its own: `python -m tests.planning.exhausted FOLDER`.

The limit is on the address space, so that the allocator of PyTorch fails as on a full machine.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import yaml

import anyvla.planning.out_of_memory
import anyvla.training.loop  # noqa: F401  (its libraries are not part of the limit)
from anyvla.cli.main import main
from anyvla.data.formats.lerobot.writer import write_dataset
from tests import small

ROOM = 0.6e9  # bytes beyond what the process has now


def train(folder: Path) -> int:
    write_dataset(folder / "data", small.embodiment(), [small.episode(160), small.episode(120)])
    wide = {**small.NANO, "image_size": 128, "channels": [64, 64], "layers": 6}  # 20 MB of activations a sample
    recipe = {
        "name": "hungry",
        "data": {"sources": [{"path": str(folder / "data")}], "cache_gb": 0.1},
        "model": small.SMALLEST | {"backbone": wide},
        "training": {"steps": 3, "batch_size": 256, "device": "cpu", "precision": "float32"},
    }
    (folder / "hungry.yaml").write_text(yaml.safe_dump(recipe))
    limit = int(psutil.Process().memory_info().vms + ROOM)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return main(["train", str(folder / "hungry.yaml"), "--out", str(folder / "run")])


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1])))
