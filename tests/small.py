"""A small robot, policy and data set for tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyvla.config import build
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.open import open_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.policy import VLA, VLAConfig
from anyvla.recipe import Recipe
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace
from anyvla.types import Batch, Observation

SIZE = 32
NANO = {"name": "nano", "width": 32, "layers": 2, "heads": 2, "mlp": 64, "image_size": SIZE, "channels": [16, 16]}
SMALLEST = {  # a recipe's section model
    "backbone": NANO,
    "history": "none",
    "fuser": "identity",
    "decoder": {"name": "regression", "hidden": 32, "layers": 1},
    "chunk": 4,
}
HISTORIES = [
    "none",
    {"name": "policy_head", "window": 3},
    {"name": "interleaved", "window": 3},
    {"name": "recurrent", "steps": 40},
]
FUSERS = [
    "identity",
    {"name": "mlp", "widths": [64]},
    {"name": "lstm", "hidden": 32, "layers": 2},
    {"name": "gpt", "width": 32, "layers": 2, "heads": 2},
    {"name": "mingru", "width": 32, "layers": 2},
]
DECODERS = {
    "regression": {"name": "regression", "hidden": 64, "layers": 1},
    "diffusion": {"name": "diffusion", "width": 64, "layers": 2, "heads": 2, "samples": 1},
    "flow": {"name": "flow", "width": 64, "layers": 2, "heads": 2, "samples": 1},
    "tokens": {"name": "tokens", "width": 64, "layers": 2, "heads": 2},
    "lm_tokens": {"name": "lm_tokens"},
    "expert": {"name": "expert", "width": 64, "mlp": 128, "tokens": {"ids": "added"}},
}
REPRESENTATIONS = {
    "continuous": "continuous",
    "bins": {"name": "bins", "bins": 32},
    "fast": {"name": "fast", "vocabulary": 128},
    "vq": {"name": "vq", "codebook": 16, "quantizers": 2, "steps": 200},
}


def embodiment() -> Embodiment:
    return build(
        Embodiment,
        {
            "name": "small",
            "cameras": ["corner", "wrist"],
            "control_hz": 10,
            "proprio": {"groups": [{"name": "position", "size": 3, "kind": "position"}]},
            "action": {
                "groups": [
                    {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
                    {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1},
                ]
            },
        },
    )


def statistics() -> Statistics:
    def of(dims: int) -> dict[str, list[float]]:
        low, high = [-2.0] * dims, [2.0] * dims
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": [0.5] * dims, "std": [2.0] * dims}

    return Statistics(of(4), of(3), "f" * 64)


def robot() -> Robot:
    return Robot(embodiment(), statistics())


def model(history: Any = "none", fuser: Any = "identity", **keys: Any) -> VLAConfig:
    data = {"backbone": NANO, "history": history, "fuser": fuser, "decoder": "regression", "chunk": 4, "execute": 2}
    data |= keys
    for axis, small in (("decoder", DECODERS), ("representation", REPRESENTATIONS)):
        if isinstance(data.get(axis), str):
            data[axis] = small[data[axis]]
    return build(VLAConfig, data)


def policy(*args: Any, codec: Path | None = None, **keys: Any) -> VLA:
    config = model(*args, **keys)
    torch.manual_seed(0)
    return VLA(config, [robot()], codec=codec).eval()


def awake(vla: VLA) -> VLA:
    """Return the policy with random numbers where its weights are zero.

    Until a diffusion or a flow decoder is trained, its output layer is zero: it gives the same chunk for every
    observation, history and noise, and a comparison of chunks notices nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in vla.parameters():
            if not weight.any():
                weight.normal_(std=0.2, generator=generator)
    return vla


def fit_codec(representation: str, folder: Path, chunk: int = 4) -> Path | None:
    """Return the folder of a codec fitted to smooth random chunks; None for continuous actions."""
    decoder = "tokens" if representation != "continuous" else "regression"
    return fit_codec_to(model(decoder=decoder, representation=representation, chunk=chunk), embodiment().action, folder)


