"""Checkpoints that training can go on from, exactly: weights, optimiser and the step, in safetensors and JSON.

Data order, augmentation and schedule are pure functions of (seed, step), so the step is all the state they have. A
checkpoint is written beside the old one and renamed, so that an interruption never leaves half of one.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError

from anyvla import weights
from anyvla.actions.normalize import read_statistics
from anyvla.config import ConfigError
from anyvla.data.canonical import Robot
from anyvla.data.robot_statistics import same_data
from anyvla.policy import VLA

_CHANGE_NOTHING = ("data.workers", "data.worker_timeout_s", "data.cache_gb")  # settings that change no result


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder: the finished one, or the last on the way."""
    final = run / "checkpoint"
    if final.is_dir():
        return final
    steps = sorted(p for p in (run / "train").glob("step-*") if p.suffix != ".tmp")
    return steps[-1] if steps else None


def save(
    folder: Path, vla: VLA, optimizer: torch.optim.Optimizer, step: int, recipe: Mapping[str, Any], card: str
) -> None:
    """Write a whole checkpoint to `folder`, which must not exist yet. Raises OSError and leaves nothing if it fails."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, vla, optimizer, step, recipe, card)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint only fills the disk
        if isinstance(error, OSError):
            raise
        full = "os error 28" in str(error)  # safetensors has no errno
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(folder)) from None
    temporary.rename(folder)


def _write(
    temporary: Path, vla: VLA, optimizer: torch.optim.Optimizer, step: int, recipe: Mapping[str, Any], card: str
) -> None:
    vla.save(temporary, recipe)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    training = temporary / "training"
    training.mkdir()
    tensors = {
        f"{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    safetensors.torch.save_file(tensors, str(training / "state.safetensors"))
    (training / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")


def check_same(folder: Path, recipe: Mapping[str, Any], robots: Sequence[Robot]) -> None:
    """Refuse to go on with a checkpoint of another recipe or other data. Raises ConfigError that names what differs."""
    stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    way_out = f"Choose another output folder, or remove {folder.parent} to train anew"
    sections = ("model", "data", "training")
    differing = [
        d
        for key in sections
        for d in _differences(stored.get(key), recipe.get(key), key)
        if d[0] not in _CHANGE_NOTHING
    ]
    if differing:
        raise ConfigError(
            f"{folder} was made by another recipe; it differs in "
            + "; ".join(f"{key} ({old!r} there, {new!r} now)" for key, old, new in differing[:8])
            + f". {way_out}"
        )
    then = read_statistics(folder / "statistics.json")
    now = {r.embodiment.name: r.statistics for r in robots}
    if then.keys() != now.keys() or not all(same_data(then[name], now[name]) for name in now):
        told = [", ".join(f"{name} {of.fingerprint[:12]}" for name, of in all_.items()) for all_ in (then, now)]
        raise ConfigError(f"{folder} was trained on other data ({told[0]}, now {told[1]}). {way_out}")


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            d
            for k in keys
            for d in _differences(old.get(k, "(absent)"), new.get(k, "(absent)"), f"{path}.{k}".strip("."))
        ]
    return [] if old == new else [(path, old, new)]


def restore(folder: Path, vla: VLA, optimizer: torch.optim.Optimizer) -> int:
    """Load weights and optimiser into what was just built; returns the step to go on from."""
    weights.load(vla, folder / "model.safetensors")
    tensors = safetensors.torch.load_file(str(folder / "training" / "state.safetensors"))
    tensors.pop("rng", None)  # of older checkpoints; randomness follows from the step
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))["step"])
