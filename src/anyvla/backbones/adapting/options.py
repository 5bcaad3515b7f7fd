"""The options that all backbones over tokens share in a recipe. Their `Config` classes inherit them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.limits import LAYERS, SEED, STEPS, WEIGHT, WIDTH

Pretrained = Literal["full", "language_only", "vision_only", "none"]
Quantize = Literal["int8", "int4"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """The parts that get gradients. With LoRA, the adapted layers and the embeddings stay frozen."""

    vision: bool = True  # a frozen tower also stays in eval mode
    projector: bool = True  # between vision tower and language model
    language: bool = True  # the layers of the language model
    embeddings: bool = True  # the token embeddings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lora:
    """Low-rank matrices beside the linear layers of a frozen language model (arXiv 2106.09685)."""

    rank: int = Field(default=32, ge=1, le=WIDTH)  # of the matrices
    alpha: float = Field(default=16, gt=0, le=WEIGHT)  # the output of the matrices is scaled by alpha / rank
    dropout: float = Field(default=0, ge=0, lt=1)  # probability, in training
    vision: bool = False  # the vision tower's linear layers too
    targets: tuple[str, ...] | None = None  # names of layers, such as q_proj; None: all linear layers but routers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Resampler:
    """A Perceiver resampler after the projector: each image takes `tokens` tokens (arXiv 2204.14198)."""

    tokens: int = Field(default=64, ge=1, le=STEPS)  # per image
    depth: int = Field(default=6, ge=1, le=LAYERS)  # layers
    heads: int = Field(default=8, ge=1, le=LAYERS)  # of attention
    head_width: int = Field(default=64, ge=1, le=WIDTH)  # dims per head
    mlp: int = Field(default=4, ge=1, le=64)  # inner width of the feed-forward, in multiples of the outer


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Options of every `TokenBackbone`."""

    prompt: str = "What action should the robot take to {instruction}?"  # RoboVLMs' (arXiv 2412.14058)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; the trainer controls autocast
    pretrained: Pretrained = "full"  # the parts that keep the checkpoint's weights; the others are initialized anew
    # the number of layers of the language model to keep, from the first (SmolVLA); None: all
    layers: int | None = Field(default=None, ge=1, le=LAYERS)
    train: Train = Train()
    lora: Lora | None = None
    quantize: Quantize | None = None  # the language model's linear layers, which are then frozen; LoRA still trains
    resampler: Resampler | None = None
    seed: int = Field(default=0, ge=0, le=SEED)  # of all weights that come from no checkpoint

    def __post_init__(self) -> None:
        if "{instruction}" not in self.prompt:
            raise ValueError(f"the prompt {self.prompt!r} must contain {{instruction}}, which the instruction replaces")
