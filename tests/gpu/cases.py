"""Train and act on the pretend GPU. It must be installed before this is imported."""

from __future__ import annotations

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


def examine(gpu: PretendGpu, vla: VLA) -> dict[str, dict[str, int]]:
    """Return the waits of an optimizer step, and of a call of `act` for two sessions, after a first one of each."""
    windows = small.batch(WINDOWS, vla.history.window if vla.history.fuses and not vla.history.carries_state else STEPS)
    if not vla.history.fuses:
        windows = small.cut(windows, 0, 1)
    windows = replace(windows, counts=[windows.step_mask.shape[1]] * WINDOWS)  # as batches of a data set have
    if vla.codec is not None:
        tokens = ActionTokens(vla, vla.codec).encode(
            windows.actions.numpy(), windows.action_mask.numpy(), windows.step_mask.numpy(), windows.robots.numpy()
        )
        windows = replace(windows, tokens=torch.from_numpy(tokens))
    config = build(TrainingConfig, {"steps": 10, "batch_size": WINDOWS, "device": "cuda", "optim": {"warmup_steps": 0}})
    vla.train()
    step = OptimizerStep(TrainingState(vla, config.optim), config, GPU)
    found = {}
    for number in range(2):
        with gpu.counting() as waits:
            step(windows.pin_memory(), number, None)
        found["step"] = dict(waits)
    vla.eval()
    sessions = [vla.start(text) for text in windows.instructions[:2]]
    for _ in range(3):
        observations = [small.observation(windows, row, 0) for row in range(2)]
        with gpu.counting() as waits, torch.no_grad():  # wrapped tensors know no inference mode
            inspect.unwrap(VLA.act)(vla, observations, sessions)
        found["act"] = dict(waits)
    return found


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
                    found[name] = examine(gpu, move(vla))
                except Exception:
                    found[name] = {"error": traceback.format_exc()}
    return found | {"pretend": examine_pretend()}
