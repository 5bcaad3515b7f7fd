"""One MuJoCo scene with several of Meta-World's objects: a button, a drawer and a window, side by side.

Meta-World's own scenes have one object each. The objects, their joints and their meshes are its files, unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# m; each object is placed up to SPREAD from here, in both horizontal directions. Farther apart, the arm would not reach
# the outer ones; closer together, it would hit the window when it opens the drawer.
PLACES = {"button": (-0.4, 0.85, 0.12), "drawer": (-0.13, 0.9, 0.0), "window": (0.23, 0.85, 0.202)}
SPREAD = 0.015
_BODIES = {"button": "box", "drawer": "drawer", "window": "window"}
JOINTS = {"button": "btnbox_joint", "drawer": "goal_slidey", "window": "window_slide"}

_XML = """
<mujoco>
  <compiler meshdir="{scenes}" texturedir="{scenes}"/>
  <include file="{assets}/scene/basic_scene.xml"/>
  <include file="{assets}/objects/assets/buttonbox_dependencies.xml"/>
  <include file="{assets}/objects/assets/drawer_dependencies.xml"/>
  <include file="{assets}/objects/assets/window_dependencies.xml"/>
  <include file="{assets}/objects/assets/xyz_base_dependencies.xml"/>
  <worldbody>
    <include file="{assets}/objects/assets/xyz_base.xml"/>
    <body name="box" euler="-1.57 0 0"><include file="{assets}/objects/assets/buttonbox.xml"/></body>
    <body name="drawer"><include file="{assets}/objects/assets/drawer.xml"/></body>
    <body name="window"><include file="{assets}/objects/assets/window_horiz.xml"/></body>
  </worldbody>
  <actuator>
    <position ctrllimited="true" ctrlrange="-1 1" joint="r_close" kp="400" user="1"/>
    <position ctrllimited="true" ctrlrange="-1 1" joint="l_close" kp="400" user="1"/>
  </actuator>
  <equality><weld body1="mocap" body2="hand" solref="0.02 1"/></equality>
</mujoco>
"""


def make_table() -> Any:
    """Return a simulator of the scene with the interface of Meta-World's environments, without a goal of its own."""
    return _table_class()()


@lru_cache(maxsize=None)
def _table_class() -> Any:
    import mujoco
    from gymnasium.spaces import Box
    from metaworld.asset_path_utils import full_V3_path_for
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    class Table(SawyerXYZEnv):
        def __init__(self) -> None:
            low, high = (-0.5, 0.4, 0.05), (0.5, 1.0, 0.5)
            super().__init__(hand_low=low, hand_high=high)
            self.hand_init_pos = np.array([0.0, 0.6, 0.2])
            self.goal_space = Box(np.array(low), np.array(high), dtype=np.float64)
            places = np.array(list(PLACES.values()))
            spread = np.tile([SPREAD, SPREAD, 0.0], (len(places), 1))
            self._random_reset_space = Box((places - spread).ravel(), (places + spread).ravel(), dtype=np.float64)
            self._target_pos = np.zeros(3)

        @property
        def model_name(self) -> str:
            return str(full_V3_path_for("sawyer_xyz/sawyer_drawer.xml"))  # its folder has the assets

        def _initialize_simulation(self) -> Any:
            scenes = Path(self.model_name).parent
            model = mujoco.MjModel.from_xml_string(_XML.format(scenes=scenes, assets=scenes.parent))
            return model, mujoco.MjData(model)

        @property
        def _target_site_config(self) -> Any:
            return []

        def _get_pos_objects(self) -> Any:
            return np.zeros(3)

        def _get_quat_objects(self) -> Any:
            return np.zeros(4)

        def reset_model(self) -> Any:
            self._reset_hand()
            for body, place in zip(_BODIES.values(), self._get_state_rand_vec().reshape(-1, 3)):
                self.model.body(body).pos = place
            return self._get_obs()

        def evaluate_state(self, obs: Any, action: Any) -> Any:
            return 0.0, {"success": 0.0}

    return Table
