"""CALVIN's simulator with what an evaluation by the thousand needs: several in a process, and repeatable episodes.

Simulating and drawing are two physics clients. The first draws nothing; the second, of which a process has one, takes
over the first one's state and draws it. Two reasons: a policy that executes four actions of a chunk wants one picture
of them, and the EGL renderer gives wrong pictures, without a word, as soon as a process has two of them.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from anyvla_sim.calvin import install as calvin_install


class Bullet:
    """A physics client that its simulator takes for the module pybullet, and for pybullet_utils.bullet_client.

    Parts of calvin_env name no client, and so address the first one of a process: a second simulator's robot would
    stand on a base in the first, and its renderer plugin would be loaded there.
    """

    def __init__(self, options: str = "") -> None:
        """`options`: as `pybullet.connect` takes them, "--width=200 --height=200" for what EGL draws."""
        import pybullet

        self._pybullet = pybullet
        self._client = pybullet.connect(pybullet.DIRECT, options=options)

    def connect(self, *arguments: Any, **options: Any) -> int:
        """The client, which is connected."""
        return self._client

    def BulletClient(self, connection_mode: int) -> Bullet:  # the name they call it by
        """The client, which is connected."""
        return self

    def disconnect(self, **options: Any) -> None:
        """Free it; more than once does no harm."""
        if self._client >= 0:
            self._pybullet.disconnect(physicsClientId=self._client)
            self._client = -1

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._pybullet, name)
        return functools.partial(attribute, physicsClientId=self._client) if inspect.isbuiltin(attribute) else attribute


def play_table(root: Path, bullet: Bullet, cameras: str, egl: bool) -> Any:
    """A `PlayTableSimEnv` in that client."""
    from hydra.utils import instantiate

    modules = calvin_install.simulator(root)
    vars(modules["env"]).update(p=bullet, bc=bullet)
    vars(modules["robot"]).update(p=bullet)
    config = calvin_install.environment_config(root, cameras)
    return instantiate(config, show_gui=False, use_vr=False, use_scene_info=True, use_egl=egl)


class World:
    """The table and the robot, simulated."""

    def __init__(self, root: Path) -> None:
        """`root`: of the checkout."""
        self.bullet = Bullet()
        self.env = play_table(root, self.bullet, "no_cameras", egl=False)
        # CALVIN wants pairs in the same order always, but loses the setting when it loads the scene
        self.bullet.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        for height, block in enumerate(self.env.scene.movable_objects, 5):
            self.bullet.resetBasePositionAndOrientation(block.uid, (0, 0, height), (0, 0, 0, 1))
        self._fresh = self.bullet.saveState()

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        """Put robot (15,) and scene (24,) there, with no memory of what was simulated before.

        CALVIN's own reset lets the contacts of the last episode, its last gripper command and its button live on.
        """
        self.bullet.restoreState(self._fresh)
        self.bullet.stepSimulation()  # nothing touches anything here: the old contacts are gone
        self.bullet.restoreState(self._fresh)
        self.env.robot.gripper_action = 1
        for button in self.env.scene.buttons:
            button.prev_is_pressed = False
        self.env.reset(robot_obs=robot_obs, scene_obs=scene_obs)

    def step(self, action: np.ndarray) -> Mapping[str, Any]:
        """Act, (7,) with a gripper of -1 or 1. Returns `info`."""
        info: Mapping[str, Any] = self.env.step(action)[3]
        return info

    def info(self) -> Mapping[str, Any]:
        """What CALVIN's task oracle compares."""
        info: Mapping[str, Any] = self.env.get_info()
        return info

    def robot_obs(self) -> np.ndarray:
        """Tool position (3), Euler angles (3), gripper width, joints (7), gripper command: (15,) float64."""
        state: np.ndarray = self.env.get_state_obs()["robot_obs"]
        return state

    def scene_obs(self) -> np.ndarray:
        """Doors (2), button, switch, lights (2), poses of the blocks (3 x 6): (24,) float64."""
        state: np.ndarray = self.env.get_state_obs()["scene_obs"]
        return state

    def close(self) -> None:
        """Free the client."""
        self.bullet.disconnect()


class _Eye:
    """What the gripper's camera takes for pybullet: it looks from the arm of a world, and draws on the screen.

    After a step, bullet reports where a link was before its last 1/240 s; a link that was put there, where it is.
    """

    def __init__(self, world: Bullet, screen: Bullet) -> None:
        self._world, self._screen = world, screen

    def getLinkState(self, physicsClientId: int, **which: int) -> Any:  # as pybullet has it
        """Of the world, whichever client is named."""
        return self._world.getLinkState(**which)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)


class Screen:
    """What draws the worlds of a process."""

    def __init__(self, root: Path, egl: bool) -> None:
        """`egl`: with EGL, else with bullet's own TinyRenderer on the CPU."""
        self._bullet = Bullet("--width=200 --height=200")
        self._env = play_table(root, self._bullet, "static_and_gripper", egl)
        self._camera_module = calvin_install.simulator(root)["gripper_camera"]
        self._cameras = {camera.name: camera for camera in self._env.cameras}
        for _ in range(2):  # EGL's first two pictures lack the shadows of all that follow
            self._cameras["static"].render()

    def show(self, world: World) -> None:
        """Take over the pose of everything."""
        there, here = world.bullet, self._bullet
        vars(self._camera_module)["p"] = _Eye(there, here)
        for body in range(there.getNumBodies()):
            joints = range(there.getNumJoints(body))
            for joint, state in enumerate(there.getJointStates(body, joints) if joints else ()):
                here.resetJointState(body, joint, state[0])
        for block in world.env.scene.movable_objects:
            here.resetBasePositionAndOrientation(block.uid, *there.getBasePositionAndOrientation(block.uid))
        for light, its in zip(self._env.scene.lights, world.env.scene.lights):
            if light.get_state() != its.get_state():
                light.reset(its.get_state())

    def pictures(self) -> dict[str, np.ndarray]:
        """What the robot's cameras see, uint8 (H, W, 3)."""
        return {name: np.ascontiguousarray(camera.render()[0], np.uint8) for name, camera in self._cameras.items()}

    def picture(self, height: int, width: int) -> np.ndarray:
        """The view of the static camera in another size, uint8 (height, width, 3)."""
        camera = self._cameras["static"]
        projection = self._bullet.computeProjectionMatrixFOV(camera.fov, width / height, camera.nearval, camera.farval)
        seen = self._bullet.getCameraImage(width, height, camera.viewMatrix, projection)
        return np.ascontiguousarray(np.reshape(seen[2], (height, width, 4))[:, :, :3], np.uint8)

    def close(self) -> None:
        """Free the client."""
        self._bullet.disconnect()
