"""A small convolutional image encoder that a LLaVA-style model can use as its vision tower.

A convolutional stem learns faster from scratch than a vision transformer and is cheap on a CPU. Importing this module
registers it with `AutoConfig` and `AutoModel`, so that a saved nano folder loads like any other model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

FIRST_STRIDE = 4  # of the first convolution (kernel 8), which dominates the cost of the stem; the others have stride 2


class NanoVisionConfig(PreTrainedConfig):
    """Square images of `image_size` pixels; the last convolution has `hidden_size` channels, the others `channels`."""

    model_type = "anyvla_nano_vision"

    def __init__(
        self, image_size: int = 96, channels: Sequence[int] = (64, 128), hidden_size: int = 192, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.channels = list(channels)
        self.hidden_size = hidden_size

    @property
    def stride(self) -> int:
        """Return the pixels per token along one side."""
        return FIRST_STRIDE * 2 ** len(self.channels)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W), without copies if the memory is channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NanoVisionModel(PreTrainedModel):
    """Pixels (N, 3, H, H) -> F = (H / stride)^2 tokens (N, F, hidden_size), row-major."""

    config_class = NanoVisionConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules: ClassVar[list[str]] = []
    is_whole_layer = True  # see `backbones.repeated_layers`
    given: Tensor | None = None  # the tokens, if they are known already

    def __init__(self, config: NanoVisionConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        inputs, kernel, stride = 3, 2 * FIRST_STRIDE, FIRST_STRIDE
        for outputs in (*config.channels, config.hidden_size):
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2),
                ChannelNorm(outputs),
                nn.GELU(),
            ]
            inputs, kernel, stride = outputs, 3, 2
        self.stem = nn.Sequential(*layers)
        tokens = (config.image_size // config.stride) ** 2
        self.position = nn.Parameter(torch.zeros(tokens, config.hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.LayerNorm)):
            module.reset_parameters()
        elif module is self:
            side = self.config.image_size // self.config.stride
            self.position.copy_(grid_waves(side, self.config.hidden_size))

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        tokens = self._encode(pixel_values) if self.given is None else self.given
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))

    def _encode(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.to(self.position.dtype).contiguous(memory_format=torch.channels_last)
        return self.stem(x).flatten(2).transpose(1, 2) + self.position  # (N, F, D)


def grid_waves(side: int, width: int) -> Tensor:
    """Return sines and cosines of row and column, (side^2, width), about as large as the features."""
    waves = torch.arange(-(-width // 4)) / max(1, width // 4)
    angles = torch.arange(side)[:, None] * math.pi / side * 2 ** (4 * waves)  # half a wave to eight over the image
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, ~width/2)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=2)
    return grid.reshape(side * side, -1)[:, :width]


AutoConfig.register(NanoVisionConfig.model_type, NanoVisionConfig, exist_ok=True)
AutoModel.register(NanoVisionConfig, NanoVisionModel, exist_ok=True)
