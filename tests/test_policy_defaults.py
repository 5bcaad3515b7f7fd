"""The defaults of a policy, written out: an experiment without options uses these."""

from __future__ import annotations

from typing import Any

import pytest

from anyvla.config import build, to_dict
from anyvla.policy import VLAConfig
from anyvla.registry import REGISTRIES
from tests.small import model

SMALL_DIT = {"width": 256, "layers": 4, "heads": 4}
PARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("histories", "none"): {},
    ("histories", "policy_head"): {"window": 8},  # the backbone study of RoboVLMs
    ("histories", "interleaved"): {"window": 8, "past": "hidden", "cache": True},
    ("histories", "recurrent"): {"steps": 128, "at_once": None},
    ("fusers", "identity"): {},
    ("fusers", "mlp"): {"widths": [1024, 1024]},
    ("fusers", "lstm"): {"hidden": 1024, "layers": 4},  # RoboVLMs' policy heads
    ("fusers", "gpt"): {"width": 1024, "layers": 8, "heads": 8},
    ("fusers", "mingru"): {"width": 1024, "layers": 4, "longest": 256},
    ("decoders", "regression"): {
        "loss": "l1",  # OpenVLA-OFT
        "hidden": [1024, 512, 256],  # RoboVLMs
        "layers": 2,
        "gripper_mlp": False,
        "gripper": "regression",
        "gripper_weight": 1.0,
    },
    ("decoders", "flow"): SMALL_DIT | {"time": "beta", "samples": 4, "steps": 10, "method": "euler"},  # pi0's times
    ("decoders", "diffusion"): SMALL_DIT
    | {"prediction": "sample", "train_steps": 100, "samples": 4, "sampler": "dpm", "steps": 10},
    ("decoders", "tokens"): {"width": 512, "layers": 4, "heads": 8, "temperature": 0.0},
    ("decoders", "lm_tokens"): {"decoding": "autoregressive", "ids": "end", "temperature": 0.0},  # OpenVLA
    ("decoders", "expert"): {  # pi0
        "width": 1024,
        "mlp": 4096,
        "layers": None,
        "heads": None,
        "time": "beta",
        "samples": 1,
        "steps": 10,
        "method": "euler",
        "tokens": {"decoding": "autoregressive", "ids": "end", "temperature": 0.0},
        "token_weight": 1.0,
    },
}


@pytest.mark.parametrize(("registry", "name"), PARTS)
def test_the_defaults_of_a_part(registry: str, name: str) -> None:
    part = REGISTRIES[registry][name]
    assert to_dict(build(part.Config, {})) == PARTS[registry, name]


def test_every_part_is_listed() -> None:
    for registry in ("histories", "fusers", "decoders"):
        assert {name for kind, name in PARTS if kind == registry} == set(REGISTRIES[registry])


def test_the_defaults_of_the_policy_itself() -> None:
    named = {key: to_dict(model())[key] for key in ("backbone", "history", "fuser", "decoder")}
    config = to_dict(build(VLAConfig, named))
    assert {key: value for key, value in config.items() if key not in named} == {
        "representation": {"name": "continuous"},
        "readouts": 1,
        "chunk": 10,
        "execute": 1,
        "proprio": "fuser",
        "normalization": {"action": "quantile", "proprio": "meanstd"},
        "view": {"size": None, "crop": None} | config["view"],  # tested beside the views
        "implausible": "error",
    }


@pytest.mark.parametrize(
    ("registry", "name", "kind"),
    [
        ("backbones", "auto", "AutoBackbone"),
        ("backbones", "nano", "NanoBackbone"),
        ("histories", "none", "SingleStep"),
        ("histories", "policy_head", "SeparateSteps"),
        ("histories", "interleaved", "Interleaved"),
        ("histories", "recurrent", "Recurrent"),
        ("fusers", "identity", "IdentityFuser"),
        ("fusers", "mlp", "MLPFuser"),
        ("fusers", "lstm", "LSTMFuser"),
        ("fusers", "gpt", "GPTFuser"),
        ("fusers", "mingru", "MinGRUFuser"),
        ("representations", "bins", "BinsCodec"),
        ("representations", "fast", "FastCodec"),
        ("representations", "vq", "VQCodec"),
        ("decoders", "flow", "FlowDecoder"),
        ("decoders", "diffusion", "DiffusionDecoder"),
        ("decoders", "tokens", "TokensDecoder"),
        ("decoders", "lm_tokens", "LMTokensDecoder"),
    ],
)
def test_a_name_gives_the_part_of_that_name(registry: str, name: str, kind: str) -> None:
    assert REGISTRIES[registry][name].__name__ == kind
