"""Policies that play the toy benchmark."""

from __future__ import annotations

import pytest
import torch

from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from tests import small
from tests.evaluation.playing import Obedient
from tests.evaluation.toy_opened import EMBODIMENT


@pytest.fixture
def obedient() -> Obedient:
    torch.manual_seed(0)
    return Obedient(small.model(), [Robot(EMBODIMENT, small.statistics())]).eval()


@pytest.fixture
def policy() -> VLA:
    torch.manual_seed(0)
    config = small.model({"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1})
    return VLA(config, [Robot(EMBODIMENT, small.statistics())]).eval()
