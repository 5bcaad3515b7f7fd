"""Questions about a labeled frame, in several phrasings, that the picture alone can answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anyvla.demonstrations.metaworld_scene import FrameLabels

LARGE, SMALL = 0.015, 0.001  # fractions of the pixels at which the main object, or another part, counts as visible
APART = 0.06  # fraction of the picture's size by which two parts must differ to be left of, or above, one another
CLEAR, CLEARER = 0.5, 0.8  # visible fractions of a part that questions about its position, or its state, need
_MAIN = {"drawer": "cabinet", "window": "window", "door": "cabinet", "button": "box"}
_WHAT = {
    "drawer": "a cabinet with a drawer",
    "window": "a window",
    "door": "a cabinet with a door",
    "button": "a button on a box",
}

PHRASES = {
    "what": ("What stands on the table?", "Which object is on the table?", "Name the object on the table."),
    "where": ("Where in the picture is the {0}?", "In which part of the picture is the {0}?"),
    "point": ("Point to the {0}.", "Give the position of the {0} in percent of width and height."),
    "color": ("What color is the {0}?", "Which color does the {0} have?", "Name the color of the {0}."),
    "side": ("Is the {0} left or right of the {1}?", "On which side of the {1} is the {0}, left or right?"),
    "height": ("Is the {0} above or below the {1} in the picture?", "Does the {0} appear above or below the {1}?"),
    "state": ("Is the {0} open, half open or closed?", "In which state is the {0}: open, half open or closed?"),
    "amount": ("How far is the {0} open, in percent?", "To what percentage is the {0} open?"),
    "pressed": ("Is the button pressed?", "Is the button pushed down?"),
    "gripper": ("Is the gripper open or closed?", "Are the fingers of the robot open or closed?"),
    "exists": ("Is there a {0} in the picture?", "Can you see a {0}?"),
}


@dataclass(frozen=True)
class Question:
    """A question with its answer."""

    kind: str  # "color of the drawer": answers are balanced within a kind
    question: str
    answer: str


def ask_questions(labels: FrameLabels, count: int, rng: np.random.Generator) -> list[Question]:
    """Return up to `count` questions of different kinds, in random order and phrasing."""
    possible = list(_list_possible(labels, rng))
    chosen = rng.permutation(len(possible))[:count]
    out = []
    for kind, subjects, answer in (possible[i] for i in chosen):
        phrase = PHRASES[kind][rng.integers(len(PHRASES[kind]))].format(*subjects)
        out.append(Question(" ".join((kind, *subjects)) if kind != "exists" else kind, phrase, answer))
    return out


def _list_possible(labels: FrameLabels, rng: np.random.Generator) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield (kind, subjects, answer) for all questions that the picture can answer."""
    main = _MAIN[labels.scene]
    shown = {n: s for n, s in labels.things.items() if s.area >= (LARGE if n == main else SMALL)}
    if main in shown:
        yield "what", (), _WHAT[labels.scene]
        here = bool(rng.random() < 0.5)
        others = [scene for scene in _MAIN if scene != labels.scene]
        yield "exists", (labels.scene if here else str(rng.choice(others)),), "yes" if here else "no"
    for name, part in shown.items():
        if part.color is not None:
            yield "color", (name,), part.color
        located = part.whole and part.clear >= CLEAR
        if located or name == "gripper":
            yield "where", (name,), describe_position(part.x, part.y)
            yield "point", (name,), f"{round(100 * part.x)} {round(100 * part.y)}"
        if name != "gripper" and "gripper" in shown and located:
            gripper = shown["gripper"]
            if abs(gripper.x - part.x) > APART:
                yield "side", ("gripper", name), "left" if gripper.x < part.x else "right"
            if abs(gripper.y - part.y) > APART:
                yield "height", ("gripper", name), "above" if gripper.y < part.y else "below"
    if main in shown and shown[main].whole and shown[main].clear >= CLEARER:
        if labels.scene == "button":
            plain = not 0.2 < labels.opened < 0.8  # neither on the way down nor up
            if plain and "button" in shown and shown["button"].clear >= CLEARER:
                yield "pressed", (), "yes" if labels.opened >= 0.8 else "no"
        else:
            state = "closed" if labels.opened < 0.1 else "open" if labels.opened > 0.85 else "half open"
            if state != "half open" or 0.25 < labels.opened < 0.75:
                yield "state", (labels.scene,), state
            yield "amount", (labels.scene,), f"{10 * round(10 * labels.opened)} %"
    if "gripper" in shown and not 0.5 < labels.gripper < 0.85:
        yield "gripper", (), "open" if labels.gripper >= 0.85 else "closed"


def describe_position(x: float, y: float) -> str:
    """Return the ninth of the picture that contains a point, such as "top left"."""
    row = ("top", "middle", "bottom")[min(int(3 * y), 2)]
    column = ("left", "center", "right")[min(int(3 * x), 2)]
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"
