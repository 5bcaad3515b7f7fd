"""Measure the overhead of the adapter: `backbone(sequence, queries)` against a direct call of the transformers model.

    python benchmarks/backbone_adapter.py [--pairs 11] [--device cpu] [--json FILE]

Models of the real classes with random weights, about 25 million parameters; a batch of 4 steps of 2 cameras and 1
readout, forward and backward. The direct call runs the base model, without its LM head, and reads the same position of
the last hidden states. Three comparisons:

    adapter   both from prepared pixels: the cost of hooks, positions and masks
    forward   anyvla from uint8 images of 256 x 256, the direct call from prepared pixels
    whole     both from uint8 images and texts; the direct call through the family's image processor

The two sides alternate on one thread. The result is the median of the ratios of pairs, so that a busy machine affects
both sides alike (on a CPU, times are CPU times of the process). About three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import TokenSequence

LANGUAGE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 5, "num_attention_heads": 8}
TOWER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 6}
SQUARE = {"height": 84, "width": 84}  # 36 tokens an image
QWEN_SIDE = 112  # pixels: 16 tokens an image, of 64 patches
SPECIAL = ["<|vision_start|>", "<|vision_end|>"]
TEXTS = ["open the drawer", "push the button", "put the red cup on the plate", "close the box"]


def llava(tokenizer: Any) -> tuple[PreTrainedConfig, Any]:
    text = LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), max_position_embeddings=1024)
    tower = CLIPVisionConfig(**TOWER, image_size=84, patch_size=14)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 84}, crop_size=SQUARE)
    return LlavaConfig(text_config=text, vision_config=tower, image_token_id=tokenizer.image_token_id), processor


def paligemma(tokenizer: Any) -> tuple[PreTrainedConfig, Any]:
    text = GemmaConfig(
        **LANGUAGE, vocab_size=len(tokenizer), head_dim=64, num_key_value_heads=1, max_position_embeddings=1024
    )
    tower = SiglipVisionConfig(**TOWER, image_size=84, patch_size=14, projection_dim=512, vision_use_head=False)
    config = PaliGemmaConfig(
        text_config=text, vision_config=tower, image_token_id=tokenizer.image_token_id, projection_dim=512
    )
    return config, SiglipImageProcessorPil(size=SQUARE)


def qwen2_5_vl(tokenizer: Any) -> tuple[PreTrainedConfig, Any]:
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    text = {**LANGUAGE, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "rope_parameters": rope}
    tower = {"hidden_size": 384, "intermediate_size": 1024, "depth": 4, "num_heads": 6, "out_hidden_size": 512}
    start, end = tokenizer.convert_tokens_to_ids(SPECIAL)
    config = Qwen2_5_VLConfig(
        text_config=text | {"max_position_embeddings": 1024},
        vision_config=tower | {"fullatt_block_indexes": [3]},
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return config, Qwen2VLImageProcessorPil(size={"shortest_edge": QWEN_SIDE**2, "longest_edge": QWEN_SIDE**2})


FAMILIES = {"llava": llava, "qwen2_5_vl": qwen2_5_vl, "paligemma": paligemma}


class Prepared(nn.Module):
    """A replacement for `Pixels` that returns prepared pixels."""

    def __init__(self, pixels: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.made, self.scale = pixels, scale

    def forward(self, _images: Tensor) -> Tensor:
        return self.made


@dataclass(frozen=True)
class Row:
    """Milliseconds of one training step, and ratios minus 1."""

    family: str
    comparison: str
    parameters: int
    direct: float
    anyvla: float
    overhead: float  # median over pairs
    quartiles: tuple[float, float]


def compare(
    direct: Callable[[], Tensor], ours: Callable[[], Tensor], model: nn.Module, pairs: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Return the seconds of each side, which alternate in going first."""

    def step(read: Callable[[], Tensor]) -> float:
        model.zero_grad(set_to_none=True)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        start = clock()
        read().square().mean().backward()
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        return clock() - start

    times: dict[Callable[[], Tensor], list[float]] = {direct: [], ours: []}
    for number in range(pairs + 1):
        for read in (direct, ours) if number % 2 else (ours, direct):
            elapsed = step(read)
            if number:  # the first is warm-up
                times[read].append(elapsed)
    return times[direct], times[ours]


