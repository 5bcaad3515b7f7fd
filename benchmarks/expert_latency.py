"""Measure the milliseconds per chunk of a full-size pi0-like policy, and the lower bound set by the hardware.

    python benchmarks/expert_latency.py [--device cuda] [--repeats 50] [--mode MODE] [--json FILE]
    python benchmarks/expert_latency.py --small --device cpu       # a smoke run

Random weights in bfloat16: PaliGemma 3B and an expert of 300M, one robot, 2 views of 224 pixels, a chunk of 50 actions,
10 Euler steps. Two things are timed:

    act    `VLA.act`: images on the host -> actions on the host, the full latency
    core   the device part: scaled pixels and token ids -> keys and values -> 10 steps -> actions; eager, compiled by
           torch.compile, and each of these replayed as one CUDA graph

The lower bound, for the prefix and for the integration, is the larger of (bytes of weights read / memory bandwidth) and
(FLOPs / peak). Bandwidth and peak are the vendor's for known GPUs, else they are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from full_size import INSTRUCTION, make_policy, read_pi0
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from anyvla.backbones.continuation import Continuation
from anyvla.decoders.base import DecoderInput
from anyvla.decoders.expert import ExpertDecoder
from anyvla.policy import VLA
from anyvla.sequence.cache import Cache
from anyvla.types import Observation

PEAKS = {  # bytes/s of memory, dense bfloat16 FLOP/s
    "H200": (4.8e12, 989e12),
    "H100 80GB HBM3": (3.35e12, 989e12),
    "A100-SXM4-80GB": (2.04e12, 312e12),
    "RTX 4090": (1.01e12, 165e12),
}


def policy(device: torch.device, *, small: bool) -> VLA:
    """Return a pi0 whose weights are all in bfloat16."""
    vla, _ = make_policy(read_pi0(small, ["--model.backbone.dtype=bfloat16"]), device)
    vla.decoder.to(torch.bfloat16)
    return vla.eval()


@plain_dataclass
class Remembered:
    """A backbone with given keys and values."""

    layers: Sequence[tuple[Tensor, Tensor]]

    def get_keys_values(self, _cache: Cache) -> Sequence[tuple[Tensor, Tensor]]:
        return self.layers


class Core:
    """Compute a chunk from pixels, ids and proprio without host synchronization, so that it fits one CUDA graph.

    As in pi0, there are no readouts: the language model ends in keys and values, and all tokens attend to all.
    """

    def __init__(self, vla: VLA, side: int, device: torch.device) -> None:
        assert isinstance(vla.decoder, ExpertDecoder)
        self.model, self.decoder = vla.backbone.model.model, vla.decoder
        for layer in self.model.language_model.layers:
            layer.self_attn.is_causal = False
        images = torch.randint(0, 256, (1, 2, side, side, 3), dtype=torch.uint8)
        tokens = vla.backbone.tokenize(images, [INSTRUCTION]).tokens[0]
        image_id = vla.backbone.image_id
        self.ids = torch.tensor([[i for i in tokens if i != image_id]], device=device)
        self.pixels = torch.rand(2, 3, side, side, device=device).to(torch.bfloat16) * 2 - 1
        self.vector = torch.randn(1, vla.fuser.width, device=device)  # an unused readout, and proprio
        self.noise = torch.randn(1, *vla.decoder.shape, device=device)
        self.length = len(tokens)  # K
        self.first = torch.tensor([self.length + 1], device=device)
        # On the host, so that checking that all is visible needs no synchronization.
        self.visible = torch.ones(1, self.length, dtype=torch.bool)
        self.read, self.flow = self._read, self._flow

    def __call__(self) -> Tensor:
        return self.flow(*self.read(self.pixels))

    def _read(self, pixels: Tensor) -> list[Tensor]:
        """Return the keys and values of all layers in one list."""
        language = self.model.language_model
        image = self.model.get_image_features(pixels).pooler_output.flatten(0, 1)[None]
        x = torch.cat([image, language.embed_tokens(self.ids)], 1)
        positions = torch.arange(1, 1 + x.shape[1], device=x.device)[None]
        cache, rotation = DynamicCache(), language.rotary_emb(x, positions)
        for layer in language.layers:
            x = layer(x, position_embeddings=rotation, position_ids=positions, past_key_values=cache, use_cache=True)
        return [part for layer in cache.layers for part in (layer.keys, layer.values)]

    def _flow(self, *memory: Tensor) -> Tensor:
        steps = Continuation(
            Remembered(list(zip(memory[::2], memory[1::2], strict=True))), Cache(), (1,), self.visible, self.first
        )
        return self.decoder.flow(self.decoder.prefill(DecoderInput(self.vector, steps)), self.noise)

    def compiled(self, mode: str) -> None:
        self.read = torch.compile(self._read, mode=mode, dynamic=False)
        # One step of the integration; the whole loop would take ten times as long to compile.
        self.decoder.transformer.compile(mode=mode, dynamic=False)


def captured(core: Core) -> Callable[[], Tensor]:
    """Capture the core as one CUDA graph. Each replay writes to the same output tensor."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            core()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = core()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def timed(work: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Return the milliseconds of each run, with the work of the device."""
    taken = []
    for number in range(repeats + 3):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if number >= 3:
            taken.append((time.perf_counter() - start) * 1000)
    return taken


