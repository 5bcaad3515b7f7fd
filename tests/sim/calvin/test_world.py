"""CALVIN's world and screen with replacements of pybullet and the simulator."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from anyvla_sim.calvin import installation
from anyvla_sim.calvin.world import Bullet, Screen, World
from tests.sim.calvin import fakes as calvin_fakes
from tests.sim.calvin.fakes import BLOCKS, QUARTERS, quarters

ROOT = Path("/checkout")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return calvin_fakes.install(monkeypatch)


def test_the_scene_is_room_d_with_the_arm_of_the_data_sets(fakes: SimpleNamespace) -> None:
    """ABC->D and ABCD->D are both played in D; the data sets were recorded with the longer fingers."""
    installation.load_environment_config(ROOT, "static_and_gripper")
    ((name, overrides),) = fakes.composed
    assert name == "config_data_collection"
    assert {"cameras=static_and_gripper", "scene=calvin_scene_D", "robot=panda_longer_finger"} < set(overrides)
    assert fakes.folders == [ROOT / "calvin_env" / "conf"]


def test_each_world_has_its_own_client_and_renders_nothing(fakes: SimpleNamespace) -> None:
    worlds = [World(ROOT), World(ROOT)]
    assert [world.env.client for world in worlds] == [0, 1]
    assert worlds[0].env.options == {"show_gui": False, "use_vr": False, "use_scene_info": True, "use_egl": False}
    assert worlds[0].env.cameras == []
    assert fakes.modules["robot"].p is worlds[1].bullet  # the module calls the client of the newest world
    assert fakes.pybullet.clients[0].parameters == {"deterministicOverlappingPairs": 1}
    worlds[0].bullet.resetJointState(0, 1, 5.0)
    assert [client.joints[0, 1] for client in fakes.pybullet.clients] == [5.0, 0.0]
    worlds[0].close()
    worlds[0].close()
    assert [client is None for client in fakes.pybullet.clients] == [True, False]


def test_a_reset_clears_the_last_episode(fakes: SimpleNamespace) -> None:
    world = World(ROOT)
    client = fakes.pybullet.clients[0]
    for _ in range(2):
        client.touching = True
        client.joints = dict.fromkeys(client.joints, 0.7)
        client.poses = dict.fromkeys(client.poses, ((0.1, 0.2, 0.5), (0.0, 0.0, 0.0, 1.0)))
        world.env.robot.gripper_action = -1
        world.env.scene.buttons[0].prev_is_pressed = True
        robot_obs, scene_obs = np.full(15, 1.0), np.full(24, 2.0)
        world.reset(robot_obs, scene_obs)
        found = world.env.found
        assert not found["touching"]
        assert set(found["joints"].values()) == {0.0}
        assert found["gripper_action"] == 1  # open
        assert found["pressed"] is False
        assert (found["robot_obs"] is robot_obs, found["scene_obs"] is scene_obs) == (True, True)


def test_a_world_reports_proprio_and_info(fakes: SimpleNamespace) -> None:
    world = World(ROOT)
    assert world.robot_obs().tolist() == list(range(15))
    assert world.info() == {"scene_info": "now"}
    assert world.step(np.array([1.0, 2, 3, 4, 5, 6, -1])) == {"scene_info": [1, 2, 3, 4, 5, 6, -1]}


def make_changed_world(fakes: SimpleNamespace, number: int) -> World:
    """Return a world with other joint positions and block poses."""
    world = World(ROOT)
    client = fakes.pybullet.clients[world.env.client]
    client.joints = {key: 10.0 * number + position for position, key in enumerate(client.joints)}
    client.poses = {block: ((float(number), float(block), 1.0), (0.0, 0.6, 0.0, 0.8)) for block in BLOCKS}
    return world


def test_the_screen_shows_the_current_state(fakes: SimpleNamespace) -> None:
    screen = Screen(ROOT, egl=True)
    worlds = [make_changed_world(fakes, 1), make_changed_world(fakes, 2)]
    here = fakes.pybullet.clients[0]
    assert here.options == "--width=200 --height=200"
    assert screen._env.options["use_egl"] is True
    lights = [(1, 0), (0, 1), (1, 1), (0, 0)]
    for number in range(8):
        world = worlds[number % 2]
        for light, state in zip(world.env.scene.lights, lights[number % 4], strict=True):
            light.state = state
        screen.show(world)
        there = fakes.pybullet.clients[world.env.client]
        assert here.joints == there.joints
        assert here.poses == there.poses
        assert tuple(light.state for light in screen._env.scene.lights) == lights[number % 4]
    assert Screen(ROOT, egl=False)._env.options["use_egl"] is False


def test_pictures_are_rgb_upright_and_named_after_their_cameras(fakes: SimpleNamespace) -> None:
    screen = Screen(ROOT, egl=False)
    screen.show(make_changed_world(fakes, 1))
    pictures = screen.draw_cameras()
    assert {name: (image.shape, image.dtype.name) for name, image in pictures.items()} == {
        "static": ((200, 200, 3), "uint8"),
        "gripper": ((84, 84, 3), "uint8"),
    }
    for image in pictures.values():
        assert quarters(image) == QUARTERS
    assert screen._cameras["static"].drawn == 3  # EGL's first two pictures lack the shadows of all that follow


def test_the_gripper_camera_looks_from_the_arm_of_the_world(fakes: SimpleNamespace) -> None:
    """Bullet reports another position of a link after its joint was set, as on the screen, than after a step."""
    screen = Screen(ROOT, egl=False)
    for number in (1, 2):
        world = make_changed_world(fakes, number)
        screen.show(world)
        fakes.pybullet.clients[world.env.client].joints[0, 0] = 40.0 + number
        assert screen.draw_cameras()["gripper"][0, 0, 0] == 40 + number
    assert fakes.modules["gripper_camera"].p.getNumBodies() == len(calvin_fakes.BODIES)


def test_a_video_frame_has_the_requested_shape(fakes: SimpleNamespace) -> None:
    screen = Screen(ROOT, egl=False)
    picture = screen.draw_static(30, 60)
    assert (picture.shape, quarters(picture)) == ((30, 60, 3), QUARTERS)
    assert fakes.pybullet.asked == [(0, 60, 30, "from above", ("projection", 10, 60 / 30, 0.01, 10))]


def test_a_bullet_replaces_the_module_pybullet(fakes: SimpleNamespace) -> None:
    first, second = Bullet(), Bullet("--width=8")
    assert (first.connect(2), second.BulletClient(connection_mode=2).connect()) == (0, 1)
    assert second.DIRECT == 2  # constants are passed on as they are
    second.resetJointState(0, 0, 3.0)
    assert [bullet.getJointStates(0, [0])[0][0] for bullet in (first, second)] == [0.0, 3.0]