def measure(family: str, folder: Path, pairs: int, device: torch.device) -> Iterator[Row]:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    config, processor = FAMILIES[family](tokenizer)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    image_size = QWEN_SIDE if family == "qwen2_5_vl" else None
    backbone = AutoBackbone(AutoBackbone.Config(path=str(folder), image_size=image_size)).to(device)
    model, vision = backbone.model, backbone.quirk.vision
    images = torch.randint(0, 256, (len(TEXTS), 2, 256, 256, 3), dtype=torch.uint8)
    arrays = [image.numpy() for image in images.flatten(0, 1)]
    queries = torch.nn.Parameter(torch.randn(1, backbone.width, device=device) * 0.02)

    def sequence() -> TokenSequence:
        block = backbone.tokenize(images.to(device), TEXTS)
        return lay_out(block, [1] * len(TEXTS), 1, pad_id=backbone.pad_id, query_id=backbone.query_id)

    laid = sequence()
    prepared = backbone._images(laid)
    given = {name: value.detach() for name, value in vision(prepared).items()}
    extras = {name: make(prepared) for name, make in backbone.quirk.extras.items() if name in backbone._names}
    places = laid.query_mask.flatten().nonzero().squeeze(1)

    def read(inputs: dict[str, Tensor], now: TokenSequence) -> Tensor:
        hidden = model.model(
            input_ids=now.input_ids, attention_mask=now.attention_mask.long(), use_cache=False, **inputs, **extras
        ).last_hidden_state
        return hidden.flatten(0, 1)[places]

    def processed() -> Tensor:
        made = processor(arrays, return_tensors="pt")
        return read({name: made[name].to(device) for name in given}, sequence())

    kept = backbone.pixels
    with torch.no_grad():  # both sides get the same numbers except for the embedding at the query position
        backbone.embedding.weight[backbone.query_id] = queries[0] / float(getattr(backbone.embedding, "embed_scale", 1))
        torch.testing.assert_close(backbone(laid, queries)[:, 0], read(given, laid), atol=1e-4, rtol=1e-3)
    comparisons: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], nn.Module]] = {
        "adapter": (lambda: read(given, laid), lambda: backbone(laid, queries), Prepared(prepared.pixels, kept.scale)),
        "forward": (lambda: read(given, laid), lambda: backbone(laid, queries), kept),
        "whole": (processed, lambda: backbone(sequence(), queries), kept),
    }
    for name, (direct, ours, pixels) in comparisons.items():
        backbone.pixels = pixels
        there, here = compare(direct, ours, backbone, pairs, device)
        ratios = [b / a - 1 for a, b in zip(there, here, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        size = sum(p.numel() for p in model.parameters())
        medians = [statistics.median(times) * 1000 for times in (there, here)]
        yield Row(family, name, size, *medians, statistics.median(ratios), (low, high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"{'family':12} {'comparison':10} {'weights':>8} {'direct':>10} {'anyvla':>10} {'overhead':>9}  quartiles")
    rows: list[Row] = []
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(family, Path(folder), options.pairs, options.device):
                rows.append(row)
                low, high = row.quartiles
                size, spread = f"{row.parameters / 1e6:.1f}M", f"{low:+.1%} to {high:+.1%}"
                times = f"{row.direct:7.1f} ms {row.anyvla:7.1f} ms {row.overhead:+9.1%}"
                print(f"{row.family:12} {row.comparison:10} {size:>8} {times}  {spread}", flush=True)
    if options.json:
        result = {
            "unit": "ms of one forward and backward",
            "device": str(options.device),
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "pairs": options.pairs,
            "rows": [vars(row) for row in rows],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