def fit_codec_to(config: VLAConfig, space: ActionSpace, folder: Path) -> Path | None:
    if config.representation.target.kind == "continuous":
        return None
    codec = config.representation.build(config.chunk, space)
    g = torch.Generator().manual_seed(0)
    ends = torch.rand(512, 2, space.size, generator=g) * 1.6 - 0.8
    codec.fit(torch.lerp(ends[:, :1], ends[:, 1:], torch.linspace(0, 1, config.chunk)[:, None]))
    codec.save(folder)
    return folder


def cut(data: Batch, begin: int, end: int) -> Batch:
    """Return the steps `begin` to `end` of each window."""
    parts = ("images", "proprio", "actions", "action_mask", "step_mask")
    return dataclasses.replace(data, **{name: getattr(data, name)[:, begin:end] for name in parts})


def batch(windows: int, steps: int, seed: int = 0, chunk: int = 4) -> Batch:
    g = torch.Generator().manual_seed(seed)
    words = ["open the drawer", "close it now, please", "press the button"]
    return Batch(
        images=torch.randint(0, 256, (windows, steps, 2, SIZE, SIZE, 3), dtype=torch.uint8, generator=g),
        proprio=torch.randn(windows, steps, 3, generator=g),
        instructions=[words[i % 3] for i in range(windows)],
        actions=torch.rand(windows, steps, chunk, 4, generator=g) * 2 - 1,
        action_mask=torch.ones(windows, steps, chunk, dtype=torch.bool),
        step_mask=torch.ones(windows, steps, dtype=torch.bool),
        robots=torch.zeros(windows, dtype=torch.int64),
    )


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    """Return generators with different seeds, for the windows of a batch or the steps of a loss."""
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


def observation(of: Batch, row: int, step: int) -> Observation:
    images = of.images[row, step].numpy()
    return Observation({"corner": images[0], "wrist": images[1]}, of.proprio[row, step].numpy())


def windowed(vla: VLA, data: Batch) -> torch.Tensor:
    """Return the chunks (B, T, N, A), in robot units, of training's forward pass; zeros at steps that are not valid."""
    with torch.inference_mode():
        out = torch.zeros(*data.actions.shape)
        generators = [torch.Generator().manual_seed(0) for _ in range(int(data.step_mask.sum()))]
        out[data.step_mask] = vla.action_normalizer.denormalize(
            vla.decoder.sample(vla.read(data), generators), torch.zeros(len(generators), dtype=torch.int64)
        )
        return out


def recipe(model: VLAConfig, training: Any, source: Path | str = "opened by the test", **data: Any) -> Recipe:
    """Return a recipe with one source; `data` has the other keys of its section, `training` the keys or the config."""
    data = {"sources": [{"path": str(source)}]} | data
    return build(Recipe, {"name": "small", "data": data, "model": model, "training": training})


def mixture(root: Path) -> Mixture:
    return Mixture([open_dataset(root)], [1.0], [None])


def episode(length: int, seed: int = 0, instruction: str = "open the drawer") -> Episode:
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(size=(length, 3)) * 0.1, axis=0).astype(np.float32)
    frames = np.full((length, SIZE, SIZE, 3), 128, np.uint8)
    frames[:, :8, :8] = rng.integers(0, 255, size=(length, 1, 1, 3))
    actions = np.concatenate([np.tanh(state), np.sign(state[:, :1]) + (state[:, :1] == 0)], axis=1).astype(np.float32)
    return Episode(
        embodiment=embodiment(),
        images={"corner": frames, "wrist": frames[:, ::-1].copy()},
        proprio=state,
        actions=actions,
        instructions=(instruction,),
        timestamps=steady_timestamps(length, embodiment().control_hz),
        extra={"task": "t"},
    )
