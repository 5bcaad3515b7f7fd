"""Policies that play the toy benchmark."""

from __future__ import annotations

import pytest
import small
import torch
from playing import Obedient
from toy_opened import EMBODIMENT

from anyvla.data.canonical import Robot
from anyvla.policy import VLA


@pytest.fixture
def obedient() -> Obedient:
    torch.manual_seed(0)
    return Obedient(small.model(), [Robot(EMBODIMENT, small.statistics())]).eval()


@pytest.fixture
def policy() -> VLA:
    torch.manual_seed(0)
    config = small.model({"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1})
    return VLA(config, [Robot(EMBODIMENT, small.statistics())]).eval()
