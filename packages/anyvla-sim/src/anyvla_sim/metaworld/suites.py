"""The suites of Meta-World (arXiv 1910.10897): MT10, MT50, ML45, and `half-open`, which needs the instruction.

On the stock tasks the start state gives the task away (a closed drawer can only be opened), so a policy that ignores
its instruction scores 100 %. In `half-open` the drawer and the window start half open, both instructions of a pair
share a scene and its start states, goal markers are hidden, and success is judged at the instructed goal.

Meta-World has no language; anyvla adds the phrases. MT50 is split by difficulty as in arXiv 2206.14244, which SmolVLA
and others report.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyvla_sim.base import Suite, Task

CONTROL_STEPS = 500  # horizon of a stock episode in control steps of 80 Hz, as published
HALF_OPEN_STEPS = 200


@dataclass(frozen=True)
class SceneConfig:
    """One of Meta-World's environments; all tasks of the scene share its start states."""

    environment: str  # Meta-World's name
    joint: str | None = None  # starts half open; closed is the end of its range at 0. None: the stock start state
    goal_shown: bool = True  # whether the marker of the goal is drawn


# task: instruction, two paraphrases. The first ten are MT10, in its order.
_STOCK = {
    "reach": ("reach the red ball", "move the gripper to the red ball", "touch the red ball with the hand"),
    "push": (
        "push the object to the green ball",
        "slide the object to the green marker",
        "shove the object over to the green ball",
    ),
    "pick-place": (
        "pick up the object and move it to the blue ball",
        "grasp the object and carry it to the blue ball",
        "lift the object to the blue marker",
    ),
    "door-open": ("open the door", "pull the door wide open", "get the door open"),
    "drawer-open": ("open the drawer", "pull the drawer out of the cabinet", "get the drawer open"),
    "drawer-close": ("close the drawer", "push the drawer back into the cabinet", "get the drawer shut"),
    "button-press-topdown": (
        "press the button from above",
        "push down on the button from the top",
        "hit the top of the button",
    ),
    "peg-insert-side": (
        "insert the peg into the hole in the side of the box",
        "put the peg in the box's side hole",
        "stick the peg sideways into the box",
    ),
    "window-open": ("open the window", "slide the window to the open side", "get the window open"),
    "window-close": ("close the window", "slide the window back shut", "get the window shut"),
    "assembly": ("put the ring onto the peg", "place the ring over the peg", "fit the ring on the peg"),
    "basketball": ("put the ball into the basket", "dunk the ball", "drop the ball through the hoop"),
    "bin-picking": (
        "move the object from one bin to the other",
        "take the object out of its bin and put it into the other bin",
        "transfer the object to the second bin",
    ),
    "box-close": ("put the lid on the box", "close the box with its lid", "cover the box"),
    "button-press-topdown-wall": (
        "press the button behind the wall from above",
        "reach over the wall and push the button down",
        "hit the top of the button past the wall",
    ),
    "button-press": ("press the button from the front", "push the button in", "hit the button on the box's front"),
    "button-press-wall": (
        "press the button behind the wall from the front",
        "reach around the wall and push the button in",
        "hit the button past the wall",
    ),
    "coffee-button": (
        "press the button of the coffee machine",
        "start the coffee machine",
        "push the coffee maker's button",
    ),
    "coffee-pull": (
        "pull the mug away from the coffee machine",
        "take the mug back from the coffee maker",
        "drag the mug out from under the coffee machine",
    ),
    "coffee-push": (
        "push the mug under the coffee machine",
        "slide the mug below the coffee maker",
        "put the mug under the coffee spout",
    ),
    "dial-turn": ("turn the dial", "rotate the dial around", "twist the knob"),
    "disassemble": ("take the ring off the peg", "lift the ring from the peg", "remove the ring from its peg"),
    "door-close": ("close the door", "push the door shut", "swing the door closed"),
    "door-lock": ("lock the door", "turn the lock to lock the door", "set the door's lock"),
    "door-unlock": ("unlock the door", "turn the lock to unlock the door", "release the door's lock"),
    "hand-insert": (
        "put the object into the hole in the table",
        "lower the object into the hole",
        "insert the object in the table's hole",
    ),
    "faucet-open": ("open the faucet", "turn the tap on", "rotate the faucet to open it"),
    "faucet-close": ("close the faucet", "turn the tap off", "rotate the faucet to close it"),
    "hammer": (
        "hammer the nail into the wall",
        "drive the nail in with the hammer",
        "hit the nail with the hammer",
    ),
    "handle-press-side": (
        "press the handle down from the side",
        "push the side handle down",
        "lower the handle at the side",
    ),
    "handle-press": ("press the handle down", "push the handle downwards", "lower the handle"),
    "handle-pull-side": (
        "pull the handle up from the side",
        "raise the side handle",
        "lift the handle at the side",
    ),
    "handle-pull": ("pull the handle up", "raise the handle", "lift the handle"),
    "lever-pull": ("pull the lever up", "raise the lever", "lift the lever to the top"),
    "pick-place-wall": (
        "pick up the object and move it over the wall to the ball",
        "carry the object across the wall to the ball",
        "lift the object past the wall to the marker",
    ),
    "pick-out-of-hole": (
        "pick the object out of the hole",
        "lift the object from its hole",
        "take the object out of the hole",
    ),
    "plate-slide": ("slide the plate into the goal", "push the plate into the net", "shove the plate into the cabinet"),
    "plate-slide-side": (
        "slide the plate sideways into the goal",
        "push the plate to the side into the net",
        "shove the plate sideways into the cabinet",
    ),
    "plate-slide-back": (
        "slide the plate back out of the goal",
        "pull the plate back from the net",
        "bring the plate back out of the cabinet",
    ),
    "plate-slide-back-side": (
        "slide the plate sideways out of the goal",
        "pull the plate to the side out of the net",
        "bring the plate sideways out of the cabinet",
    ),
    "peg-unplug-side": (
        "pull the peg out of the box",
        "unplug the peg",
        "take the peg out of the side of the box",
    ),
    "soccer": ("push the ball into the goal", "score with the ball", "shove the ball into the net"),
    "stick-push": (
        "push the container with the stick",
        "use the stick to shove the container",
        "grasp the stick and push the container along",
    ),
    "stick-pull": (
        "pull the container with the stick",
        "use the stick to drag the container",
        "hook the container with the stick and pull it",
    ),
    "push-wall": (
        "push the object around the wall to the ball",
        "slide the object past the wall to the marker",
        "shove the object around the wall to the ball",
    ),
    "push-back": (
        "pull the object back to the ball",
        "drag the object backwards to the marker",
        "slide the object back to the ball",
    ),
    "reach-wall": (
        "reach the ball behind the wall",
        "move the gripper past the wall to the ball",
        "touch the ball beyond the wall",
    ),
    "shelf-place": ("put the object on the shelf", "place the object onto the shelf", "set the object on the shelf"),
    "sweep-into": (
        "sweep the object into the hole",
        "brush the object into the hole",
        "push the object into the table's hole",
    ),
    "sweep": ("sweep the object off the table", "brush the object off the table", "push the object over the edge"),
}
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

