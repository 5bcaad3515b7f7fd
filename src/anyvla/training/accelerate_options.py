"""Compare the options of `accelerate launch` with the recipe, which alone decides how anyvla trains."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from anyvla.config import ConfigError
from anyvla.training.config import TrainingConfig

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NO = ("", "no", "false", "0", "none")


def check_accelerate_options(
    config: TrainingConfig,
    device: torch.device,
    precision: torch.dtype,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Raise ConfigError if the configuration of accelerate asks for something that the recipe does not.

    `device` and `precision` are those that the recipe leads to.
    """
    asked = {name.removeprefix("ACCELERATE_"): of.lower() for name, of in environment.items() if _is_asked(name, of)}
    mixed = asked.get("MIXED_PRECISION")
    if mixed is not None and _PRECISIONS.get(mixed) != precision:
        name = str(_PRECISIONS.get(mixed, "")).removeprefix("torch.")
        remedy = f"set --training.precision {name}" if name else "anyvla has no such precision"
        raise _refusal(f"mixed_precision {mixed}", f"{remedy}, or launch with --mixed_precision no")
    if "USE_FSDP" in asked and not config.shard:
        remedy = "set --training.shard true, or leave it out of the configuration (--multi_gpu in place of --use_fsdp)"
        raise _refusal("FSDP", remedy)
    for variable, name in (("USE_DEEPSPEED", "DeepSpeed"), ("USE_MEGATRON_LM", "Megatron-LM")):
        if variable in asked:
            raise _refusal(name, f"anyvla has no {name}: launch with --multi_gpu")
    if "USE_PARALLELISM_CONFIG" in asked:
        raise _refusal("a parallelism_config", "anyvla splits batches only: leave it out")
    if "DYNAMO_BACKEND" in asked and not config.compile:
        raise _refusal(f"dynamo_backend {asked['DYNAMO_BACKEND']}", "set --training.compile true, or leave it out")
    pieces = asked.get("GRADIENT_ACCUMULATION_STEPS", "1")
    if pieces.isdecimal() and int(pieces) > 1 and int(pieces) != config.accumulate:
        raise _refusal(f"gradient_accumulation_steps {pieces}", f"set --training.accumulate {pieces}, or leave it out")
    if "USE_CPU" in asked and device.type != "cpu":
        raise _refusal("the CPU", "set --training.device cpu, or leave out --cpu")


def _is_asked(name: str, value: str) -> bool:
    return name.startswith("ACCELERATE_") and value.lower() not in _NO


def _refusal(asked: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"accelerate's configuration asks for {asked}, and the recipe, which decides, does not: {remedy}"
    )
