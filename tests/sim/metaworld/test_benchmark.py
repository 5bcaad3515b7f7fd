from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from anyvla_sim.metaworld.benchmark import VIEWS, MetaWorld
from anyvla_sim.metaworld.environment import MetaWorldEnvironment, _adjust_for_expert
from anyvla_sim.metaworld.suites import get_scenes, make_suite
from anyvla_sim.rendering import View

pytestmark = pytest.mark.simulator("metaworld")

HALF_OPEN = make_suite("half-open", 2)
TASKS = [task.name for task in HALF_OPEN.tasks]
PAIRS = [("drawer-open", "drawer-close"), ("window-open", "window-close")]


@pytest.fixture(scope="module")
def world() -> Iterator[MetaWorldEnvironment]:
    benchmark = MetaWorld("fast")
    yield benchmark.make("half-open")
    benchmark.close()


def get_state(world: MetaWorldEnvironment) -> np.ndarray:
    data = world.simulation.sim.data
    return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel()])


def play_other_episodes(world: MetaWorldEnvironment) -> None:
    for task, seed in (("button-press-topdown", 4), ("drawer-open", 5), ("window-open", 6)):
        world.reset(task, seed)
        for _ in range(12):
            world.step(world.expert(task))
        world.observe()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_start_depends_on_scene_and_seed_only(world: MetaWorldEnvironment, first: str, second: str) -> None:
    world.reset(first, 3)
    qpos, seen = get_state(world), world.observe()
    world.reset(first, 4)
    assert not np.array_equal(get_state(world), qpos)
    assert not np.array_equal(world.observe().images["corner"], seen.images["corner"])
    play_other_episodes(world)
    for task in (first, second):
        world.reset(task, 3)
        again = world.observe()
        assert np.array_equal(get_state(world), qpos)
        assert np.array_equal(again.proprio, seen.proprio)
        for camera in VIEWS:
            assert np.array_equal(again.images[camera], seen.images[camera])


def test_a_fresh_environment_starts_alike(world: MetaWorldEnvironment) -> None:
    play_other_episodes(world)
    other = world._benchmark.make("half-open")  # shares the renderers, not the models
    other.reset("drawer-close", 8)
    world.reset("drawer-open", 8)
    assert np.array_equal(get_state(world), get_state(other))
    for camera in VIEWS:
        assert np.array_equal(world.observe().images[camera], other.observe().images[camera])


@pytest.mark.parametrize("task", ["drawer-open", "window-open"])
def test_joints_start_at_40_to_60_percent_by_the_seed(world: MetaWorldEnvironment, task: str) -> None:
    shares = []
    for seed in range(20):
        world.reset(task, seed)
        shares.append(world.simulation.opened())
        assert not any(world.goals().values())
    assert 0.4 <= min(shares) < 0.45
    assert 0.55 < max(shares) <= 0.6
    assert len(set(shares)) == 20


@pytest.mark.parametrize(
    ("scene", "joint", "wide_open"),  # ranges of assets/objects/assets/drawer.xml and window_horiz.xml, m
    [("drawer", "goal_slidey", -0.16), ("window", "window_slide", 0.2)],
)
def test_a_joint_is_open_beyond_85_percent_and_closed_below_15(
    world: MetaWorldEnvironment, scene: str, joint: str, wide_open: float
) -> None:
    world.reset(f"{scene}-open", 0)
    for share in (0.0, 0.149, 0.151, 0.849, 0.851, 1.0):
        world.simulation.sim.data.joint(joint).qpos = share * wide_open
        assert world.goals() == {f"{scene}-open": share > 0.85, f"{scene}-close": share < 0.15}


@pytest.mark.parametrize("task", TASKS)
def test_no_goal_holds_at_the_start_and_nothing_marks_it(world: MetaWorldEnvironment, task: str) -> None:
    world.reset(task, 11)
    assert set(world.goals()) == {t.name for t in HALF_OPEN.tasks if t.scene == HALF_OPEN.task(task).scene}
    assert not any(world.step(np.zeros(4, np.float32)).values())
    before = world.observe().images
    sites = world.simulation.sim.model.site_pos
    kept = sites.copy()
    sites += [0.1, -0.2, 0.1]
    world.simulation.update()
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


def test_experts_of_pairs_see_the_point_that_their_own_environment_reports(world: MetaWorldEnvironment) -> None:
    """_get_pos_objects of sawyer_drawer_close_v3.py and sawyer_window_close_v3.py."""
    for task in ("drawer-close", "window-close"):
        world.reset(task, 2)
        data, seen = world.simulation.sim.data, world._seen.copy()
        _adjust_for_expert(task, world.simulation.sim, seen)
        drawer = task == "drawer-close"
        expected = data.body("drawer_link").xpos + (0, -0.16, 0.05) if drawer else data.site("handleCloseStart").xpos
        assert seen[4:7] == pytest.approx(expected, abs=1e-6)


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
    final = get_state(world)
    play_other_episodes(world)
    for environment in (world, world._benchmark.make("half-open")):
        environment.reset(task, 21)
        for action in actions:
            environment.step(action)
        assert np.array_equal(get_state(environment), final)


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
        assert image.std() > 10  # not blank
    now = world.simulation
    now.sim.data.joint(get_scenes("half-open")["drawer"].joint).qpos = 0.9 * now._full()
    now.update()
    world._seen = now.sim._get_obs()
    after = world.observe()
    assert np.array_equal(after.proprio, before.proprio)
    assert not np.array_equal(after.images["corner"], before.images["corner"])


