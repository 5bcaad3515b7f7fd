"""CALVIN's simulator for large evaluations: several in a process, with repeatable episodes.

Simulation and rendering use two physics clients. The first one renders nothing. The second one, of which a process has
one, copies the state of the first and renders it. There are two reasons: a policy that executes four actions of a chunk
needs one picture of them, and two EGL renderers in a process silently give wrong pictures.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from anyvla_sim.calvin import installation


class Bullet:
    """A physics client with the interface of the modules pybullet and pybullet_utils.bullet_client.

    Parts of calvin_env name no client and so use the first one of a process: the base of a second simulator's robot
    would be in the first simulator, and its renderer plugin would be loaded there.
    """

    def __init__(self, options: str = "") -> None:
        """`options` go to `pybullet.connect`, such as "--width=200 --height=200" for EGL."""
        import pybullet

        self._pybullet = pybullet
        self._client = pybullet.connect(pybullet.DIRECT, options=options)

    def connect(self, *arguments: Any, **options: Any) -> int:
        """Return the client, which is already connected."""
        return self._client

    def BulletClient(self, connection_mode: int) -> Bullet:  # pybullet's name
        """Return the client, which is already connected."""
        return self

    def disconnect(self, **options: Any) -> None:
        """Free the client, once."""
        if self._client >= 0:
            self._pybullet.disconnect(physicsClientId=self._client)
            self._client = -1

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._pybullet, name)
        return functools.partial(attribute, physicsClientId=self._client) if inspect.isbuiltin(attribute) else attribute


def make_play_table(root: Path, bullet: Bullet, cameras: str, egl: bool) -> Any:
    """Make a `PlayTableSimEnv` in a physics client."""
    from hydra.utils import instantiate

    modules = installation.import_simulator(root)
    vars(modules["env"]).update(p=bullet, bc=bullet)
    vars(modules["robot"]).update(p=bullet)
    config = installation.load_environment_config(root, cameras)
    return instantiate(config, show_gui=False, use_vr=False, use_scene_info=True, use_egl=egl)


class World:
    """The simulation of the table and the robot."""

    def __init__(self, root: Path) -> None:
        """`root` is the checkout of CALVIN."""
        self.bullet = Bullet()
        self.env = make_play_table(root, self.bullet, "no_cameras", egl=False)
        # CALVIN asks for a fixed order of pairs, but loses the setting when it loads the scene.
        self.bullet.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        for height, block in enumerate(self.env.scene.movable_objects, 5):
            self.bullet.resetBasePositionAndOrientation(block.uid, (0, 0, height), (0, 0, 0, 1))
        self._fresh = self.bullet.saveState()

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        """Set the states of robot (15,) and scene (24,), independent of the episode before.

        The scene has doors (2), button, switch, lights (2) and poses of the blocks (3 x 6). CALVIN's own reset keeps
        the contacts of the last episode, its last gripper command and its button.
        """
        self.bullet.restoreState(self._fresh)
        self.bullet.stepSimulation()  # without contacts, which clears the old ones
        self.bullet.restoreState(self._fresh)
        self.env.robot.gripper_action = 1
        for button in self.env.scene.buttons:
            button.prev_is_pressed = False
        self.env.reset(robot_obs=robot_obs, scene_obs=scene_obs)

    def step(self, action: np.ndarray) -> Mapping[str, Any]:
        """Execute an action (7,) with a gripper of -1 or 1. Return `info`."""
        return self.env.step(action)[3]

    def info(self) -> Mapping[str, Any]:
        """Return the state that CALVIN's task oracle compares."""
        return self.env.get_info()

    def robot_obs(self) -> np.ndarray:
        """Return tool position (3), Euler angles (3), gripper width, joints (7), gripper command: (15,) float64."""
        return self.env.get_state_obs()["robot_obs"]

    def close(self) -> None:
        """Free the client."""
        self.bullet.disconnect()


class _GripperCameraClient:
    """pybullet for the gripper's camera: the pose is that of a world's arm, the image that of the screen.

    After a step, bullet reports the position of a link 1/240 s before; after a state is set, the current one.
    """

    def __init__(self, world: Bullet, screen: Bullet) -> None:
        self._world, self._screen = world, screen

    def getLinkState(self, physicsClientId: int, **which: int) -> Any:  # pybullet's name
        """Return the state of a link in the world, whichever client is named."""
        return self._world.getLinkState(**which)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)


class Screen:
    """The renderer of all worlds of a process."""

    def __init__(self, root: Path, egl: bool) -> None:
        """Render with EGL, or else with bullet's own TinyRenderer on the CPU."""
        self._bullet = Bullet("--width=200 --height=200")
        self._env = make_play_table(root, self._bullet, "static_and_gripper", egl)
        self._camera_module = installation.import_simulator(root)["gripper_camera"]
        self._cameras = {camera.name: camera for camera in self._env.cameras}
        for _ in range(2):  # EGL's first two pictures lack the shadows of all that follow
            self._cameras["static"].render()

    def show(self, world: World) -> None:
        """Copy the pose of everything."""
        there, here = world.bullet, self._bullet
        vars(self._camera_module)["p"] = _GripperCameraClient(there, here)
        for body in range(there.getNumBodies()):
            joints = range(there.getNumJoints(body))
            for joint, state in enumerate(there.getJointStates(body, joints) if joints else ()):
                here.resetJointState(body, joint, state[0])
        for block in world.env.scene.movable_objects:
            here.resetBasePositionAndOrientation(block.uid, *there.getBasePositionAndOrientation(block.uid))
        for light, its in zip(self._env.scene.lights, world.env.scene.lights):
            if light.get_state() != its.get_state():
                light.reset(its.get_state())

    def draw_cameras(self) -> dict[str, np.ndarray]:
        """Return the image of each camera of the robot, uint8 (H, W, 3)."""
        return {name: np.ascontiguousarray(camera.render()[0], np.uint8) for name, camera in self._cameras.items()}

    def draw_static(self, height: int, width: int) -> np.ndarray:
        """Return the image of the static camera in another size, uint8 (height, width, 3)."""
        camera = self._cameras["static"]
        projection = self._bullet.computeProjectionMatrixFOV(camera.fov, width / height, camera.nearval, camera.farval)
        seen = self._bullet.getCameraImage(width, height, camera.viewMatrix, projection)
        return np.ascontiguousarray(np.reshape(seen[2], (height, width, 4))[:, :, :3], np.uint8)

    def close(self) -> None:
        """Free the client."""
        self._bullet.disconnect()
