"""Measure image preprocessing: anyvla's batched tensor operations against transformers' image processors.

    python benchmarks/image_preprocessing.py [--images 32] [--rounds 5] [--device cpu] [--json FILE]

Both start from the same uint8 images and end with one float tensor on the device. A processor is called for one image
at a time, as the datasets of robot policies do, and in one call with the whole batch. Where a processor would cut or
pad, it is set to give one whole image of the tower's size. Each round times all of them, one after another, on one
thread; a number is the median of the rounds, in milliseconds per image (on a CPU of the process's own time, so that a
busy machine disturbs less). About three minutes.
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
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.images.resize import FILTERS

SIDES = ((256, 256), (480, 640))  # height, width of a camera's images
ONE_SIDE = {"longest_edge": 512}
# Name -> the processor and the size of the vision tower.
PROCESSORS: dict[str, tuple[Any, int]] = {
    "LLaVA 1.5 (CLIP)": (
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        336,
    ),
    "PaliGemma (SigLIP)": (SiglipImageProcessorPil(size={"height": 224, "width": 224}), 224),
    "SmolVLM 2, as published": (
        SmolVLMImageProcessorPil(
            size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}, do_image_splitting=False
        ),
        512,
    ),
    "SmolVLM 2, scaled once": (
        SmolVLMImageProcessorPil(size=ONE_SIDE, max_image_size=ONE_SIDE, do_image_splitting=False),
        512,
    ),
}


@dataclass(frozen=True)
class Row:
    """Milliseconds per image."""

    processor: str
    filter: str
    height: int
    width: int
    size: int
    per_image: float  # the processor, called for each image
    per_batch: float  # the processor, called once
    anyvla: float

    @property
    def times(self) -> float:
        return self.per_image / self.anyvla


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(name: str, sides: tuple[int, int], count: int, rounds: int, device: torch.device) -> Row:
    processor, size = PROCESSORS[name]
    pixels = Pixels(json.loads(processor.to_json_string()), None, exact=size).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *sides, 3), dtype=torch.uint8, generator=generator)
    arrays = [image.numpy() for image in images]

    def one_by_one() -> torch.Tensor:
        return torch.cat([processor(a, return_tensors="pt")["pixel_values"].to(device) for a in arrays])

    def at_once() -> torch.Tensor:
        return processor(arrays, return_tensors="pt")["pixel_values"].to(device)

    def ours() -> torch.Tensor:
        return pixels(images.to(device))

    found: dict[Callable[[], torch.Tensor], list[float]] = {one_by_one: [], at_once: [], ours: []}
    for number in range(rounds + 1):
        for run, times in found.items():
            elapsed = seconds(run, device)
            if number:  # the first is warm-up
                times.append(elapsed / count * 1000)
    medians = [statistics.median(times) for times in found.values()]
    return Row(name, FILTERS[pixels.filter], *sides, size, *medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'processor':24} {'filter':9} {'image':>9} {'size':>5} {'each':>8} {'batch':>8} {'anyvla':>8} {'faster':>7}"
    )
    rows = []
    for name in PROCESSORS:
        for sides in SIDES:
            row = measure(name, sides, options.images, options.rounds, options.device)
            rows.append(row)
            image = f"{row.height}x{row.width}"
            print(
                f"{row.processor:24} {row.filter:9} {image:>9} {row.size:>5} {row.per_image:8.2f} {row.per_batch:8.2f} "
                f"{row.anyvla:8.2f} {row.times:6.1f}x",
                flush=True,
            )
    if options.json:
        result = {
            "unit": "ms per image",
            "device": str(options.device),
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "images": options.images,
            "rows": [vars(r) | {"times": round(r.times, 2)} for r in rows],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
