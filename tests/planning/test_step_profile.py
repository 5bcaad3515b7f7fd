"""The profile of a step on shapes against the real model: its weights, its memory, its operations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyvla.config import build
from anyvla.planning.dry_run import DryRun
from anyvla.planning.recorder import Recorder, steady_lifetimes
from anyvla.planning.step_profile import Inputs, StepProfile, StepProfiler, profile_step
from anyvla.report.explanation import count_parameters
from anyvla.training.checks import train_in_float32
from anyvla.training.config import TrainingConfig
from tests import small

LORA = {"rank": 4}
STRUCTURES: dict[str, dict[str, Any]] = {
    "smallest": {},
    "lstm over a window": {"history": small.HISTORIES[1], "fuser": small.FUSERS[2]},
    "interleaved, diffusion": {"history": small.HISTORIES[2], "decoder": "diffusion"},
    "interleaved, expert with bins": {"history": small.HISTORIES[2], "decoder": "expert", "representation": "bins"},
    "flow, proprio as a token": {"decoder": "flow", "proprio": "token", "fuser": small.FUSERS[1]},
    "lm_tokens, fast, past visible": {
        "decoder": "lm_tokens",
        "representation": "fast",
        "history": small.HISTORIES[2] | {"past": "visible"},
    },
    "mingru over a row": {"history": {"name": "recurrent", "steps": 5, "at_once": 2}, "fuser": small.FUSERS[4]},
    "LoRA": {"backbone": small.NANO | {"lora": LORA, "train": {"vision": False}}},
}


def inputs(codec: Path | None = None) -> Inputs:
    return Inputs((small.robot(),), (small.SIZE, small.SIZE), "open the drawer", codec)


def profiled(model: Any, training: Any = None, codec: Path | None = None) -> StepProfile:
    return profile_step(model, build(TrainingConfig, training or {}), inputs(codec), torch.float32)


@pytest.mark.parametrize("name", STRUCTURES)
def test_weights_are_those_of_the_real_model(name: str, tmp_path: Path) -> None:
    keys = STRUCTURES[name]
    codec = small.fit_codec(keys.get("representation", "continuous"), tmp_path / "codec")
    real = small.policy(**keys, codec=codec)
    found = profiled(small.model(**keys), codec=codec)
    assert list(found.parts) == count_parameters(real)
    tensors = {t.data_ptr(): t.nbytes for t in (*real.parameters(), *real.buffers()) if t.numel()}
    assert found.weights == pytest.approx(sum(tensors.values()), rel=0.01)  # buffers that share memory


class Live(TorchDispatchMode):
    """The most bytes of tensors that a real run keeps at once, counted by the recorder of plans."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0
        self.known = {t.untyped_storage().data_ptr() for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage().data_ptr() in self.known:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.alive.values()))
        return made


@pytest.mark.parametrize(
    ("name", "windows"), [("smallest", 1), ("lstm over a window", 7), ("flow, proprio as a token", 7)]
)
def test_the_peak_is_that_of_a_real_step(name: str, windows: int) -> None:
    keys = STRUCTURES[name]
    vla = small.policy(**keys).train()
    batch = small.batch(windows, vla.history.window)
    batch = dataclasses.replace(batch, instructions=["open the drawer"] * windows)
    with steady_lifetimes(), Live((*vla.parameters(), *vla.buffers())) as live:
        vla.loss(batch, small.generators(windows)).total.backward()
    given = sum(t.nbytes for t in vars(batch).values() if isinstance(t, torch.Tensor))
    found = profiled(small.model(**keys)).timeline.peak(windows).total
    assert found == pytest.approx(live.most + given, rel=0.1)


def test_operations_of_a_stack_of_linear_layers_are_counted_by_hand() -> None:
    rows, sizes = 5, (8, 16, 24)
    dry = DryRun()
    model = dry.build(lambda: nn.Sequential(nn.Linear(*sizes[:2]), nn.GELU(), nn.Linear(*sizes[1:])))
    recorder = Recorder()
    with dry.recorded(recorder), dry:
        model(dry.empty(rows, sizes[0])).sum().backward()
    first, second = 2 * rows * sizes[0] * sizes[1], 2 * rows * sizes[1] * sizes[2]
    # forward, and backward to the weights of both layers and to the input of the second
    assert recorder.flops == 2 * first + 3 * second


def test_operations_of_an_lstm_are_counted_by_hand() -> None:
    rows, steps, width, hidden = 5, 3, 8, 16
    dry = DryRun()
    model = dry.build(lambda: nn.LSTM(width, hidden, batch_first=True))
    recorder = Recorder()
    with dry.recorded(recorder), dry:
        model(dry.empty(rows, steps, width))[0].sum().backward()
    assert recorder.flops == 3 * 2 * rows * steps * 4 * hidden * (width + hidden)


