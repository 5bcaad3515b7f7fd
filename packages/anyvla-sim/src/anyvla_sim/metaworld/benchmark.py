"""The benchmark `metaworld`: stock tasks, held-out tasks, and tasks that only the instruction tells apart.

It has two settings. `fast` is for training and comparisons within anyvla: views cropped to the table, two control
steps per action, no shadows. `native` is the published one: the camera `corner2` at lerobot's position, 480 pixels, one
control step per action. To a policy they are different robots, and their results are not compared. The setting
`robot: side-arm` is a third one (`side_arm.py`).
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import Any, Mapping, Sequence

from anyvla_sim.base import Suite
from anyvla_sim.factors import DISTURBANCES
from anyvla_sim.metaworld import side_arm
from anyvla_sim.metaworld.chain_tasks import LONGEST
from anyvla_sim.metaworld.chains import ChainEnvironment
from anyvla_sim.metaworld.environment import Host, MetaWorldEnvironment, SideArmEnvironment, import_metaworld
from anyvla_sim.metaworld.factors import FACTORS
from anyvla_sim.metaworld.recall_environment import RecallEnvironment
from anyvla_sim.metaworld.suites import NAMES, SceneConfig, make_suite
from anyvla_sim.names import check_name
from anyvla_sim.rendering import Renderer, View, choose_render_setting, find_driver

CONTROL_HZ = 80
STOCK = "sawyer"

_WRIST = View("gripperPOV", (0.1, 0.9, 0.1, 0.9), 96, 96)
VIEWS = {  # of `half-open`
    "corner": View("corner2", (0.38, 0.78, 0.28, 0.68), 96, 96, turned=True, oversample=2),
    "wrist": _WRIST,
}
# For the stock tasks. Goals float above the table, so locating them takes two views. One of them follows the hand from
# behind, since the arm hides goals from a camera that looks down on the table.
WIDE_VIEWS = {
    "corner": View("corner2", (0.3, 0.8, 0.25, 0.75), 96, 96, turned=True, oversample=2),
    "behind": View("behindGripper", (0.1, 0.9, 0.1, 0.9), 96, 96, oversample=2),
    "wrist": _WRIST,
}
CHAIN_VIEWS = {  # of `chains`, whose objects are spread over a meter
    **VIEWS,
    "corner": View("corner2", (0.34, 0.82, 0.27, 0.75), 96, 96, turned=True, oversample=2),
}
RECALL_VIEWS = {"corner": replace(VIEWS["corner"], height=48, width=48)}  # its balls are large
NATIVE_VIEWS = {"corner2": View("corner2", (0.0, 1.0, 0.0, 1.0), 480, 480, turned=True)}


class MetaWorld(Host):
    """The benchmark `metaworld`. Its environments share renderers, as uploading meshes and textures is expensive."""

    name = "metaworld"
    factors = FACTORS
    disturbances = DISTURBANCES

    def __init__(self, render: str | None = None, robot: str = STOCK, chain: int = LONGEST) -> None:
        """`render` is "fast" or "native", by default $ANYVLA_RENDER, else fast; `robot` is "sawyer" or "side-arm".

        `chain` is the number of tasks of each chain in the suite `chains`. Raises NotInstalled without Meta-World,
        ValueError for another setting.
        """
        check_name(robot, (STOCK, side_arm.NAME), "metaworld has no robot")
        self.render, self.robot = choose_render_setting(render), robot
        if robot != STOCK and self.render == "native":
            raise ValueError(f"the published setting, render native, has the robot {STOCK} only")
        # of a robot beside the stock one, so that older results and demonstrations are described as before
        self._of_robot = {} if robot == STOCK else {"robot": robot}
        if not 1 <= chain <= LONGEST:
            raise ValueError(f"chain: a chain of metaworld/chains has 1 to {LONGEST} tasks, not {chain}")
        self.chain = chain
        of_chain = {} if chain == LONGEST else {"chain": chain}
        self.settings: Mapping[str, Any] = {"render": self.render, **self._of_robot, **of_chain}
        # control steps per action
        self.repeat = 1 if self.render == "native" else 2 if robot == STOCK else side_arm.REPEAT
        self._renderers: dict[SceneConfig, Renderer] = {}
        import_metaworld()

    def suites(self) -> Sequence[str]:
        return NAMES if self.robot == STOCK else [name for name in NAMES if name not in ("chains", "recall")]

    def suite(self, name: str) -> Suite:
        check_name(name, self.suites(), f"metaworld with the robot {self.robot} has no suite")
        return make_suite(name, self.repeat, self.chain)

    def views(self, suite: str) -> Mapping[str, View]:
        """Return the view of each camera of a suite."""
        if self.render == "native":
            return NATIVE_VIEWS
        if self.robot != STOCK:
            return side_arm.VIEWS
        return {"half-open": VIEWS, "chains": CHAIN_VIEWS, "recall": RECALL_VIEWS}.get(suite, WIDE_VIEWS)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """Return the Sawyer arm, with a name for each of the five sets of cameras, or the side arm."""
        views = self.views(suite)
        name = "-table" if views == CHAIN_VIEWS else {1: f"-{next(iter(views))}", 2: "", 3: "-3"}[len(views)]
        position = {"name": "position", "size": 3, "kind": "position"}
        motion = {**position, "mode": "delta", "unit": "cm per control step"}
        gripper = {"name": "gripper", "size": 1, "kind": "gripper", "high": 1}
        stock = {
            "name": f"sawyer-metaworld{name}",
            "cameras": list(views),
            "control_hz": CONTROL_HZ / self.repeat,
            "proprio": {"groups": [{**position, "unit": "m"}, {**gripper, "low": 0, "open": 1}]},
            "action": {"groups": [motion, {**gripper, "low": -1, "open": -1}]},
        }
        return stock if self.robot == STOCK else side_arm.make_embodiment(stock)

    def make(self, suite: str) -> MetaWorldEnvironment:
        self.suite(suite)
        if suite == "chains":
            return ChainEnvironment(self, suite)
        if suite == "recall":
            return RecallEnvironment(self, suite)
        return (MetaWorldEnvironment if self.robot == STOCK else SideArmEnvironment)(self, suite)

    def renderer(self, scene: SceneConfig, model: Any) -> Renderer:
        """Return the renderer of a scene, which is made at the first call."""
        if scene not in self._renderers:
            self._renderers[scene] = Renderer(model, self.render)
        return self._renderers[scene]

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def versions(self) -> dict[str, str]:
        return {**{name: metadata.version(name) for name in ("metaworld", "mujoco", "numpy")}, "gl": find_driver()}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        cameras = {name: [view.height, view.width] for name, view in self.views(suite).items()}
        return {
            "render": self.render,
            "cameras": cameras,
            "control_steps_per_action": self.repeat,
            **self._of_robot,
            **({"chain": self.chain} if suite == "chains" else {}),
        }