@plain_dataclass(frozen=True)
class Cost:
    """The minimum work of a phase."""

    bytes: float  # of weights, read
    flops: float

    def floor(self, bandwidth: float, peak: float) -> float:
        """Milliseconds."""
        return max(self.bytes / bandwidth, self.flops / peak) * 1000


def costs(core: Core, steps: int) -> dict[str, Cost]:
    def flops(work: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def size(module: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    memory = core.read(core.pixels)
    read = [core.model.vision_tower, core.model.multi_modal_projector, core.model.language_model.layers]
    return {
        "prefix": Cost(sum(map(size, read)), flops(lambda: core.read(core.pixels))),
        "flow": Cost(size(core.decoder) * steps, flops(lambda: core.flow(*memory))),
    }


def peaks(device: torch.device) -> tuple[float, float, str]:
    """Return bytes/s, FLOP/s, and their source."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (bandwidth, peak) in PEAKS.items():
            if known in name:
                return bandwidth, peak, f"of the vendor, {known}"
    side = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    product = min(timed(lambda: a @ b, 10, device)) / 1000
    block = torch.ones(2**31 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    copied = min(timed(block.clone, 10, device)) / 1000
    return 2 * block.numel() / copied, 2 * side**3 / product, "measured"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--small", action="store_true", help="models of a million weights, to see that it runs")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--mode", help="of torch.compile; none: do not compile")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = options.device
    mode = options.mode or ("max-autotune-no-cudagraphs" if device.type == "cuda" else "default")
    transformers.utils.logging.disable_progress_bar()
    vla = policy(device, small=options.small)
    side = getattr(vla.config.backbone.config, "image_size", None) or 224
    weights = sum(p.numel() for p in vla.parameters())
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    print(f"{machine}, torch {torch.__version__}, {weights / 1e6:.0f} million weights")
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (side, side, 3), np.uint8) for c in vla.embodiment.cameras}
    observation = Observation(images, rng.normal(size=vla.embodiment.proprio.size).astype(np.float32))
    session = vla.start(INSTRUCTION)
    results: dict[str, dict[str, float]] = {}

    def report(name: str, work: Callable[[], Any]) -> None:
        taken = timed(work, options.repeats, device)
        results[name] = {"median_ms": statistics.median(taken), "p90_ms": float(np.percentile(taken, 90))}
        print(f"{name:24} {results[name]['median_ms']:9.2f} ms  p90 {results[name]['p90_ms']:9.2f} ms", flush=True)

    report("act, eager", lambda: vla.act([observation], [session]))
    core = Core(vla, side, device)
    found = costs(core, vla.decoder.config.steps)
    bandwidth, peak, source = peaks(device)
    wanted = core().clone()
    report("core, eager", core)
    memory = core.read(core.pixels)
    report("flow, eager", lambda: core.flow(*memory))
    graphs = device.type == "cuda"
    if graphs:
        report("core, eager, graph", captured(core))
    if mode != "none":
        core.compiled(mode)
        start = time.perf_counter()
        off = (core() - wanted).abs().max().item()
        print(f"compiled in {time.perf_counter() - start:.0f} s; differs from eager by {off:.3f} at most", flush=True)
        report("core, compiled", core)
        report("flow, compiled", lambda: core.flow(*memory))
        if graphs:
            replay = captured(core)
            report("core, compiled, graph", replay)
            off = (replay() - wanted).abs().max().item()
            print(f"the graph differs from eager by {off:.3f} at most")
    floors = {name: cost.floor(bandwidth, peak) for name, cost in found.items()}
    for name, cost in found.items():
        print(
            f"floor of the {name:7} {floors[name]:9.2f} ms: {cost.bytes / 1e9:.3g} GB at {bandwidth / 1e9:.0f} GB/s, "
            f"{cost.flops / 1e9:.3g} GFLOP at {peak / 1e9:.0f} GFLOP/s ({source})"
        )
    floor = sum(floors.values())
    best = min((name for name in results if name.startswith("core")), key=lambda name: results[name]["median_ms"])
    print(f"{'floor':24} {floor:9.2f} ms; {best} takes {results[best]['median_ms'] / floor:.1f} times that")
    if options.json:
        facts = {
            "machine": machine,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "small": options.small,
            "repeats": options.repeats,
            "rows": results,
            "costs": {name: dataclasses.asdict(cost) for name, cost in found.items()},
            "bandwidth": bandwidth,
            "peak": peak,
            "floor_ms": floors,
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
