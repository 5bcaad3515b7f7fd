"""Meta-World's suites: tasks, phrases, groups and limits, each with its source."""

from __future__ import annotations

import hashlib
import json

import pytest

from anyvla_sim.base import Suite
from anyvla_sim.metaworld.suites import DIFFICULTY, NAMES, get_scenes, make_suite

# Masked World Models (arXiv 2206.14244), appendix F: the groups that SmolVLA, pi0 and others report.
EASY = """button-press button-press-topdown button-press-topdown-wall button-press-wall coffee-button dial-turn
    door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close faucet-open handle-press
    handle-press-side handle-pull handle-pull-side lever-pull plate-slide plate-slide-back plate-slide-back-side
    plate-slide-side reach reach-wall window-close window-open peg-unplug-side"""
MEDIUM = """basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side push-wall soccer sweep
    sweep-into"""
HARD = "assembly hand-insert pick-out-of-hole pick-place push push-back"
VERY_HARD = "shelf-place disassemble stick-pull stick-push pick-place-wall"


@pytest.mark.simulator("metaworld")
def test_tasks_are_those_of_meta_world() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3, MT10_V3

    names = {name: [f"{t.name}-v3" for t in make_suite(name, 2).tasks] for name in NAMES}
    assert names["mt10"] == list(MT10_V3)
    assert set(names["mt50"]) == set(ALL_V3_ENVIRONMENTS)
    assert set(names["ml45-test"]) == set(ML45_V3["test"])
    assert set(names["ml45-train"]) == set(ML45_V3["train"])
    assert {name: len(tasks) for name, tasks in names.items()} == {
        "half-open": 6,
        "chains": 5,
        "mt10": 10,
        "mt50": 50,
        "ml45-train": 45,
        "ml45-test": 5,
        "recall": 10,
    }


def test_difficulty_is_as_published() -> None:
    groups = {"easy": EASY, "medium": MEDIUM, "hard": HARD, "very hard": VERY_HARD}
    assert {group: sorted(tasks) for group, tasks in DIFFICULTY.items()} == {
        group: sorted(tasks.split()) for group, tasks in groups.items()
    }
    assert make_suite("mt50", 1).groups == DIFFICULTY
    assert not any(make_suite(name, 1).groups for name in NAMES if name not in ("mt50", "recall"))


def test_limits_count_actions() -> None:
    """Meta-World's max_path_length is 500 control steps (sawyer_xyz_env.py); half-open has 200, chains 300.

    recall has 80 or 120 after the longest cue and delay of a task, which are in actions.
    """
    assert {name: (make_suite(name, 1).horizon, make_suite(name, 2).horizon) for name in NAMES} == {
        "half-open": (200, 100),
        "chains": (300, 150),
        "mt10": (500, 250),
        "mt50": (500, 250),
        "ml45-train": (500, 250),
        "ml45-test": (500, 250),
        "recall": (24 + 7 + 120, 8 + 51 + 40),
    }


def test_episodes_and_judgment() -> None:
    """SmolVLA (arXiv 2506.01844) and others play ten episodes of each task of MT50; success counts when reached."""
    found = {name: make_suite(name, 1) for name in NAMES}
    assert {name: s.episodes for name, s in found.items()} == dict.fromkeys(NAMES, 20) | {"mt50": 10, "chains": 100}
    starts = dict.fromkeys(NAMES) | {"chains": 1000}
    assert {(s.success_rule, s.starts, s.name) for s in found.values()} == {
        ("reached", starts[name], name) for name in NAMES
    }


def test_pairs_of_half_open_share_their_scene_and_no_marker_shows_the_goal() -> None:
    assert {task.name: task.scene for task in make_suite("half-open", 2).tasks} == {
        "drawer-open": "drawer",
        "drawer-close": "drawer",
        "window-open": "window",
        "window-close": "window",
        "door-open": "door",
        "button-press-topdown": "button",
    }
    found = {name: (s.environment, s.joint, s.goal_shown) for name, s in get_scenes("half-open").items()}
    assert found == {
        "drawer": ("drawer-open-v3", "goal_slidey", False),
        "window": ("window-open-v3", "window_slide", False),
        "door": ("door-open-v3", None, False),
        "button": ("button-press-topdown-v3", None, False),
    }
    for task in make_suite("mt50", 2).tasks:
        scene = get_scenes("mt50")[task.scene]
        assert (task.scene, scene.environment, scene.joint, scene.goal_shown) == (
            task.name,
            f"{task.name}-v3",
            None,
            True,
        )


def make_suites() -> list[Suite]:
    """Return the suites whose tasks differ in their instructions."""
    return [make_suite(name, 2) for name in NAMES if name != "recall"]


@pytest.mark.parametrize("found", make_suites(), ids=lambda found: found.name)
def test_instructions_are_unique_and_no_paraphrase_is_demonstrated(found: Suite) -> None:
    phrases = [phrase for task in found.tasks for phrase in task.instructions]
    assert len(set(phrases)) == len(phrases)
    others = [phrase for task in found.tasks for phrase in task.paraphrases]
    assert len(set(others)) == len(others) == 2 * len(found.tasks)
    assert not set(phrases) & set(others)


# Every phrase is part of the protocol: a policy is evaluated with the phrases that it was trained with. A change makes
# results incomparable with earlier ones, so it must be made here as well.
PHRASE_HASHES = {
    "chains": "cf4841e257e13df5",
    "half-open": "32249f0d316e439b",
    "mt10": "c01ce5dc9af212d9",
    "mt50": "5ce3a88112a2276c",
    "ml45-train": "6921de188e72de7e",
    "ml45-test": "67e0d72227a61f81",
}


@pytest.mark.parametrize("found", make_suites(), ids=lambda found: found.name)
def test_phrases_equal_those_of_earlier_results(found: Suite) -> None:
    phrases = [[task.name, list(task.instructions), list(task.paraphrases)] for task in found.tasks]
    assert hashlib.sha256(json.dumps(phrases).encode()).hexdigest()[:16] == PHRASE_HASHES[found.name]


def test_the_instructions_of_mt10() -> None:
    assert {task.name: list(task.instructions) for task in make_suite("mt10", 2).tasks} == {
        "reach": ["reach the red ball"],
        "push": ["push the object to the green ball"],
        "pick-place": ["pick up the object and move it to the blue ball"],
        "door-open": ["open the door"],
        "drawer-open": ["open the drawer"],
        "drawer-close": ["close the drawer"],
        "button-press-topdown": ["press the button from above"],
        "peg-insert-side": ["insert the peg into the hole in the side of the box"],
        "window-open": ["open the window"],
        "window-close": ["close the window"],
    }
