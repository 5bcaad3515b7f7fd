from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("metaworld")

from anyvla_sim import rendering
from anyvla_sim.metaworld import START, VIEWS, MetaWorld, MetaWorldEnvironment
from anyvla_sim.metaworld_suites import NAMES, scenes, suite
from anyvla_sim.rendering import RendererMissing, View, find_driver, setting
from anyvla_sim.trial import TrialFailed

HALF_OPEN = suite("half-open", 2)
TASKS = [task.name for task in HALF_OPEN.tasks]
PAIRS = [("drawer-open", "drawer-close"), ("window-open", "window-close")]


@pytest.fixture(scope="module")
def world() -> Iterator[MetaWorldEnvironment]:
    benchmark = MetaWorld("fast")
    yield benchmark.make("half-open")
    benchmark.close()


def state(world: MetaWorldEnvironment) -> np.ndarray:
    data = world.running.sim.data
    return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel()])


def placed(world: MetaWorldEnvironment) -> np.ndarray:
    """The state, and where the goal is."""
    return np.concatenate([state(world), world.running.sim._last_rand_vec])


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
    other = world._benchmark.make("half-open")  # shares the renderers, not the models
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
        shares.append(world.running.opened())
        assert not any(world.goals().values())
    assert START[0] <= min(shares) < 0.45
    assert 0.55 < max(shares) <= START[1]


@pytest.mark.parametrize("task", TASKS)
def test_no_goal_holds_at_the_start_and_nothing_marks_it(world: MetaWorldEnvironment, task: str) -> None:
    world.reset(task, 11)
    assert set(world.goals()) == {t.name for t in HALF_OPEN.tasks if t.scene == HALF_OPEN.task(task).scene}
    assert not any(world.step(np.zeros(4, np.float32)).values())
    before = world.observe().images
    sites = world.running.sim.model.site_pos
    kept = sites.copy()
    sites += [0.1, -0.2, 0.1]
    world.running.update()
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
    for environment in (world, world._benchmark.make("half-open")):
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
    now = world.running
    now.sim.data.joint(scenes("half-open")["drawer"].joint).qpos = 0.9 * now._full()
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
    with pytest.raises(ValueError, match="metaworld/half-open has no task 'drawer-opn': did you mean 'drawer-open'"):
        world.reset("drawer-opn", 0)
    world.reset("drawer-open", 0)
    with pytest.raises(ValueError, match="the scene drawer has no expert for 'door-open'"):
        world.expert("door-open")
    with pytest.raises(ValueError, match="suite 'half-open' has no task 'door-opn': did you mean 'door-open'"):
        HALF_OPEN.task("door-opn")
    with pytest.raises(RuntimeError, match="reset the environment before using it"):
        MetaWorld().make("half-open").step(np.zeros(4, np.float32))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("camera", ["corner2", "gripperPOV"])
def test_a_view_is_a_crop_of_the_whole(world: MetaWorldEnvironment, camera: str, turned: bool) -> None:
    world.reset("drawer-open", 1)
    sim, renderer = world.running.sim, world._benchmark.renderer("half-open", "drawer", world.running.sim.model)
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
    environment = benchmark.make("half-open")
    environment.reset("door-open", 1)
    sim = environment.running.sim
    mine = benchmark.renderer("half-open", "door", sim.model).draw(
        sim.model, sim.data, View("corner2", (0, 1, 0, 1), 320, 320)
    )
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
    assert MetaWorld().protocol("mt10") == {
        "render": "native",
        "cameras": {"corner2": [480, 480]},
        "control_steps_per_action": 1,
    }
    assert MetaWorld("fast").protocol("half-open")["render"] == "fast"
    versions = MetaWorld("fast").versions()
    assert versions["gl"] in ("egl", "osmesa")
    assert {"metaworld", "mujoco"} <= set(versions)
    monkeypatch.setenv("ANYVLA_RENDER", "fsat")
    with pytest.raises(ValueError, match="there is no render setting 'fsat': did you mean 'fast'"):
        MetaWorld()


def test_native_is_as_published() -> None:
    """The camera, size and pace that lerobot evaluates with, drawn by MuJoCo's own renderer for comparison."""
    import mujoco

    benchmark = MetaWorld("native")
    environment = benchmark.make("mt50")
    environment.reset("drawer-open", 1)
    mine = environment.observe().images["corner2"]
    model, data = environment.running.sim.model, environment.running.sim.data
    assert np.allclose(model.camera("corner2").pos, (0.75, 0.075, 0.7))
    model.vis.global_.offwidth = model.vis.global_.offheight = 480
    with mujoco.Renderer(model, 480, 480) as renderer:
        renderer.update_scene(data, "corner2")
        theirs = renderer.render()[::-1, ::-1]
    assert (np.abs(mine.astype(int) - theirs).max(-1) > 8).mean() < 0.005
    assert benchmark.suite("mt50").horizon == 500
    assert benchmark.embodiment("mt50")["control_hz"] == 80
    benchmark.close()


