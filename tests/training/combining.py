"""Options of training that are combined with each other, with DDP and with FSDP2, in processes of a test."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError, build
from anyvla.recipe import Recipe
from anyvla.training.launchers import read_launch
from anyvla.training.loop import train
from anyvla.training.processes import Processes
from tests import small

OPTIONS: dict[str, dict[str, Any]] = {  # keys of a recipe's sections model and training
    "LoRA": {"model": {"backbone": {"lora": {"rank": 4}}}},
    "EMA": {"training": {"ema": {"decay": 0.8}}},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "compile": {"training": {"compile": True}},
    "quantized": {"model": {"backbone": {"quantize": "int4"}}},
    "Muon": {"training": {"optim": {"name": "muon"}}},
    "8-bit AdamW": {"training": {"optim": {"name": "adamw8bit"}}},
    "float16": {"training": {"precision": "float16"}},
    "bfloat16": {"training": {"precision": "bfloat16"}},
}
TRAINING = {
    "steps": 4,
    "batch_size": 4,
    "log_every": 1,
    "device": "cpu",
    "precision": "float32",
    "track": "none",
    "without_gradient": "ignore",
    "optim": {"lr": 1e-3, "warmup_steps": 2},
}
MODEL = small.SMALLEST | {"decoder": {"name": "flow", "width": 32, "layers": 2, "heads": 2, "samples": 1}}


def join(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested mappings as one."""
    both = {name: join(one[name], of) for name, of in other.items() if isinstance(of, Mapping) and name in one}
    return {**one, **other, **both}


def make_recipe(names: list[str], shard: bool, data: str) -> Recipe:
    """Return a recipe with some of `OPTIONS`."""
    document: dict[str, Any] = {"name": "x", "model": MODEL, "training": {**TRAINING, "shard": shard}}
    for name in names:
        document = join(document, OPTIONS[name])
    return build(Recipe, {**document, "data": {"sources": [{"path": data}]}})


def train_all(folder: str, data: str, shard: str, *combinations: str) -> None:
    """Train each combination, names joined by " + ", and print a line of JSON with its losses or its refusal."""
    with Processes.joined(read_launch()) as processes:
        for combination in combinations:
            run, begin = Path(folder) / combination.replace(" ", ""), time.monotonic()
            losses: list[float] = []
            try:
                recipe = make_recipe([name for name in combination.split(" + ") if name], shard == "true", data)
                train(
                    recipe,
                    small.mixture(Path(data)),
                    run,
                    progress=lambda p, to=losses: to.append(p.loss),
                    processes=processes,
                )
                found: dict[str, Any] = {"losses": losses}
            except ConfigError as error:
                found = {"refused": str(error)}
            if processes.is_main:
                print(json.dumps({"of": combination, "s": round(time.monotonic() - begin, 1), **found}), flush=True)
            processes.wait_for_all()
