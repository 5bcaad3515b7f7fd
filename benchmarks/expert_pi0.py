"""Measure the expert against transformers' own pi0 on the same weights: training steps and sampled chunks.

    python benchmarks/expert_pi0.py [--pairs 9] [--batch 4] [--device cpu] [--json FILE]

A PaliGemma and an expert with random weights in about the proportions of pi0 (100 million weights in all): 2 cameras of
112 pixels, a prompt, a chunk of 50 actions, 10 integration steps. Before it measures, it checks that both give the same
loss and the same actions. Rows:

    train          forward and backward of everything, from images on our side, from prepared pixels on theirs
    train expert   the same of the expert alone: the backbone is frozen and its keys and values are given
    sample         one chunk for one robot, images to actions
    sample batch   one chunk for each of `batch` robots, whose prompts differ in length
    flow           the 10 integration steps alone, for one robot

The two sides alternate on one thread. The result is the median of the ratios of pairs (on a CPU, CPU times).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GemmaConfig,
    PaliGemmaConfig,
    PI0Config,
    PI0ForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.config import build
from anyvla.decoders.base import DecoderInput, DecoderSpec
from anyvla.decoders.expert import ExpertDecoder
from anyvla.decoders.expert_weights import load_pi0
from anyvla.histories.base import StepInputs
from anyvla.histories.policy_head import SingleStep
from anyvla.robot.space import ActionSpace

SIDE, VIEWS, CHUNK, ACTIONS, PROPRIO = 112, 2, 50, 7, 8
LANGUAGE = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
TOWER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
EXPERT = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
KEYS = {"num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 1024}
TEXTS = ["open the drawer", "push the button", "put the red cup on the plate", "close the box"]


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both models, with the same weights, and a batch for each."""

    backbone: AutoBackbone
    expert: ExpertDecoder
    pi0: Any
    images: Tensor
    texts: list[str]
    given: dict[str, Tensor]  # the inputs of pi0
    actions: Tensor
    noise: Tensor
    time: Tensor

    def context(self) -> DecoderInput:
        """Read images and prompts with our backbone; its one readout does not enter the expert."""
        written = torch.zeros(len(self.texts), 1, self.backbone.width, device=self.images.device)
        steps = StepInputs(self.images, self.texts, written, 1)
        mask = torch.ones(len(self.texts), 1, dtype=torch.bool, device=self.images.device)
        reading = SingleStep(SingleStep.Config()).read_windows(self.backbone, steps, mask, keep_cache=True)
        return DecoderInput(torch.cat([reading.readouts[:, 0, 0], self.given["state"]], 1), reading.continuation)

    def our_loss(self, context: DecoderInput | None = None) -> Tensor:
        mask = torch.ones(len(self.texts), CHUNK, dtype=torch.bool, device=self.images.device)
        return self.expert.loss_at(context or self.context(), self.actions, mask, self.noise, self.time).value

    def their_loss(self) -> Tensor:
        return self.pi0(**self.given, actions=self.actions, noise=self.noise, timestep=self.time).loss

    def our_actions(self) -> Tensor:
        with torch.inference_mode():
            return self.expert.flow(self.expert.prefill(self.context()), self.noise)

    def their_actions(self) -> Tensor:
        with torch.inference_mode():
            return self.pi0.sample_actions(**self.given, noise=self.noise)

    def their_prefix(self) -> Any:
        """Return the KV cache of pi0's language model."""
        given = {name: self.given[name] for name in ("input_ids", "pixel_values", "pixel_attention_mask")}
        embeddings = self.pi0.model.embed_prefix(**given)
        return self.pi0.model.vlm(
            inputs_embeds=embeddings,
            attention_mask=self.given["attention_mask"],
            position_ids=self.given["attention_mask"].cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(embeddings)[:, :, 0],
            use_cache=True,
        ).past_key_values

    def after(self, prefix: Any) -> dict[str, Any]:
        """Run pi0 on a given prefix. Its cache is copied, because pi0 writes to it."""
        kept = copy.copy(prefix)
        kept.layers = [copy.copy(layer) for layer in prefix.layers]
        given = {name: self.given[name] for name in ("state", "attention_mask", "pixel_attention_mask")}
        return given | {"past_key_values": kept}

    def their_flow(self, prefix: Any) -> Tensor:
        """Run the loop of pi0's `sample_actions` after its prefix."""
        given, x, steps = self.after(prefix), self.noise, self.expert.config.steps
        cache = given["past_key_values"]
        length = cache.get_seq_length()
        with torch.inference_mode():
            for step in range(steps):
                now = torch.full((len(x),), 1 - step / steps, device=x.device)
                x = x - self.pi0(**given, noise=x, timestep=now).logits / steps
                cache.crop(length - cache.get_seq_length())
        return x