def test_suites() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3, MT10_V3

    suites = {name: suite(name, 2) for name in NAMES}
    names = {name: [f"{t.name}-v3" for t in s.tasks] for name, s in suites.items()}
    assert names["mt10"] == list(MT10_V3)
    assert set(names["mt50"]) == set(ALL_V3_ENVIRONMENTS)
    assert set(names["ml45-test"]) == set(ML45_V3["test"])
    assert set(names["ml45-train"]) == set(ML45_V3["train"])
    groups = suites["mt50"].groups
    assert {group: len(tasks) for group, tasks in groups.items()} == {
        "easy": 28,
        "medium": 11,
        "hard": 6,
        "very hard": 5,
    }
    assert sorted(t for tasks in groups.values() for t in tasks) == sorted(t.name for t in suites["mt50"].tasks)
    for s in suites.values():
        phrases = [phrase for task in s.tasks for phrase in task.instructions]
        assert len(set(phrases)) == len(phrases)  # no two tasks are told alike
        others = [phrase for task in s.tasks for phrase in task.paraphrases]
        assert len(set(others)) == len(others) == 2 * len(s.tasks)
        assert not set(phrases) & set(others)  # a paraphrase is never demonstrated
    with pytest.raises(ValueError, match="metaworld has no suite 'mt51': did you mean 'mt50'"):
        MetaWorld().suite("mt51")


@pytest.mark.parametrize("task", ["reach", "pick-place", "peg-insert-side"])
def test_stock_experts_see_their_goal(task: str) -> None:
    environment = MetaWorld("fast").make("mt10")
    environment.reset(task, 1_000_002)
    goals: dict[str, bool] = {}
    for _ in range(250):
        goals = environment.step(environment.expert(task))
        if goals[task]:
            break
    assert goals == {task: True}


@pytest.fixture(scope="module")
def stock() -> Iterator[MetaWorldEnvironment]:
    benchmark = MetaWorld("fast")
    yield benchmark.make("mt10")
    benchmark.close()


@pytest.mark.parametrize(
    ("factor", "level"), [(f, level) for f, levels in MetaWorld.factors.items() for level in levels]
)
def test_a_factor_changes_what_it_says_and_nothing_else(stock: MetaWorldEnvironment, factor: str, level: str) -> None:
    stock.reset("push", 7)
    plain, start = stock.observe(), placed(stock)
    stock.reset("push", 7, {factor: level})
    changed, other = stock.observe(), placed(stock)
    assert np.abs(changed.images["corner"].astype(int) - plain.images["corner"]).mean() > 0.05
    assert np.array_equal(other, start) == (factor != "position")
    stock.reset("push", 7, {factor: level})
    assert np.array_equal(stock.observe().images["corner"], changed.images["corner"])
    stock.reset("push", 7)  # and leaves nothing behind
    assert np.array_equal(stock.observe().images["corner"], plain.images["corner"])
    assert np.array_equal(placed(stock), start)


def test_positions_lie_beyond_their_range(stock: MetaWorldEnvironment) -> None:
    for seed in range(20):
        stock.reset("push", seed, {})
        space = stock.running.sim._random_reset_space
        stock.reset("push", seed, {"position": "far"})
        drawn = stock.running.sim._last_rand_vec
        beyond = np.maximum(space.low - drawn, drawn - space.high).max()
        assert 0.02 - 1e-6 <= beyond <= 0.05 + 1e-6


def test_unknown_factors(stock: MetaWorldEnvironment) -> None:
    with pytest.raises(ValueError, match="metaworld has no factor 'ligth': did you mean 'light'"):
        stock.reset("push", 0, {"ligth": "dim"})
    with pytest.raises(ValueError, match="the factor light has no level 'dimm': did you mean 'dim'"):
        stock.reset("push", 0, {"light": "dimm"})
    stock.reset("push", 0)
    with pytest.raises(ValueError, match="metaworld has no disturbance 'pull': known: push, open"):
        stock.disturb("pull", 0)


def test_disturbances(stock: MetaWorldEnvironment, world: MetaWorldEnvironment) -> None:
    stock.reset("push", 3)
    before = stock.running.sim._get_obs()[4:7].copy()
    assert stock.disturb("push", 5)
    moved = stock.running.sim._get_obs()[4:7] - before
    assert 0.03 < np.linalg.norm(moved[:2]) < 0.07
    world.reset("drawer-open", 3)
    opened = world.running.opened()
    assert not world.disturb("push", 5)  # the drawer is where it started
    for _ in range(50):
        if any(world.step(world.expert("drawer-open")).values()):
            break
    assert world.disturb("push", 5)
    assert world.running.opened() == pytest.approx(opened)
    stock.reset("pick-place", 3)
    closing = np.array([0, 0, 0, 1], np.float32)
    for _ in range(20):
        stock.step(closing)
    closed = stock.observe().proprio[3]
    assert stock.disturb("open", 0)
    for _ in range(6):
        stock.step(closing)
    assert stock.observe().proprio[3] > closed + 0.2
    for _ in range(20):
        stock.step(closing)
    assert stock.observe().proprio[3] == pytest.approx(closed, abs=0.02)  # it obeys again


def test_without_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "metaworld":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r'Meta-World is not installed .*; pip install "anyvla-sim\[metaworld\]"'):
        MetaWorld()


ADVICE = r"MuJoCo cannot draw here, no GL driver works \(.*sudo apt-get install -y libegl1 libgl1-mesa-dri"


def test_no_driver_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    find_driver.cache_clear()

    def fail(code: str, environment: object) -> str:
        raise TrialFailed("AttributeError: no eglQueryString")

    monkeypatch.setattr(rendering, "trial", fail)
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
from anyvla_sim.metaworld import MetaWorld
environment = MetaWorld().make("half-open")
environment.reset("door-open", 1)
environment.observe()
"""
    environment = os.environ | {"MUJOCO_GL": driver, "LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert f"RendererMissing: MuJoCo cannot draw here, no GL driver works (MUJOCO_GL={driver}: " in last
    assert "sudo apt-get install -y libegl1" in last
