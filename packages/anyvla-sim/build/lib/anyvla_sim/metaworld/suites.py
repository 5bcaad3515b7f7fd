"""The suites of Meta-World (arXiv 1910.10897): MT10, MT50, ML45, and `half-open`, which needs the instruction.

On the stock tasks the start state gives the task away (a closed drawer can only be opened), so a policy that ignores
its instruction scores 100 %. In `half-open` the drawer and the window start half open, both instructions of a pair
share a scene and its start states, goal markers are hidden, and success is judged at the instructed goal.

Meta-World has no language; anyvla adds the phrases, in `phrases.json`. MT50 is split by difficulty as in arXiv
2206.14244, which SmolVLA and others report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from anyvla_sim.base import Suite, Task

CONTROL_STEPS = 500  # horizon of a stock episode in control steps of 80 Hz, as published
HALF_OPEN_STEPS = 200


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
_STOCK_SCENES = {task: SceneConfig(f"{task}-v3") for task in _STOCK}
NAMES = ("half-open", "mt10", "mt50", "ml45-train", "ml45-test")


def get_scenes(suite: str) -> dict[str, SceneConfig]:
    """Return the scenes of a suite by name."""
    return _HALF_OPEN_SCENES if suite == "half-open" else _STOCK_SCENES


def make_suite(name: str, repeat: int) -> Suite:
    """Return the suite `name`, one of NAMES, for actions of `repeat` control steps."""
    if name == "half-open":
        tasks = [Task(task, task.partition("-")[0], phrases, _STOCK[task][1:]) for task, phrases in _HALF_OPEN.items()]
        return Suite(name, tasks, HALF_OPEN_STEPS // repeat)
    chosen = {
        "mt10": list(_STOCK)[:10],
        "mt50": list(_STOCK),
        "ml45-train": [task for task in _STOCK if task not in HELD_OUT],
        "ml45-test": list(HELD_OUT),
    }[name]
    tasks = [Task(task, task, _STOCK[task][:1], _STOCK[task][1:]) for task in chosen]
    groups = DIFFICULTY if name == "mt50" else {}
    return Suite(name, tasks, CONTROL_STEPS // repeat, episodes=10 if name == "mt50" else 20, groups=groups)
