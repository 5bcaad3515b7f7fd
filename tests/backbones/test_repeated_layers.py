"""Layers that are computed again give the same bits, take less memory, and find the cache as it was."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from anyvla.backbones.adapting.resampler import PerceiverResampler
from anyvla.backbones.repeated_layers import find_repeated_layers, recompute, stop_recomputing
from anyvla.training.layers import prepare_layers
from anyvla.transformer_block import TransformerBlock
from tests import small


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive and storage.nbytes():
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def backward(vla: Any, windows: int = 8) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradients of a batch and the peak memory of computing them, with dropout from a seed."""
    vla.zero_grad()
    torch.manual_seed(0)
    with PeakMemory() as memory:
        loss = vla.loss(small.batch(windows, vla.history.window), small.generators(windows))
        (loss.total / loss.count).backward()
    return {name: p.grad.clone() for name, p in vla.named_parameters() if p.grad is not None}, memory.peak


DEEP = small.NANO | {"layers": 4}
STRUCTURES: dict[str, tuple[dict[str, Any], float]] = {  # and the most of the memory that they may take
    "gpt": (
        {"history": small.HISTORIES[1], "fuser": {"name": "gpt", "width": 32, "layers": 3, "heads": 2}},
        0.6,
    ),
    "diffusion": ({"decoder": "diffusion"}, 0.85),
    "expert": ({"history": small.HISTORIES[2], "decoder": "expert"}, 0.6),  # reads the keys and values of each layer
    "lm_tokens": ({"decoder": "lm_tokens", "representation": "bins"}, 0.7),  # decodes further after the cache
    "frozen embeddings and lora": (
        {"backbone": DEEP | {"lora": {"rank": 4, "dropout": 0.2}, "train": {"vision": False, "embeddings": False}}},
        0.55,
    ),
    "resampler": ({"backbone": DEEP | {"resampler": {"tokens": 4, "depth": 2, "heads": 2, "head_width": 8}}}, 0.75),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_are_the_same_bits_for_less_memory(name: str, tmp_path: Any) -> None:
    if "lora" in name:
        pytest.importorskip("peft")
    given, share = STRUCTURES[name]
    codec = small.fit_codec(given["representation"], tmp_path / "codec") if "representation" in given else None
    vla = small.awake(small.policy(codec=codec, **{"backbone": DEEP} | given)).train()
    kept, much = backward(vla)
    prepare_layers(vla, recomputed=True, compiled=False)
    again, little = backward(vla)
    assert kept.keys() == again.keys()
    assert [n for n in kept if not torch.equal(kept[n], again[n])] == []
    assert little < share * much


def test_layers_of_every_part_are_found_and_the_last_language_layer_is_not() -> None:
    vla = small.policy(*STRUCTURES["gpt"][0].values(), backbone=DEEP, decoder="diffusion")
    names = {module: name for name, module in vla.named_modules()}
    found = [names[layer] for layer in find_repeated_layers(vla, vla.backbone.query_only_modules)]
    language = [f"backbone.model.model.language_model.layers.{i}" for i in range(3)]
    tower = "backbone.model.model.vision_tower"
    wanted = [
        tower,
        *language,
        *(f"fuser.layers.{i}" for i in range(3)),
        *(f"decoder.network.layers.{i}" for i in (0, 1)),
    ]
    assert sorted(found) == sorted(wanted)


def test_lists_of_plain_or_of_different_modules_are_no_layers() -> None:
    block, other = TransformerBlock(8, 2), PerceiverResampler(8, small_resampler())
    plain = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    mixed = nn.ModuleList([TransformerBlock(8, 2), nn.Identity()])
    model = nn.ModuleDict({"plain": plain, "mixed": mixed, "alike": nn.Sequential(block, TransformerBlock(8, 2))})
    assert find_repeated_layers(model) == [*model["alike"]]  # type: ignore[misc]
    assert find_repeated_layers(other) == [*other.layers]


def small_resampler() -> Any:
    from anyvla.backbones.adapting.options import Resampler

    return Resampler(tokens=2, depth=2, heads=2, head_width=4)


class Counting(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.runs = nn.Parameter(torch.ones(3)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return (x * self.weight).exp()


def test_a_layer_runs_twice_in_training_only() -> None:
    layer = Counting()
    recompute([layer])
    for training, grad, runs in ((True, True, 2), (True, False, 1), (False, True, 1)):
        layer.train(training).runs = 0
        with torch.set_grad_enabled(grad):
            out = layer(torch.ones(3))
        if grad:
            out.sum().backward()
        assert layer.runs == runs
    stop_recomputing([layer])
    layer.train().runs = 0
    layer(torch.ones(3)).sum().backward()
    assert layer.runs == 1


def test_a_copy_computes_with_its_own_weights() -> None:
    layer = Counting()
    recompute([layer])
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.fill_(2)
    assert torch.equal(other(torch.ones(3)), torch.full((3,), 2.0).exp())


class Caching(nn.Module):
    """Attends to nothing, but adds to a cache and returns its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.lengths: list[int] = []

    def forward(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        own = getattr(cache, "self_attention_cache", cache)
        keys, _ = own.update(x * self.weight, x * self.weight, 0)
        self.lengths.append(keys.shape[2])
        return keys.sum().exp()


@pytest.mark.parametrize("paired", [False, True])
def test_a_cache_has_each_position_once(paired: bool) -> None:
    layer = Caching()
    recompute([layer])
    cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache()) if paired else DynamicCache()
    x = torch.full((1, 1, 2, 1), 0.1)
    total = layer(x, cache) + layer(x, cache)
    own = cache.self_attention_cache if paired else cache
    (total + own.layers[0].keys.sum()).backward()
    assert layer.lengths[:2] == [2, 4]
    assert sorted(layer.lengths[2:]) == [2, 4]
    assert own.layers[0].keys.shape[2] == 4
    weight = torch.ones(1, requires_grad=True)
    ((0.2 * weight).exp() + (0.4 * weight).exp() + 0.4 * weight).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
