from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("metaworld")

from anyvla.evaluation.environments import rendering
from anyvla.evaluation.environments.metaworld import HALF_OPEN, SCENES, START, VIEWS, MetaWorld, MetaWorldEnvironment
from anyvla.evaluation.environments.rendering import RendererMissing, View, find_driver, setting

TASKS = [task.name for task in HALF_OPEN.tasks]
PAIRS = [("drawer-open", "drawer-close"), ("window-open", "window-close")]


@pytest.fixture(scope="module")
def world() -> Iterator[MetaWorldEnvironment]:
    benchmark = MetaWorld("fast")
    yield benchmark.make()
    benchmark.close()


def state(world: MetaWorldEnvironment) -> np.ndarray:
    data = world._now.sim.data
    return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel()])


def disturb(world: MetaWorldEnvironment) -> None:
    for task, seed in (("button-press-topdown", 4), ("drawer-open", 5), ("window-open", 6)):
        world.reset(task, seed)
        for _ in range(12):
            world.step(world.expert(task))
        world.observe()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_start_depends_on_scene_and_seed_only(world: MetaWorldEnvironment, first: str, second: str) -> None:
    world.reset(first, 3)
    qpos, seen = state(world), world.observe()
    world.reset(first, 4)
    assert not np.array_equal(state(world), qpos)
    assert not np.array_equal(world.observe().images["corner"], seen.images["corner"])
    disturb(world)
    for task in (first, second):
        world.reset(task, 3)
        again = world.observe()
        assert np.array_equal(state(world), qpos)
        assert np.array_equal(again.proprio, seen.proprio)
        for camera in VIEWS:
            assert np.array_equal(again.images[camera], seen.images[camera])


def test_a_fresh_environment_starts_alike(world: MetaWorldEnvironment) -> None:
    disturb(world)
    other = world._benchmark.make()  # shares the renderers, not the models
    other.reset("drawer-close", 8)
    world.reset("drawer-open", 8)
    assert np.array_equal(state(world), state(other))
    for camera in VIEWS:
        assert np.array_equal(world.observe().images[camera], other.observe().images[camera])


@pytest.mark.parametrize("task", ["drawer-open", "window-open"])
def test_joints_start_half_open(world: MetaWorldEnvironment, task: str) -> None:
    shares = []
    for seed in range(20):
        world.reset(task, seed)
        shares.append(world._now.opened())
        assert not any(world.goals().values())
    assert START[0] <= min(shares) < 0.45
    assert 0.55 < max(shares) <= START[1]


@pytest.mark.parametrize("task", TASKS)
def test_no_goal_holds_at_the_start_and_nothing_marks_it(world: MetaWorldEnvironment, task: str) -> None:
    world.reset(task, 11)
    assert set(world.goals()) == {t.name for t in HALF_OPEN.tasks if t.scene == HALF_OPEN.task(task).scene}
    assert not any(world.step(np.zeros(4, np.float32)).values())
    before = world.observe().images
    sites = world._now.sim.model.site_pos
    kept = sites.copy()
    sites += [0.1, -0.2, 0.1]
    world._now.update()
    after = world.observe().images
    sites[:] = kept
    for camera in VIEWS:
        assert np.array_equal(after[camera], before[camera])


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_reaches_its_goal_and_no_other(world: MetaWorldEnvironment, task: str) -> None:
    world.reset(task, 1_000_001)
    for _ in range(HALF_OPEN.horizon):
        goals = world.step(world.expert(task))
        if any(goals.values()):
            break
    assert [name for name, holds in goals.items() if holds] == [task]


@pytest.mark.parametrize("task", TASKS)
def test_asking_the_expert_changes_nothing(world: MetaWorldEnvironment, task: str) -> None:
    world.reset(task, 2)
    world.step(world.expert(task))
    assert np.array_equal(world.expert(task), world.expert(task))
    assert np.array_equal(world.observe().proprio, world.observe().proprio)


@pytest.mark.parametrize("task", ["drawer-open", "door-open"])
def test_replay_is_exact(world: MetaWorldEnvironment, task: str) -> None:
    rng = np.random.default_rng(0)
    world.reset(task, 21)
    actions = []
    for _ in range(30):
        actions.append(np.clip(world.expert(task) + 0.3 * rng.normal(size=4), -1, 1).astype(np.float32))
        world.step(actions[-1])
        if len(actions) % 4 == 0:
            world.observe()
    final = state(world)
    disturb(world)
    for environment in (world, world._benchmark.make()):
        environment.reset(task, 21)
        for action in actions:
            environment.step(action)
        assert np.array_equal(state(environment), final)


def test_observation_shows_the_robot_only(world: MetaWorldEnvironment) -> None:
    world.reset("drawer-open", 1)
    before = world.observe()
    assert before.proprio.shape == (4,)
    assert before.proprio.dtype == np.float32
    assert list(before.images) == ["corner", "wrist"]
    for image in before.images.values():
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.std() > 10  # something is to be seen
    now = world._now
    now.sim.data.joint(SCENES["drawer"].joint).qpos = 0.9 * now._full()
    now.update()
    world._seen = now.sim._get_obs()
    after = world.observe()
    assert np.array_equal(after.proprio, before.proprio)
    assert not np.array_equal(after.images["corner"], before.images["corner"])


