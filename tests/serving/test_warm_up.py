from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla.serving.warm_up import make_observation
from tests import small


def test_the_observation_is_plausible_for_each_robot_of_a_policy() -> None:
    """The second robot's proprio is far from the first one's, so the middle of the first would be refused."""
    far = {key: [100.0 if key == "q01" or key == "min" else 104.0] * 3 for key in ("q01", "q99", "min", "max")}
    statistics = dataclasses.replace(small.statistics(), proprio={**far, "mean": [102.0] * 3, "std": [1.0] * 3})
    robots = [small.robot(), Robot(dataclasses.replace(small.embodiment(), name="far"), statistics)]
    torch.manual_seed(0)
    vla = VLA(small.model(view={"size": [24, 16]}), robots).eval()
    for name, middle in (("small", 0.0), ("far", 102.0)):
        observation = make_observation(vla, name)
        assert observation.proprio.tolist() == pytest.approx([middle] * 3)
        assert {image.shape for image in observation.images.values()} == {(24, 16, 3)}
        vla.act([observation], [vla.start("go", robot=name)])


def test_proprio_without_a_recorded_range_is_zero() -> None:
    statistics = dataclasses.replace(small.statistics(), proprio={"mean": [5.0] * 3, "std": [1.0] * 3})
    torch.manual_seed(0)
    model = small.model(normalization={"proprio": "meanstd"})
    observation = make_observation(VLA(model, [Robot(small.embodiment(), statistics)]), "small")
    assert np.array_equal(observation.proprio, np.zeros(3, np.float32))
    assert observation.images["corner"].shape == (224, 224, 3)