def test_video_frames(world: MetaWorldEnvironment) -> None:
    world.reset("door-open", 1)
    assert world.frame(240, 320).shape == (240, 320, 3)
    part = View("corner2", (0.2, 0.9, 0.15, 0.85), 96, 96, turned=True, oversample=2)
    assert np.array_equal(world.frame(96, 96), world.draw(part))
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


def test_fast_pictures_are_taken_from_meta_worlds_own_camera(world: MetaWorldEnvironment) -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    world.reset("drawer-open", 1)
    theirs = ALL_V3_ENVIRONMENTS["drawer-open-v3"]().model
    for camera in ("corner2", "behindGripper", "gripperPOV"):
        assert np.array_equal(world.simulation.sim.model.camera(camera).pos, theirs.camera(camera).pos)


def test_scenes_do_not_mix_on_the_screen(world: MetaWorldEnvironment) -> None:
    pictures = []
    for task in ("drawer-open", "window-open", "drawer-open", "window-open"):
        world.reset(task, 1)
        pictures.append(world.observe().images["corner"])
    assert np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[1], pictures[3])
    assert not np.array_equal(pictures[0], pictures[1])


def make_embodiment(name: str, cameras: list[str], control_hz: float) -> dict[str, object]:
    """Return the Sawyer arm as Meta-World's SawyerXYZEnv has it.

    An action of 1 moves the hand by 1 cm (action_scale) each control step; the fingers close on 1 and open on -1
    (`do_simulation([a[-1], -a[-1]])`). The observation begins with the hand's position and the fingers' distance,
    0 to 1. A control step is 5 physics steps (frame_skip) of 2.5 ms.
    """
    position = {"name": "position", "size": 3, "kind": "position"}
    gripper = {"name": "gripper", "size": 1, "kind": "gripper"}
    return {
        "name": name,
        "cameras": cameras,
        "control_hz": control_hz,
        "proprio": {"groups": [{**position, "unit": "m"}, {**gripper, "low": 0, "high": 1, "open": 1}]},
        "action": {
            "groups": [
                {**position, "mode": "delta", "unit": "cm per control step"},
                {**gripper, "low": -1, "high": 1, "open": -1},
            ]
        },
    }


def test_the_embodiment() -> None:
    fast, native = MetaWorld("fast"), MetaWorld("native")
    assert fast.embodiment("half-open") == make_embodiment("sawyer-metaworld", ["corner", "wrist"], 40)
    assert fast.embodiment("mt10") == make_embodiment("sawyer-metaworld-3", ["corner", "behind", "wrist"], 40)
    for name in ("half-open", "mt50"):
        assert native.embodiment(name) == make_embodiment("sawyer-metaworld-corner2", ["corner2"], 80)


def test_the_views_are_those_that_policies_were_trained_with() -> None:
    wrist = View("gripperPOV", (0.1, 0.9, 0.1, 0.9), 96, 96)
    fast = MetaWorld("fast")
    assert fast.views("half-open") == {
        "corner": View("corner2", (0.38, 0.78, 0.28, 0.68), 96, 96, turned=True, oversample=2),
        "wrist": wrist,
    }
    for name in ("mt10", "mt50", "ml45-train", "ml45-test"):
        assert fast.views(name) == {
            "corner": View("corner2", (0.3, 0.8, 0.25, 0.75), 96, 96, turned=True, oversample=2),
            "behind": View("behindGripper", (0.1, 0.9, 0.1, 0.9), 96, 96, oversample=2),
            "wrist": wrist,
        }
    for name in ("half-open", "mt10"):
        assert MetaWorld("native").views(name) == {"corner2": View("corner2", (0, 1, 0, 1), 480, 480, turned=True)}


