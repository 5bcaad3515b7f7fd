"""What every backbone over tokens can be asked in a recipe. Its `Config` inherits these."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from anyvla.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Options of every `TokenBackbone`."""

    prompt: str = "What action should the robot take to {instruction}?"  # RoboVLMs' (arXiv 2412.14058)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; autocast is the trainer's business

    def __post_init__(self) -> None:
        if "{instruction}" not in self.prompt:
            raise ValueError(f"the prompt {self.prompt!r} must contain {{instruction}}, the place of the instruction")
