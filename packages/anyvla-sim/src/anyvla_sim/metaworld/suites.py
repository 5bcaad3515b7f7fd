"""The suites of Meta-World (arXiv 1910.10897): MT10, MT50, ML45, two that need instructions, and `recall`.

On the stock tasks the start state gives the task away (a closed drawer can only be opened), so a policy that ignores
its instruction scores 100 %. In `half-open` the drawer and the window start half open, both instructions of a pair
share a scene and its start states, goal markers are hidden, and success is judged at the instructed goal.

`chains` has several tasks in a row in a scene of three objects (`chain_tasks`).

Meta-World has no language; anyvla adds the phrases, in `phrases.json`. MT50 is split by difficulty as in arXiv
2206.14244, which SmolVLA and others report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from anyvla_sim.base import Suite, Task
from anyvla_sim.metaworld import recall
from anyvla_sim.metaworld.chain_tasks import COUNT, GOALS, LONGEST, list_chains

CONTROL_STEPS = 500  # horizon of a stock episode in control steps of 80 Hz, as published
HALF_OPEN_STEPS = 200
CHAIN_STEPS = 300  # for each task of a chain
TABLE = "table"  # the scene of `chains`, which Meta-World does not have


@dataclass(frozen=True)
class SceneConfig:
    """One of Meta-World's environments; all tasks of the scene share its start states."""

    environment: str  # Meta-World's name
    joint: str | None = None  # starts half open; closed is the end of its range at 0. None: the stock start state
    goal_shown: bool = True  # whether the marker of the goal is drawn


_PHRASES = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))
# Stock tasks have an instruction and two paraphrases, half-open ones five phrasings. The first ten are MT10, in order.
_STOCK, _HALF_OPEN = (
    {task: tuple(phrases) for task, phrases in _PHRASES[key].items()} for key in ("stock", "half-open")
)
DIFFICULTY = {
    "medium": [
        "basketball",
        "bin-picking",
        "box-close",
        "coffee-pull",
        "coffee-push",
        "hammer",
        "peg-insert-side",
        "push-wall",
        "soccer",
        "sweep",
        "sweep-into",
    ],
    "hard": ["assembly", "hand-insert", "pick-out-of-hole", "pick-place", "push", "push-back"],
    "very hard": ["shelf-place", "disassemble", "stick-pull", "stick-push", "pick-place-wall"],
}
_HARDER = [task for tasks in DIFFICULTY.values() for task in tasks]
DIFFICULTY = {"easy": [task for task in _STOCK if task not in _HARDER], **DIFFICULTY}
HELD_OUT = ("bin-picking", "box-close", "hand-insert", "door-lock", "door-unlock")  # the test tasks of ML45

_HALF_OPEN_SCENES = {
    "drawer": SceneConfig("drawer-open-v3", "goal_slidey", goal_shown=False),
    "window": SceneConfig("window-open-v3", "window_slide", goal_shown=False),
    "door": SceneConfig("door-open-v3", goal_shown=False),
    "button": SceneConfig("button-press-topdown-v3", goal_shown=False),
}
_CHAIN_SCENES = {TABLE: SceneConfig(TABLE, goal_shown=False)}
_STOCK_SCENES = {task: SceneConfig(f"{task}-v3") for task in _STOCK}
_RECALL_SCENES = {
    task: SceneConfig({"reach": "reach-v3", "press": "button-press-topdown-v3"}[scene], goal_shown=False)
    for task, scene in recall.get_scenes().items()
}
NAMES = ("half-open", "chains", "recall", "mt10", "mt50", "ml45-train", "ml45-test")


def get_scenes(suite: str) -> dict[str, SceneConfig]:
    """Return the scenes of a suite by name."""
    named = {"half-open": _HALF_OPEN_SCENES, "chains": _CHAIN_SCENES, "recall": _RECALL_SCENES}
    return named.get(suite, _STOCK_SCENES)


def make_suite(name: str, repeat: int, chain: int = LONGEST) -> Suite:
    """Return the suite `name`, one of NAMES, for actions of `repeat` control steps and chains of `chain` tasks."""
    if name == "half-open":
        tasks = [Task(task, task.partition("-")[0], phrases, _STOCK[task][1:]) for task, phrases in _HALF_OPEN.items()]
        return Suite(name, tasks, HALF_OPEN_STEPS // repeat)
    if name == "recall":
        return recall.make_suite(repeat)
    if name == "chains":
        return _make_chain_suite(repeat, chain)
    chosen = {
        "mt10": list(_STOCK)[:10],
        "mt50": list(_STOCK),
        "ml45-train": [task for task in _STOCK if task not in HELD_OUT],
        "ml45-test": list(HELD_OUT),
    }[name]
    tasks = [Task(task, task, _STOCK[task][:1], _STOCK[task][1:]) for task in chosen]
    groups = DIFFICULTY if name == "mt50" else {}
    return Suite(name, tasks, CONTROL_STEPS // repeat, episodes=10 if name == "mt50" else 20, groups=groups)


def _make_chain_suite(repeat: int, length: int) -> Suite:
    tasks = [Task(name, TABLE, _HALF_OPEN[goal.stock], _STOCK[goal.stock][1:]) for name, goal in GOALS.items()]
    chains = list_chains(length)
    return Suite(
        "chains",
        tasks,
        CHAIN_STEPS // repeat,
        episodes=100,
        starts=COUNT,
        chains=[list(chain.tasks) for chain in chains],
        alternatives=[list(chain.alternatives) for chain in chains],
    )