_HALF_OPEN = {
    "drawer-open": (
        "open the drawer",
        "pull the drawer open",
        "slide the drawer out",
        "pull out the drawer",
        "draw the drawer towards you",
    ),
    "drawer-close": (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer in",
        "push in the drawer",
        "shut the drawer",
    ),
    "window-open": (
        "open the window",
        "slide the window open",
        "push the window open",
        "open up the window",
        "move the window to open",
    ),
    "window-close": (
        "close the window",
        "slide the window shut",
        "push the window closed",
        "shut the window",
        "move the window to close",
    ),
    "door-open": ("open the door", "pull the door open", "swing the door open", "open up the door", "pull on the door"),
    "button-press-topdown": (
        "press the button from above",
        "push the button down",
        "press down on the button",
        "hit the button from above",
        "press the red button",
    ),
}
_HALF_OPEN_SCENES = {
    "drawer": SceneConfig("drawer-open-v3", "goal_slidey", goal_shown=False),
    "window": SceneConfig("window-open-v3", "window_slide", goal_shown=False),
    "door": SceneConfig("door-open-v3", goal_shown=False),
    "button": SceneConfig("button-press-topdown-v3", goal_shown=False),
}
_STOCK_SCENES = {task: SceneConfig(f"{task}-v3") for task in _STOCK}
NAMES = ("half-open", "mt10", "mt50", "ml45-train", "ml45-test")


def suite_scenes(suite: str) -> dict[str, SceneConfig]:
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
