"""Replacements of the parts of pybullet, hydra and CALVIN's simulator that anyvla uses, without physics."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anyvla_sim.calvin import installation
from anyvla_sim.calvin import world as calvin_world

BODIES = {0: 3, 1: 2, 2: 0, 3: 0, 4: 0}  # body -> joints: the robot, the table, three blocks
BLOCKS = (2, 3, 4)
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
QUARTERS = [RED, GREEN, BLUE, YELLOW]  # top left, top right, bottom left, bottom right


def flag(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return a picture of four quarters; a fourth channel is 255."""
    image = np.full((height, width, channels), 255, np.uint8)
    image[: height // 2, : width // 2, :3], image[: height // 2, width // 2 :, :3] = RED, GREEN
    image[height // 2 :, : width // 2, :3], image[height // 2 :, width // 2 :, :3] = BLUE, YELLOW
    return image


def quarters(image: np.ndarray) -> list[tuple[int, ...]]:
    """Return the colors near the corners."""
    return [tuple(image[row, column].tolist()) for row in (1, -1) for column in (1, -1)]


class Client:
    """The state of one physics client."""

    def __init__(self, options: str) -> None:
        self.options = options
        self.parameters: dict[str, Any] = {}
        self.joints = {(body, joint): 0.0 for body, joints in BODIES.items() for joint in range(joints)}
        self.poses = dict.fromkeys(BLOCKS, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
        self.touching = False  # a saved state has no contacts; a step clears them where the blocks are far
        self.saved: list[Any] = []


class Pybullet(types.ModuleType):
    """The functions of pybullet that anyvla calls; each takes its client as `physicsClientId`."""

    DIRECT = 2

    def __init__(self) -> None:
        super().__init__("pybullet")
        self.clients: list[Client | None] = []
        self.asked: list[Any] = []

    def connect(self, mode: int, options: str = "") -> int:
        assert mode == self.DIRECT
        self.clients.append(Client(options))
        return len(self.clients) - 1

    def disconnect(self, physicsClientId: int) -> None:
        assert self.clients[physicsClientId] is not None
        self.clients[physicsClientId] = None

    def setPhysicsEngineParameter(self, physicsClientId: int, **parameters: Any) -> None:
        self.clients[physicsClientId].parameters.update(parameters)

    def getNumBodies(self, physicsClientId: int) -> int:
        return len(BODIES)

    def getNumJoints(self, body: int, physicsClientId: int) -> int:
        return BODIES[body]

    def getJointStates(self, body: int, joints: Any, physicsClientId: int) -> list[Any]:
        return [(self.clients[physicsClientId].joints[body, joint], 7.0) for joint in joints]  # position, velocity

    def resetJointState(self, body: int, joint: int, position: float, physicsClientId: int) -> None:
        self.clients[physicsClientId].joints[body, joint] = position

    def getBasePositionAndOrientation(self, body: int, physicsClientId: int) -> Any:
        return self.clients[physicsClientId].poses[body]

    def resetBasePositionAndOrientation(self, body: int, place: Any, turn: Any, physicsClientId: int) -> None:
        self.clients[physicsClientId].poses[body] = (tuple(place), tuple(turn))

    def getLinkState(self, physicsClientId: int, bodyUniqueId: int = 0, linkIndex: int = 0) -> Any:
        return (self.clients[physicsClientId].joints[bodyUniqueId, linkIndex],)

    def saveState(self, physicsClientId: int) -> int:
        client = self.clients[physicsClientId]
        client.saved.append(copy.deepcopy((client.joints, client.poses)))
        return len(client.saved) - 1

    def restoreState(self, state: int, physicsClientId: int) -> None:
        client = self.clients[physicsClientId]
        client.joints, client.poses = copy.deepcopy(client.saved[state])

    def stepSimulation(self, physicsClientId: int) -> None:
        client = self.clients[physicsClientId]
        client.touching = client.touching and any(place[2] < 4 for place, _ in client.poses.values())
        client.joints = {key: value + 0.001 for key, value in client.joints.items()}  # things fall

    def computeProjectionMatrixFOV(self, *arguments: float, physicsClientId: int) -> Any:
        return ("projection", *arguments)

    def getCameraImage(self, width: int, height: int, view: Any, projection: Any, physicsClientId: int) -> Any:
        self.asked.append((physicsClientId, width, height, view, projection))
        return width, height, flag(height, width, 4).ravel().tolist()


class Light:
    def __init__(self) -> None:
        self.state = 0

    def get_state(self) -> int:
        return self.state

    def reset(self, state: int) -> None:
        self.state = state


class Camera:
    """Draws a flag. The gripper's camera puts the position of the robot's first link into its first pixel."""

    fov, nearval, farval, viewMatrix = 10, 0.01, 10, "from above"

    def __init__(self, name: str, module: Any, client: int) -> None:
        self.name, self.module, self.client, self.drawn = name, module, client, 0

    def render(self) -> Any:
        self.drawn += 1
        size = {"static": 200, "gripper": 84}[self.name]
        rgb, depth = flag(size, size), np.zeros((size, size))
        if self.name == "gripper":
            rgb[0, 0, 0] = int(self.module.p.getLinkState(bodyUniqueId=0, linkIndex=0, physicsClientId=self.client)[0])
        return rgb, depth


class PlayTable:
    """CALVIN's PlayTableSimEnv."""

    def __init__(self, modules: Any, options: dict[str, Any], cameras: str) -> None:
        self.p, self.options = modules["env"].p, options
        self.client = modules["env"].bc.BulletClient(connection_mode=2).connect(2)
        names = [] if cameras == "no_cameras" else ["static", "gripper"]
        self.cameras = [Camera(name, modules["gripper_camera"], self.client) for name in names]
        self.robot = SimpleNamespace(gripper_action=-1)
        self.scene = SimpleNamespace(
            movable_objects=[SimpleNamespace(uid=block) for block in BLOCKS],
            buttons=[SimpleNamespace(prev_is_pressed=True)],
            lights=[Light(), Light()],
        )
        self.found: dict[str, Any] = {}  # at the last reset

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        client = sys.modules["pybullet"].clients[self.client]  # type: ignore[attr-defined]
        self.found = {
            "robot_obs": robot_obs,
            "scene_obs": scene_obs,
            "gripper_action": self.robot.gripper_action,
            "pressed": self.scene.buttons[0].prev_is_pressed,
            "joints": dict(client.joints),
            "touching": client.touching,
        }

    def get_state_obs(self) -> dict[str, np.ndarray]:
        return {"robot_obs": np.arange(15.0), "scene_obs": np.arange(100.0, 124.0)}

    def get_info(self) -> dict[str, Any]:
        return {"scene_info": "now"}

    def step(self, action: np.ndarray) -> Any:
        return {}, 0.0, False, {"scene_info": action.tolist()}


def install(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the modules that the adapter imports. Return them, with a record of the calls to hydra."""
    pybullet = Pybullet()
    modules = {name: types.ModuleType(name) for name in ("env", "robot", "gripper_camera")}
    found = SimpleNamespace(pybullet=pybullet, modules=modules, composed=[], folders=[])
    hydra, utils = types.ModuleType("hydra"), types.ModuleType("hydra.utils")

    class Folder:
        def __init__(self, folder: str) -> None:
            found.folders.append(Path(folder))

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    def compose(name: str, overrides: list[str]) -> Any:
        found.composed.append((name, overrides))
        return SimpleNamespace(env=overrides[0].split("=")[1])

    vars(hydra).update(compose=compose, initialize_config_dir=Folder)
    vars(utils).update(instantiate=lambda cameras, **options: PlayTable(modules, options, cameras))
    for module in (pybullet, hydra, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(installation, "import_simulator", lambda root: modules)
    # pybullet's functions are built-in, those of the replacement are methods.
    monkeypatch.setattr(calvin_world, "inspect", SimpleNamespace(isbuiltin=callable))
    return found
