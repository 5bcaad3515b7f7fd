"""Compiled layers give the same policy, and a machine that cannot compile is told so before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyvla.config import ConfigError
from anyvla.training.layers import prepare_layers
from tests import small


def gradients(vla: Any, windows: int) -> dict[str, torch.Tensor]:
    vla.zero_grad()
    loss = vla.loss(small.batch(windows, vla.history.window), small.generators(windows))
    (loss.total / loss.count).backward()
    return {name: p.grad.clone() for name, p in vla.named_parameters() if p.grad is not None}


def test_each_layer_is_compiled_and_recomputed_as_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def compiled(function: Any) -> Any:
        name = type(getattr(function, "__self__", None)).__name__

        def run(*args: Any, **keys: Any) -> Any:
            runs.append(name)
            return function(*args, **keys)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    vla = small.policy(backbone=small.NANO | {"layers": 3}).train()
    prepare_layers(vla, recomputed=True, compiled=True)
    runs.clear()
    gradients(vla, 2)
    assert runs.count("NanoLayer") == 2 * 2
    assert runs.count("NanoVisionModel") == 2
    assert runs.count("LlamaMLP") == 1  # of the last layer, at the queries


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("\nNo working C++ compiler found in g++\nmore lines")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError, match=r"not work here \(No working C\+\+ compiler found in g\+\+\).*apt install g"):
        prepare_layers(small.policy(), recomputed=False, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["regression", "expert"])
def test_compiled_layers_give_the_same_gradients(decoder: str) -> None:
    vla = small.awake(small.policy(decoder=decoder)).train()
    wanted = [gradients(vla, windows) for windows in (4, 6)]
    prepare_layers(vla, recomputed=False, compiled=True)
    for own, windows in zip(wanted, (4, 6), strict=True):
        found = gradients(vla, windows)
        assert own.keys() == found.keys()
        for name in own:
            torch.testing.assert_close(found[name], own[name], rtol=1e-4, atol=1e-5 * float(own[name].abs().max()))