def sides(folder: Path, batch: int, device: torch.device) -> Sides:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    text = GemmaConfig(**LANGUAGE, **KEYS, vocab_size=len(tokenizer))
    tower = SiglipVisionConfig(**TOWER, image_size=SIDE, patch_size=14, projection_dim=512, vision_use_head=False)
    config = PaliGemmaConfig(
        text_config=text, vision_config=tower, image_token_id=tokenizer.image_token_id, projection_dim=512
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    backbone = AutoBackbone(AutoBackbone.Config(path=str(folder)))
    space = build(ActionSpace, {"groups": [{"name": "joints", "size": ACTIONS, "kind": "joints"}]})
    options = {"width": EXPERT["hidden_size"], "mlp": EXPERT["intermediate_size"]}
    setting = DecoderSpec(backbone.width + PROPRIO, CHUNK, space, None, backbone)
    expert = ExpertDecoder(build(ExpertDecoder.Config, options), setting)
    pi0 = PI0ForConditionalGeneration(
        PI0Config(
            vlm_config=config,
            dit_config=GemmaConfig(**EXPERT, **KEYS, vocab_size=8),
            chunk_size=CHUNK,
            max_state_dim=PROPRIO,
            max_action_dim=ACTIONS,
        )
    )
    pi0.model.vlm.load_state_dict(backbone.model.model.state_dict())
    load_pi0(expert, pi0.state_dict(), PROPRIO)
    for model in (backbone, expert, pi0):
        model.to(device)
    texts = [TEXTS[i % len(TEXTS)] for i in range(batch)]
    images = torch.randint(0, 256, (batch, VIEWS, SIDE, SIDE, 3), dtype=torch.uint8)
    rows = [torch.tensor(tokens) for tokens in backbone.tokenize(images, texts).tokens]
    given = {
        "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "pixel_values": backbone._pixel_values(images.to(device)).unflatten(0, (batch, VIEWS)),
        "pixel_attention_mask": torch.ones(batch, VIEWS, dtype=torch.bool),
        "state": torch.randn(batch, PROPRIO),
    }
    given = {name: value.to(device) for name, value in given.items()}
    actions, noise = torch.rand(2, batch, CHUNK, ACTIONS, device=device) * 2 - 1
    now = torch.rand(batch, device=device)
    return Sides(backbone, expert, pi0, images.to(device), texts, given, actions, noise, now)


def first(both: Sides) -> Sides:
    """The same for one robot."""
    given = {name: value[:1] for name, value in both.given.items()}
    length = int(given["attention_mask"].sum())
    given |= {name: given[name][:, :length] for name in ("input_ids", "attention_mask")}
    return dataclasses.replace(
        both,
        images=both.images[:1],
        texts=both.texts[:1],
        given=given,
        actions=both.actions[:1],
        noise=both.noise[:1],
        time=both.time[:1],
    )


def compare(
    theirs: Callable[[], Any], ours: Callable[[], Any], pairs: int, device: torch.device
) -> tuple[float, float, float, tuple[float, float]]:
    """Return the milliseconds of each side, and the median and quartiles of our speedup."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def timed(work: Callable[[], Any]) -> float:
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        start = clock()
        work()
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        return (clock() - start) * 1000

    taken: dict[Callable[[], Any], list[float]] = {theirs: [], ours: []}
    for number in range(pairs + 1):
        for work in (theirs, ours) if number % 2 else (ours, theirs):
            elapsed = timed(work)
            if number:  # the first is warm-up
                taken[work].append(elapsed)
    ratios = [a / b for a, b in zip(taken[theirs], taken[ours], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return statistics.median(taken[theirs]), statistics.median(taken[ours]), middle, (low, high)


def trained(loss: Callable[[], Tensor], *models: nn.Module) -> Callable[[], None]:
    def step() -> None:
        for model in models:
            model.zero_grad(set_to_none=True)
        loss().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        both = sides(Path(folder), options.batch, options.device)
    one = first(both)
    for batch in (both, one):
        torch.testing.assert_close(batch.our_loss(), batch.their_loss(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch.our_actions(), batch.their_actions(), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        context, prefix, one_context, one_prefix = (
            both.context(),
            both.their_prefix(),
            one.context(),
            one.their_prefix(),
        )
    torch.testing.assert_close(one.their_flow(one_prefix), one.our_actions(), atol=1e-4, rtol=1e-4)

    def their_expert() -> Tensor:
        return both.pi0(**both.after(prefix), actions=both.actions, noise=both.noise, timestep=both.time).loss

    def our_flow() -> Tensor:
        with torch.inference_mode():
            return one.expert.flow(one.expert.prefill(one_context), one.noise)

    ours, theirs = (both.backbone, both.expert), (both.pi0,)
    rows = {
        "train": (trained(both.their_loss, *theirs), trained(both.our_loss, *ours)),
        "train expert": (trained(their_expert, *theirs), trained(lambda: both.our_loss(context), *ours)),
        "sample": (one.their_actions, one.our_actions),
        "sample batch": (both.their_actions, both.our_actions),
        "flow": (lambda: one.their_flow(one_prefix), our_flow),
    }
    result: dict[str, Any] = {}
    print(f"{'':14} {'pi0':>11} {'anyvla':>11}  times as fast (quartiles)")
    for name, (there, here) in rows.items():
        a, b, ratio, (low, high) = compare(there, here, options.pairs, options.device)
        print(f"{name:14} {a:8.1f} ms {b:8.1f} ms  {ratio:.2f} ({low:.2f} to {high:.2f})", flush=True)
        result[name] = {"pi0_ms": a, "anyvla_ms": b, "times_as_fast": ratio, "quartiles": (low, high)}
    if options.json:
        facts = {
            "device": str(options.device),
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "batch": options.batch,
            "pairs": options.pairs,
        }
        options.json.write_text(json.dumps(facts | {"rows": result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
