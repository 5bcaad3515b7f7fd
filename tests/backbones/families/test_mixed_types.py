"""Frozen weights in bfloat16 beside trained ones in float32: every family computes a loss and gradients with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.training.checks import train_in_float32
from tests import small
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.backbones.families.registered import REGISTERED


def options(name: str, folder: Path) -> dict[str, Any]:
    if name in REGISTERED:
        return {"name": name, **REGISTERED[name](folder)}
    write_family(FAMILIES[name], folder)
    return {"name": "auto", "path": str(folder), "prompt": "do {instruction}", **FAMILIES[name].options}


@pytest.mark.parametrize(
    ("family", "frozen"),
    [
        ("smolvlm", "vision"),
        ("smolvlm", "embeddings"),
        ("gemma4_unified", "vision"),
        ("internvl", "projector"),
        ("nano", "language"),
        ("flamingo", "language"),
        ("flamingo", "projector"),
    ],
)
def test_a_frozen_part_in_bfloat16_trains_with_the_others(tmp_path: Path, family: str, frozen: str) -> None:
    backbone = {**options(family, tmp_path), "dtype": "bfloat16", "train": {frozen: False}}
    vla = small.policy(backbone=backbone)
    train_in_float32(vla, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = vla.loss(small.batch(2, 1))
    loss.total.backward()
    trained = [p for p in vla.backbone.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in vla.backbone.parameters() if not p.requires_grad}
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained)
