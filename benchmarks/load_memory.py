"""Measure the peak memory of loading a model relative to the size of its weights; the bound is 1.2.

    python benchmarks/load_memory.py

A LLaVA of about 1.2 GB in float32 is made in a temporary folder; each case runs in a separate process. The result is
the peak resident memory (with file pages) minus the memory after the imports. For comparison: `from_pretrained` of
transformers, which maps the files into memory, and `load_model` of safetensors. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import safetensors.torch
import torch
import yaml
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.config import build
from anyvla.policy import VLA, VLAConfig
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot

LAYERS, WIDTH = 14, 1024
CASES = {
    "AutoBackbone, one file": ("auto", "whole", "float32"),
    "AutoBackbone, shards of 200 MB": ("auto", "shards", "float32"),
    "AutoBackbone, one file, to bfloat16": ("auto", "whole", "bfloat16"),
    "AutoBackbone, shards, to bfloat16": ("auto", "shards", "bfloat16"),
    "VLA.load": ("vla", "checkpoint", "float32"),
    "transformers, one file, to bfloat16": ("transformers", "whole", "bfloat16"),
    "safetensors load_model into the VLA": ("safetensors", "checkpoint", "float32"),
}


def make(folder: Path) -> None:
    nano = NanoBackbone(NanoBackbone.Config())
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=16,
        vocab_size=32000, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, image_size=112,
        patch_size=14,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=nano.image_id)
    model = LlavaForConditionalGeneration(config)
    for name, options in (("whole", {"max_shard_size": "50GB"}), ("shards", {"max_shard_size": "200MB"})):
        nano.save_assets(folder / name)
        (folder / name / "preprocessor_config.json").write_text(
            json.dumps({"size": {"height": 112, "width": 112}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
            encoding="utf-8",
        )
        model.save_pretrained(folder / name, **options)


def make_checkpoint(folder: Path) -> None:
    document = {"backbone": {"name": "auto", "path": str(folder / "whole")}}
    document |= {"history": "none", "fuser": "identity", "decoder": "regression"}
    VLA(build(VLAConfig, document), [robot()]).save(folder / "checkpoint")


def robot() -> Robot:
    groups = {"groups": [{"name": "position", "size": 3, "kind": "position", "mode": "delta"}]}
    state = {"groups": [{"name": "position", "size": 3, "kind": "position"}]}
    keys = {"name": "arm", "cameras": ["top"], "control_hz": 10, "proprio": state, "action": groups}
    bounds = {"q01": [-1.0] * 3, "q99": [1.0] * 3, "min": [-1.0] * 3, "max": [1.0] * 3}
    values = bounds | {"mean": [0.0] * 3, "std": [1.0] * 3}
    return Robot(build(Embodiment, keys), Statistics(values, values, "0" * 64))


def load(kind: str, folder: Path, dtype: str) -> torch.nn.Module:
    if kind == "auto":
        return AutoBackbone(AutoBackbone.Config(path=str(folder), dtype=dtype))
    if kind == "transformers":
        return LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    if kind == "vla":
        return VLA.load(folder)
    document = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    vla = VLA(build(VLAConfig, document["model"]), [robot()], assets=folder / "backbone")
    safetensors.torch.load_model(vla, str(folder / "model.safetensors"))
    return vla


def measure(kind: str, folder: Path, dtype: str) -> dict[str, float]:
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    model = load(kind, folder, dtype)
    seconds = time.perf_counter() - start
    size = sum(w.numel() * w.element_size() for w in model.parameters())
    sum(float(w.flatten()[:: 1024 // w.element_size()].sum()) for w in model.parameters())  # touches each page
    status = Path("/proc/self/status").read_text(
        encoding="utf-8"
    )  # getrusage would begin with the memory of the parent process
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 - before
    return {"size_gb": size / 1e9, "peak": peak / size, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, help="kind, folder, dtype: measure one case in this process")
    case = parser.parse_args().case
    if case:
        print(json.dumps(measure(case[0], Path(case[1]), case[2])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder)
        make_checkpoint(folder)
        print(f"{'case':40} {'weights, GB':>12} {'peak / weights':>15} {'seconds':>8}")
        for name, (kind, where, dtype) in CASES.items():
            command = [sys.executable, __file__, "--case", kind, str(folder / where), dtype]
            run = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
            r = json.loads(run.stdout.splitlines()[-1])
            print(f"{name:40} {r['size_gb']:12.2f} {r['peak']:15.2f} {r['seconds']:8.1f}", flush=True)


if __name__ == "__main__":
    main()