def test_tokens_are_those_of_a_window() -> None:
    one, window = profiled(small.model()), profiled(small.model(small.HISTORIES[1], small.FUSERS[2]))
    assert window.tokens == 3 * one.tokens
    assert (one.steps, window.steps) == (1, 3)


def test_the_state_of_the_optimizer_follows_its_settings() -> None:
    profiler, model = StepProfiler(inputs(), torch.float32), small.model()

    def of(**training: Any) -> StepProfile:
        return profiler.profile(model, build(TrainingConfig, training))

    plain = of()
    numbers = sum(part.trainable for part in plain.parts)
    assert plain.optimizer == pytest.approx(8 * numbers, rel=0.01)  # two moments in float32, and the steps
    assert plain.average == 0
    assert of(ema={"decay": 0.9}).average == pytest.approx(4 * numbers)
    assert of(optim={"name": "adamw8bit"}).optimizer < plain.optimizer
    assert of(optim={"name": "muon"}).optimizer < 0.9 * plain.optimizer
    frozen = of(optim={"parts": {"vision": {"train": False}}})
    assert frozen.optimizer < plain.optimizer
    assert frozen.timeline.all_gradients < plain.timeline.all_gradients


def test_eight_bit_moments_take_as_much_as_those_of_bitsandbytes() -> None:
    optim = pytest.importorskip("bitsandbytes").optim
    from anyvla.planning.training_state import _eight_bits

    for shape in ((8, 8), (64, 64), (100, 77)):
        weight = nn.Parameter(torch.randn(shape))
        optimizer = optim.AdamW8bit([weight])
        weight.grad = torch.randn(shape)
        optimizer.step()
        state = optimizer.state[weight]
        names = ("state1", "state2", "absmax1", "absmax2")
        assert sum(state[name].nbytes for name in names if name in state) == _eight_bits(weight.numel())


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantized_layers_take_as_much_as_those_of_bitsandbytes(bits: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    backbone = small.NANO | {"quantize": bits, "lora": LORA}
    real = small.policy(backbone=backbone)
    kinds = bnb.nn.Linear8bitLt | bnb.nn.Linear4bit
    language = [m for m in real.backbone.modules() if isinstance(m, kinds)]
    language = [m for m in language if "lora" not in type(m).__module__]
    stored = sum(m.weight.nbytes + (0 if bits == "int8" else m.weight.quant_state.absmax.nbytes) for m in language)
    stored += sum(m.weight.SCB.nbytes for m in language) if bits == "int8" else 0
    dry = DryRun()
    from anyvla.policy import VLA

    planned = dry.build(lambda: VLA(small.model(backbone=backbone), [small.robot()]))
    shapes = [m for m in planned.modules() if type(m).__name__ == "QuantizedShape"]
    assert len(shapes) == len(language) > 0
    assert sum(m.weight.nbytes + m.scales.nbytes for m in shapes) == stored


@pytest.mark.parametrize("keys", [{}, {"lora": LORA}], ids=["trained", "LoRA"])
def test_trained_weights_are_planned_in_float32_as_training_keeps_them(keys: dict[str, Any]) -> None:
    backbone = small.NANO | {"dtype": "bfloat16"} | keys
    real = small.policy(backbone=backbone)
    train_in_float32(real, torch.bfloat16)
    found = profile_step(small.model(backbone=backbone), TrainingConfig(), inputs(), torch.bfloat16)
    tensors = {t.data_ptr(): t.nbytes for t in (*real.parameters(), *real.buffers()) if t.numel()}
    assert found.weights == pytest.approx(sum(tensors.values()), rel=0.01)
    assert found.optimizer == pytest.approx(8 * sum(part.trainable for part in found.parts), rel=0.01)


def test_the_gradients_of_all_weights_are_counted_those_made_last_too() -> None:
    found = profiled(small.model())
    assert found.timeline.all_gradients == 4 * sum(part.trainable for part in found.parts)


def test_gradient_checkpointing_keeps_less_and_computes_more() -> None:
    deep = small.NANO | {"layers": 6}
    kept = profiled(small.model(backbone=deep))
    recomputed = profiled(small.model(backbone=deep), {"gradient_checkpointing": True})
    assert recomputed.timeline.peak(64).activations < 0.9 * kept.timeline.peak(64).activations
    assert kept.flops < recomputed.flops < 1.5 * kept.flops
