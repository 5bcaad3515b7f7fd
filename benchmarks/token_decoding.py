"""Measure decoding 70 tokens in the backbone: in parallel, autoregressive with a KV cache, and with rereading.

    python benchmarks/token_decoding.py [--sizes nano large] [--rounds 3] [--batch 1] [--device cpu] [--json FILE]

`lm_tokens` with `bins` (10 actions of 7 dims: 70 tokens) after one step of 2 cameras, all on the same random LLaVA:

    parallel        decoding: parallel
    autoregressive  decoding: autoregressive, one token read at a time
    again           the same tokens, rereading images, instruction and earlier tokens for each token

`decoding` is the time after the observation has been read; `chunk` includes reading it. For `again` they are the same.
The three alternate. The results are medians of the ratios to parallel decoding in a round, so a busy machine affects
all alike (on a CPU, CPU times on one thread). Both autoregressive variants must write the same tokens. Bound: parallel
decoding is at least 5 times faster than autoregressive. About a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from anyvla.backbones.continuation import Continuation
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.config import build
from anyvla.decoders.base import DecoderInput, DecoderSpec
from anyvla.decoders.lm_tokens import LMTokensDecoder
from anyvla.representations.bins import BinsCodec
from anyvla.representations.codec import Codec
from anyvla.robot.space import ActionSpace
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out

SIZES: dict[str, dict[str, Any]] = {
    "nano": {},
    "large": {"width": 768, "layers": 8, "heads": 12, "mlp": 2048},
}
CHUNK, CONTEXT, BOUND = 10, 512, 5.0
ARM = {
    "groups": [
        {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
        {"name": "rotation", "size": 3, "kind": "rotation", "mode": "delta"},
        {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1},
    ]
}
WAYS = ("parallel", "autoregressive", "again")


@dataclass(frozen=True)
class Row:
    """Medians over rounds: milliseconds, and ratios to parallel decoding."""

    size: str
    parameters: int
    batch: int
    way: str
    decoding: float
    chunk: float
    decoding_ratio: float
    chunk_ratio: float


class Case:
    """A model, an observation of each of `batch` robots, and the three variants."""

    def __init__(self, size: str, batch: int, device: torch.device) -> None:
        self.backbone = NanoBackbone(build(NanoBackbone.Config, SIZES[size])).to(device).eval()
        space = build(ActionSpace, ARM)
        codec: Codec = BinsCodec(BinsCodec.Config(), CHUNK, space)
        setting = DecoderSpec(CONTEXT, CHUNK, space, codec, self.backbone)
        torch.manual_seed(0)
        self.one_by_one = self._decoder(setting, "autoregressive").to(device)
        self.at_once = self._decoder(setting, "parallel").to(device)
        self.vector = torch.randn(batch, CONTEXT, device=device)
        images = torch.randint(0, 256, (batch, 2, 96, 96, 3), dtype=torch.uint8, device=device)
        self.block = self.backbone.tokenize(images, ["put the red cup on the plate"] * batch)

    @staticmethod
    def _decoder(setting: DecoderSpec, decoding: str) -> LMTokensDecoder:
        return LMTokensDecoder(build(LMTokensDecoder.Config, {"decoding": decoding}), setting).eval()

    def observe(self) -> DecoderInput:
        """Read images and instruction."""
        backbone, steps = self.backbone, (1,) * len(self.vector)
        sequence = lay_out(self.block, steps, 0, pad_id=backbone.pad_id, query_id=backbone.query_id)
        cache = Cache()
        backbone(sequence, self.vector.new_zeros(1, backbone.width), cache)
        assert cache.valid is not None
        assert cache.next_position is not None
        return DecoderInput(self.vector, Continuation(backbone, cache, steps, cache.valid, cache.next_position))

    def again(self) -> Tensor:
        """Decode autoregressively without a KV cache."""
        backbone, head = self.backbone, self.one_by_one
        suffix = head.enter(self.vector)[:, None]  # (M, places, D)

        def read(token: Tensor | None) -> Tensor:
            nonlocal suffix
            if token is not None:
                suffix = torch.cat([suffix, head.vocabulary.embed(token)[:, None]], 1)
            ids = {"pad_id": backbone.pad_id, "query_id": backbone.query_id}
            sequence = lay_out(self.block, (1,) * len(self.vector), suffix.shape[1], **ids)
            return head.vocabulary.score(backbone(sequence, suffix)[:, -1])

        return head.generate_autoregressively(read, DecoderInput(self.vector), None)


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    start = clock()
    out = work()
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    return clock() - start, out


@torch.inference_mode()
def measure(size: str, rounds: int, batch: int, device: torch.device) -> list[Row]:
    case = Case(size, batch, device)
    decoding: dict[str, list[float]] = {way: [] for way in WAYS}
    chunk: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        observing, context = seconds(case.observe, device)
        parallel, _ = seconds(lambda context=context: case.at_once.generate(context, None), device)
        cached, written = seconds(lambda context=context: case.one_by_one.generate(context, None), device)
        again, same = seconds(case.again, device)
        if not torch.equal(written, same):
            raise RuntimeError("with and without a cache, autoregressive decoding writes different tokens")
        if number:  # the first is warm-up
            for way, took, whole in zip(
                WAYS, (parallel, cached, again), (observing + parallel, observing + cached, again), strict=True
            ):
                decoding[way].append(took)
                chunk[way].append(whole)

    def ratio(times: dict[str, list[float]], way: str) -> float:
        return statistics.median(a / b for a, b in zip(times[way], times["parallel"], strict=True))

    parameters = sum(p.numel() for p in case.backbone.parameters())
    return [
        Row(
            size,
            parameters,
            batch,
            way,
            statistics.median(decoding[way]) * 1000,
            statistics.median(chunk[way]) * 1000,
            ratio(decoding, way),
            ratio(chunk, way),
        )
        for way in WAYS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="robots that act together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'size':6} {'weights':>8} {'way':15} {'decoding':>18} {'chunk':>18}   times the parallel ones")
    rows: list[Row] = []
    for size in options.sizes:
        for row in measure(size, options.rounds, options.batch, options.device):
            rows.append(row)
            weights = f"{row.parameters / 1e6:.1f}M"
            times = f"{row.decoding:9.1f} ms {row.decoding_ratio:5.1f}x {row.chunk:8.1f} ms {row.chunk_ratio:5.1f}x"
            print(f"{row.size:6} {weights:>8} {row.way:15} {times}", flush=True)
    slowest = min(row.decoding_ratio for row in rows if row.way == "autoregressive")
    kept = slowest >= BOUND
    print(f"parallel decoding is {slowest:.1f} times faster at least; bound {BOUND:g}: {'kept' if kept else 'MISSED'}")
    if options.json:
        result = {
            "unit": "ms of CPU time" if options.device.type == "cpu" else "ms",
            "device": str(options.device),
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "rounds": options.rounds,
            "rows": [vars(row) for row in rows],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not kept)


if __name__ == "__main__":
    main()
