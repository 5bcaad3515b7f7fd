from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small import robot

from anyvla.actions.space import ActionSpace
from anyvla.observing import Proprio


def test_messages_name_the_dims_as_the_data_does() -> None:
    known = robot()
    [group] = known.embodiment.proprio.groups
    named = dataclasses.replace(group, names=("ee_x", "ee_y", "ee_z"))
    arm = dataclasses.replace(known.embodiment, proprio=ActionSpace(groups=(named,)))
    proprio = Proprio(dataclasses.replace(known, embodiment=arm))
    with pytest.raises(ValueError, match=r"group 'position', dim 1 \(ee_y\) is nan"):
        proprio.read(np.array([0, np.nan, 0], np.float32), 0)