@pytest.mark.parametrize(("render", "repeat"), [("fast", 2), ("native", 1)])
@pytest.mark.parametrize("task", ["push", "reach"])
def test_an_episode_equals_meta_worlds_own(render: str, repeat: int, task: str) -> None:
    """Start state, motion, proprio and success, against Meta-World's own class with the same seed."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    theirs = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    theirs._partially_observable, theirs._freeze_rand_vec, theirs.seeded_rand_vec = False, False, True
    theirs._set_task_called = True
    theirs.__dict__.pop("sawyer_observation_space", None)  # it was cached with a goal of zero
    theirs.seed(7)
    theirs.reset()
    mine = MetaWorld(render).make("mt10")
    mine.reset(task, 7, {})
    assert np.array_equal(
        get_state(mine), np.concatenate([theirs.data.qpos, theirs.data.qvel, theirs.data.mocap_pos[0]])
    )
    expert, reached = ENV_POLICY_MAP[f"{task}-v3"](), []
    control_hz = 1 / (theirs.frame_skip * theirs.model.opt.timestep)
    assert MetaWorld(render).embodiment("mt10")["control_hz"] * repeat == pytest.approx(control_hz)
    seen = theirs._get_obs()
    for _ in range(60):
        action = np.clip(expert.get_action(seen), -1, 1).astype(np.float32)
        assert np.allclose(mine.expert(task), action, atol=1e-6)
        for _ in range(repeat):
            seen, *_, info = theirs.step(action)
        goals = mine.step(action)
        reached.append(bool(info["success"]))
        assert goals == {task: reached[-1]}
        assert mine._seen == pytest.approx(seen, abs=1e-5)
    assert get_state(mine)[: len(theirs.data.qpos)] == pytest.approx(theirs.data.qpos, abs=1e-5)
    assert any(reached)
    assert not reached[0]


def test_proprio_is_the_current_hand_position_and_opening(world: MetaWorldEnvironment) -> None:
    world.reset("door-open", 1)
    data = world.simulation.sim.data
    for action in ([1, 0, 0, -1], [0, 1, 1, 1], [-1, -1, 1, 1]):
        for _ in range(4):
            world.step(np.array(action, np.float32))
        apart = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos)
        hand = data.body("hand").xpos
        assert world.observe().proprio == pytest.approx([*hand, min(apart / 0.1, 1)], abs=1e-6)


def test_the_gripper_opens_at_its_declared_ends(world: MetaWorldEnvironment) -> None:
    action, proprio = (world._benchmark.embodiment("half-open")[key]["groups"][1] for key in ("action", "proprio"))
    world.reset("door-open", 1)
    ends = []
    for command in (action["open"], -action["open"]):
        for _ in range(30):
            world.step(np.array([0, 0, 0, command], np.float32))
        ends.append(float(world.observe().proprio[3]))
    assert abs(ends[0] - proprio["open"]) < 0.1
    assert abs(ends[1] - proprio["open"]) > 0.4


def test_an_action_moves_the_hand_in_its_unit_and_is_clipped_at_one(world: MetaWorldEnvironment) -> None:
    world.reset("door-open", 1)
    data = world.simulation.sim.data
    for action in ([0.5, 0, 0, 0], [0, -0.25, 0, 0], [0, 0, 1, 0], [0, 0, 7, 0]):
        before = data.mocap_pos[0].copy()
        world.step(np.array(action, np.float32))
        moved = 2 * 0.01 * np.clip(action[:3], -1, 1)  # two control steps of 1 cm
        assert data.mocap_pos[0] - before == pytest.approx(moved, abs=0.011)
    world.step(np.array([0, 0, 0, 3], np.float32))
    assert data.ctrl.tolist() == [1, -1]


def test_success_ends_with_its_episode() -> None:
    environment = MetaWorld("fast").make("mt10")
    environment.reset("reach", 7)
    while not environment.step(environment.expert("reach"))["reach"]:
        pass
    environment.reset("reach", 8)
    assert environment.goals() == {"reach": False}


def test_the_protocol_has_the_render_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYVLA_RENDER", raising=False)
    assert MetaWorld().protocol("half-open") == {
        "render": "fast",
        "cameras": {"corner": [96, 96], "wrist": [96, 96]},
        "control_steps_per_action": 2,
    }
    monkeypatch.setenv("ANYVLA_RENDER", "native")
    assert MetaWorld().protocol("mt10") == {
        "render": "native",
        "cameras": {"corner2": [480, 480]},
        "control_steps_per_action": 1,
    }
    assert MetaWorld("fast").settings == {"render": "fast"}
    versions = MetaWorld("fast").versions()
    assert versions["gl"] in ("egl", "osmesa")
    assert {"metaworld", "mujoco"} <= set(versions)


def test_native_is_as_published() -> None:
    """The camera, size and pace that lerobot evaluates with, drawn by MuJoCo's own renderer for comparison."""
    import mujoco

    benchmark = MetaWorld("native")
    environment = benchmark.make("mt50")
    environment.reset("drawer-open", 1)
    mine = environment.observe().images["corner2"]
    model, data = environment.simulation.sim.model, environment.simulation.sim.data
    assert np.allclose(model.camera("corner2").pos, (0.75, 0.075, 0.7))
    model.vis.global_.offwidth = model.vis.global_.offheight = 480
    with mujoco.Renderer(model, 480, 480) as renderer:
        renderer.update_scene(data, "corner2")
        theirs = renderer.render()[::-1, ::-1]
    assert (np.abs(mine.astype(int) - theirs).max(-1) > 8).mean() < 0.005
    assert benchmark.suite("mt50").horizon == 500
    assert benchmark.embodiment("mt50")["control_hz"] == 80
    benchmark.close()


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


def test_without_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "metaworld":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r'Meta-World is not installed .*; pip install "anyvla-sim\[metaworld\]"'):
        MetaWorld()