def test_frame_for_people(world: MetaWorldEnvironment) -> None:
    world.reset("door-open", 1)
    assert world.frame(240, 320).shape == (240, 320, 3)
    assert world.frame(480, 480).shape == (480, 480, 3)
    with pytest.raises(ValueError, match="pictures are 1 to 640 pixels a side, oversampling included; got 800 x 640"):
        world.frame(800, 640)


def test_unknown_tasks(world: MetaWorldEnvironment) -> None:
    with pytest.raises(ValueError, match="metaworld has no task 'drawer-opn': did you mean 'drawer-open'"):
        world.reset("drawer-opn", 0)
    world.reset("drawer-open", 0)
    with pytest.raises(ValueError, match="the scene drawer has no expert for 'door-open'"):
        world.expert("door-open")
    with pytest.raises(ValueError, match="suite 'half-open' has no task 'door-opn': did you mean 'door-open'"):
        HALF_OPEN.task("door-opn")
    with pytest.raises(RuntimeError, match="reset the environment before using it"):
        MetaWorld().make().step(np.zeros(4, np.float32))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("camera", ["corner2", "gripperPOV"])
def test_a_view_is_a_crop_of_the_whole(world: MetaWorldEnvironment, camera: str, turned: bool) -> None:
    world.reset("drawer-open", 1)
    sim, renderer = world._now.sim, world._benchmark.renderer("drawer", world._now.sim.model)
    whole = renderer.draw(sim.model, sim.data, View(camera, (0, 1, 0, 1), 400, 400))
    if turned:
        whole = whole[::-1, ::-1]
    part = renderer.draw(sim.model, sim.data, View(camera, (0.25, 0.85, 0.2, 0.8), 240, 240, turned=turned))
    far = np.abs(part.astype(int) - whole[80:320, 100:340]).max(-1)
    assert (far > 8).mean() < 0.005  # edges are drawn from other sample points
    shifted = np.abs(part.astype(int) - whole[84:324, 100:340]).max(-1)
    assert (shifted > 8).mean() > 0.02  # the bound above tells a shift of one percent apart


def test_a_view_agrees_with_mujocos_own_renderer(world: MetaWorldEnvironment) -> None:
    import mujoco

    benchmark = MetaWorld("native")
    environment = benchmark.make()
    environment.reset("door-open", 1)
    sim = environment._now.sim
    mine = benchmark.renderer("door", sim.model).draw(sim.model, sim.data, View("corner2", (0, 1, 0, 1), 320, 320))
    with mujoco.Renderer(sim.model, 320, 320) as renderer:
        renderer.update_scene(sim.data, "corner2")
        theirs = renderer.render()
    benchmark.close()
    assert (np.abs(mine.astype(int) - theirs).max(-1) > 8).mean() < 0.005


def test_scenes_do_not_mix_on_the_screen(world: MetaWorldEnvironment) -> None:
    pictures = []
    for task in ("drawer-open", "window-open", "drawer-open", "window-open"):
        world.reset(task, 1)
        pictures.append(world.observe().images["corner"])
    assert np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[1], pictures[3])
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_render_setting_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting() == "fast"
    monkeypatch.setenv("ANYVLA_RENDER", "native")
    assert MetaWorld().versions()["render"] == "native"
    versions = MetaWorld("fast").versions()
    assert versions["render"] == "fast"
    assert versions["gl"] in ("egl", "osmesa")
    assert {"metaworld", "mujoco"} <= set(versions)
    monkeypatch.setenv("ANYVLA_RENDER", "fsat")
    with pytest.raises(ValueError, match="there is no render setting 'fsat': did you mean 'fast'"):
        MetaWorld()


def test_fast_and_native_differ() -> None:
    pictures = []
    for render in rendering.SETTINGS:
        benchmark = MetaWorld(render)
        environment = benchmark.make()
        environment.reset("drawer-open", 1)
        pictures.append(environment.observe().images["corner"].astype(int))
        benchmark.close()
    assert np.abs(pictures[0] - pictures[1]).mean() > 1
    assert np.corrcoef(pictures[0].ravel(), pictures[1].ravel())[0, 1] > 0.8  # the same scene all the same


def test_without_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "metaworld":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r'Meta-World is not installed .*; pip install "anyvla\[metaworld\]"'):
        MetaWorld()


ADVICE = r"MuJoCo cannot draw here, no GL driver works \(.*sudo apt-get install -y libegl1 libgl1-mesa-dri"


def test_no_driver_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    find_driver.cache_clear()

    def fail(command: list[str], **keys: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nAttributeError: no eglQueryString")

    monkeypatch.setattr(rendering.subprocess, "run", fail)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    with pytest.raises(RendererMissing, match=ADVICE) as raised:
        find_driver()
    assert "egl: AttributeError: no eglQueryString; osmesa: " in str(raised.value)
    find_driver.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="breaks the loader's path")
@pytest.mark.parametrize("driver", ["egl", "osmesa"])
def test_the_driver_asked_for_is_broken(driver: str, tmp_path: Path) -> None:
    for name in ("libEGL.so.1", "libEGL.so", "libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so", "libGL.so.1"):
        (tmp_path / name).touch()
    code = """
from anyvla.evaluation.environments.metaworld import MetaWorld
environment = MetaWorld().make()
environment.reset("door-open", 1)
environment.observe()
"""
    environment = os.environ | {"MUJOCO_GL": driver, "LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert f"RendererMissing: MuJoCo cannot draw here, no GL driver works (MUJOCO_GL={driver}: " in last
    assert "sudo apt-get install -y libegl1" in last
