from __future__ import annotations

from typing import Any

import pytest
import torch

from anyvla.config import ConfigError
from anyvla.training.half import check_trained_weights
from anyvla.training.loop import pick_precision
from tests import small

FROZEN = {"vision": False, "projector": False, "language": False, "embeddings": False}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, "vision, projector, language, embeddings"),
        ({"train": {"vision": False, "embeddings": False}}, "projector, language"),
        ({"lora": {"rank": 2}}, "vision, projector"),
        ({"train": FROZEN | {"projector": True}, "lora": {"rank": 2}}, "projector"),
    ],
)
def test_weights_in_bfloat16_are_not_trained(options: dict[str, Any], parts: str) -> None:
    if "lora" in options:
        pytest.importorskip("peft")
    vla = small.policy(backbone=small.NANO | {"dtype": "bfloat16"} | options)
    with pytest.raises(ConfigError) as caught:
        check_trained_weights(vla)
    told = str(caught.value)
    assert f"would be trained ({parts}) are kept in bfloat16" in told
    assert "--model.backbone.dtype float32" in told
    assert all(f"--model.backbone.train.{part} false" in told for part in parts.split(", "))


@pytest.mark.parametrize("options", [{"train": FROZEN}, {"train": FROZEN, "lora": {"rank": 2}}])
def test_frozen_weights_may_be_in_bfloat16(options: dict[str, Any]) -> None:
    if "lora" in options:
        pytest.importorskip("peft")
    vla = small.policy(backbone=small.NANO | {"dtype": "bfloat16"} | options)
    check_trained_weights(vla)
    assert any(p.requires_grad for p in vla.parameters())


def test_any_half_of_the_policy_is_named() -> None:
    vla = small.policy().to(torch.float16)
    with pytest.raises(ConfigError, match="are kept in float16"):
        check_trained_weights(vla)


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bfloat16_does_not_count(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    wanted = torch.bfloat16 if native else torch.float32
    assert pick_precision("auto", torch.device("cuda")) == wanted
