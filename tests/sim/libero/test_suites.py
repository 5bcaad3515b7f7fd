"""LIBERO's suites: tasks, instructions, scenes and limits, each with its source."""

from __future__ import annotations

import pytest

from anyvla_sim.libero.benchmark import Libero
from anyvla_sim.libero.suites import LIMITS, load_suite, locate_goal_files, paraphrase

pytestmark = pytest.mark.simulator("libero")

PLATE = "put_the_bowl_on_the_plate"


def test_limits_are_those_of_openvla() -> None:
    """experiments/robot/libero/run_libero_eval.py of openvla: the longest demonstrations, rounded up."""
    found = {name: load_suite(name) for name in Libero().suites()}
    official = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
    assert {name: found[name].horizon for name in official} == official
    assert list(found)[:5] == list(official)
    assert {name: len(found[name].tasks) for name in official} == dict.fromkeys(official, 10) | {"90": 90}
    perturbed = set(found) - set(official)
    assert {f"{name}_{kind}" for name in ("spatial", "object", "goal", "10") for kind in ("lan", "task")} <= perturbed
    for name in perturbed:
        limits = [limit for kind, limit in official.items() if name.startswith(kind + "_")]
        assert [found[name].horizon] == (limits or [400]), name
    for played in found.values():
        assert (played.episodes, played.starts, played.success_rule) == (
            50,
            50,
            "reached",
        )  # LIBERO stores 50 start states
        assert all(task.instructions[0] for task in played.tasks)
        assert {played.limit(task.name) for task in played.tasks} == {played.horizon}


@pytest.mark.parametrize("name", LIMITS)
def test_instructions_equal_liberos_own_list(name: str) -> None:
    from libero.libero.benchmark import grab_language_from_filename

    for task in load_suite(name).tasks:
        assert task.instructions == (grab_language_from_filename(f"{task.name}.bddl"),)


def test_instructions_of_perturbed_suites() -> None:
    assert load_suite("goal").tasks[0].instructions == ("open the middle drawer of the cabinet",)
    assert load_suite("goal_swap").tasks[0].instructions == (
        "open the middle drawer of the cabinet",
    )  # objects change places
    assert load_suite("goal_lan").tasks[1].instructions == ("place the bowl on the stove",)
    for kind in ("lan", "task"):
        changed = [task.instructions[0] for task in load_suite(f"goal_{kind}").tasks]
        assert not set(changed) & {task.instructions[0] for task in load_suite("goal").tasks}


def test_paraphrases_begin_with_other_verbs() -> None:
    first = {
        "pick up the cup": ("take the cup", "grab the cup"),
        "pick the cup": ("take the cup", "grab the cup"),
        "put the cup on the plate": ("place the cup on the plate", "set the cup on the plate"),
        "open the drawer": ("pull open the drawer", "get open the drawer"),
        "close the drawer": ("shut the drawer", "push shut the drawer"),
        "turn on the stove": ("switch on the stove", "start the stove"),
        "turn off the stove": ("switch off the stove", "stop the stove"),
        "push the plate": ("shove the plate", "slide the plate"),
        "stack the bowl": ("pile the bowl", "put the bowl"),
    }
    assert {text: paraphrase(text) for text in first} == first
    assert paraphrase("pick up the cup and place it on the plate") == (
        "take the cup and put it on the plate",
        "grab the cup and set it on the plate",
    )
    assert paraphrase("open the drawer and put the cup in it") == (
        "pull open the drawer and then place the cup in it",
        "get open the drawer, then set the cup in it",
    )
    assert paraphrase("dance with the bowl") == ()


@pytest.mark.parametrize("name", LIMITS)
def test_no_paraphrase_is_an_instruction(name: str) -> None:
    instructions = {task.instructions[0] for task in load_suite(name).tasks}
    for task in load_suite(name).tasks:
        assert len(set(task.paraphrases)) == 2
        assert not instructions & set(task.paraphrases)


def test_tasks_of_one_scene_share_their_goals() -> None:
    assert list(locate_goal_files("goal", PLATE)) == [task.name for task in load_suite("goal").tasks]
    first = load_suite("spatial").tasks[0].name
    assert list(locate_goal_files("spatial", first)) == [first]


def test_scenes_differ_where_their_start_states_do() -> None:
    """LIBERO-Goal has one scene, and LIBERO-90 the twenty that its files are named after (arXiv 2306.03310).

    The ten of LIBERO-Spatial differ in where the bowl is; two tasks of LIBERO-10 are in LIVING_ROOM_SCENE2.
    """
    scenes = {name: len({task.scene for task in load_suite(name).tasks}) for name in LIMITS}
    assert scenes == {"spatial": 10, "object": 10, "goal": 1, "10": 9, "90": 20}
