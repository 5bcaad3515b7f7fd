"""Train and act on the pretend GPU. It must be installed before this is imported."""

from __future__ import annotations

import copy
import inspect
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anyvla.config import build
from anyvla.policy import VLA
from anyvla.training.action_tokens import ActionTokens
from anyvla.training.config import TrainingConfig
from anyvla.training.state import TrainingState
from anyvla.training.step import OptimizerStep
from anyvla.types import Batch
from tests import small
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.gpu.pretend import GPU, PretendGpu, move

WINDOWS, STEPS = 4, 3
STRUCTURES: dict[str, dict[str, Any]] = {
    "none-regression": {},
    "policy_head-gpt-regression": {"history": small.HISTORIES[1], "fuser": small.FUSERS[3]},
    "policy_head-lstm-regression": {"history": small.HISTORIES[1], "fuser": small.FUSERS[2]},
    "recurrent-mingru-regression": {"history": small.HISTORIES[3], "fuser": small.FUSERS[4]},
    "interleaved-regression": {"history": small.HISTORIES[2]},
    "none-flow": {"decoder": "flow"},
    "policy_head-gpt-diffusion": {"history": small.HISTORIES[1], "fuser": small.FUSERS[3], "decoder": "diffusion"},
    "none-tokens-bins": {"decoder": "tokens", "representation": "bins"},
    "none-tokens-fast": {"decoder": "tokens", "representation": "fast"},
    "none-tokens-vq": {"decoder": "tokens", "representation": "vq"},
    "none-lm_tokens-bins": {"decoder": "lm_tokens", "representation": "bins"},
    "none-expert": {"decoder": "expert"},
    "interleaved-expert": {"history": small.HISTORIES[2], "decoder": "expert"},
}


def examine(gpu: PretendGpu, vla: VLA) -> dict[str, Any]:
    """Return the waits of an optimizer step and of `act` for two sessions, and how far results are from a CPU's."""
    windows = make_windows(vla)
    here, there = run(gpu, copy.deepcopy(vla), windows, torch.device("cpu")), run(gpu, move(vla), windows, GPU)
    far = {name: float((here[name] - there[name]).abs().max()) for name in ("loss", "actions")}
    return {"step": there["step"], "act": there["act"], "far": far}


def make_windows(vla: VLA) -> Batch:
    """Return a batch as one of a data set, with windows of different lengths if the history has more than one step."""
    length = STEPS if vla.history.fuses else 1
    windows = small.batch(WINDOWS, length)
    counts = [length, *[max(1, length - 1)] * (WINDOWS - 1)]
    mask = torch.arange(length) < torch.tensor(counts)[:, None]
    windows = replace(windows, counts=counts, step_mask=mask, action_mask=windows.action_mask & mask[..., None])
    if vla.codec is None:
        return windows
    arrays = (windows.actions, windows.action_mask, windows.step_mask, windows.robots)
    tokens = ActionTokens(vla, vla.codec).encode(*(tensor.numpy() for tensor in arrays))
    return replace(windows, tokens=torch.from_numpy(tokens))


def run(gpu: PretendGpu, vla: VLA, windows: Batch, device: torch.device) -> dict[str, Any]:
    """Return the waits of the last of some optimizer steps and calls of `act`, with the loss and the actions."""
    keys = {"steps": 10, "batch_size": WINDOWS, "device": device.type, "precision": "float32"}
    config = build(TrainingConfig, {**keys, "optim": {"warmup_steps": 0, "lr": 1e-5}})
    step = OptimizerStep(TrainingState(vla.train(), config.optim), config, device)
    for number in range(2):
        with gpu.counting() as of_step:
            loss = step(windows.pin_memory() if device == GPU else windows, number, None).loss
    vla.eval()
    sessions = [vla.start(text) for text in windows.instructions[:2]]
    for number in range(3):
        observations = [small.observation(windows, row, number % windows.images.shape[1]) for row in range(2)]
        with gpu.counting() as of_act, torch.no_grad():  # wrapped tensors know no inference mode
            chunks = inspect.unwrap(VLA.act)(vla, observations, sessions)
    actions = torch.stack([torch.from_numpy(chunk.actions) for chunk in chunks])
    return {"step": dict(of_step), "act": dict(of_act), "loss": torch.tensor(loss), "actions": actions}


def make_structure(name: str, folder: Path) -> VLA:
    """Return a policy of `STRUCTURES` with nano."""
    keys = STRUCTURES[name]
    representation = keys.get("representation", "continuous")
    codec = folder / representation
    if not codec.is_dir():
        small.fit_codec(representation, codec)
    return small.awake(small.policy(**keys, codec=codec, readouts=2))


def make_family(name: str, folder: Path) -> VLA:
    """Return a policy without history on a tiny model of a family."""
    family = FAMILIES[name]
    path = write_family(family, folder / name)
    backbone = {"name": "auto", "path": str(path), "prompt": "do {instruction}", **family.options}
    return small.policy(backbone=backbone)


def examine_pretend() -> dict[str, Any]:
    """Return what the pretend GPU notices of operations whose effect is known."""
    with PretendGpu() as gpu:
        here, there = torch.eye(2), torch.eye(2).to(GPU)

        def count(work: Callable[[], object]) -> int:
            with gpu.counting() as waits:
                work()
            return sum(waits.values())

        try:
            torch.mm(there, here)
            mixed = "nothing"
        except RuntimeError as error:
            mixed = str(error).partition(", at")[0]
        chosen = torch.tensor([True, False])
        return {
            "mixed": mixed,
            "item": count(lambda: float(there.sum())),
            "copies": {
                "free": count(lambda: here.pin_memory().to(GPU, non_blocking=True)),
                "pageable": count(lambda: here.to(GPU, non_blocking=True)),
                "blocking": count(lambda: here.pin_memory().to(GPU)),
                "back": count(lambda: there.cpu()),
            },
            "indices": {
                "boolean": count(lambda: there[chosen.to(GPU)]) - 1,  # without that of its copy
                "of the CPU": count(lambda: there[torch.tensor([1])]),
                "of the GPU": count(lambda: there[there.argmax(1)]),
            },
        }


def examine_all(names: Sequence[str]) -> dict[str, Any]:
    """Return the waits of policies by name, or their error."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            make = make_structure if name in STRUCTURES else make_family
            vla = make(name, Path(folder))
            with PretendGpu() as gpu:
                try:
                    found[name] = examine(gpu, vla)
                except Exception:
                    found[name] = {"error": traceback.format_exc()}
    return found | {"pretend": examine_pretend()}
