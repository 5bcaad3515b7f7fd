"""Answers follow from the labels by rules that are written out here; no simulator is needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from anyvla.demonstrations.metaworld_scene import FrameLabels, VisiblePart
from anyvla.demonstrations.questions import PHRASES, Question, ask_questions, describe_position

CABINET = VisiblePart(0.5, 0.4, 0.2, True, 1.0, "red")
DRAWER = VisiblePart(0.52, 0.41, 0.05, True, 1.0, None)
GRIPPER = VisiblePart(0.3, 0.7, 0.01, True)
OPEN_DRAWER = FrameLabels("drawer", {"cabinet": CABINET, "drawer": DRAWER, "gripper": GRIPPER}, 0.93, 0.9)


def ask(labels: FrameLabels, seed: int = 0) -> dict[str, Question]:
    """Return all questions about a frame by kind."""
    return {q.kind: q for q in ask_questions(labels, 99, np.random.default_rng(seed))}


def get_answers(labels: FrameLabels) -> dict[str, str]:
    return {kind: q.answer for kind, q in ask(labels).items() if kind != "exists"}


def test_every_answer_about_an_open_drawer() -> None:
    assert get_answers(OPEN_DRAWER) == {
        "what": "a cabinet with a drawer",
        "color cabinet": "red",
        "where cabinet": "center",
        "point cabinet": "50 40",
        "side gripper cabinet": "left",
        "height gripper cabinet": "below",
        "where drawer": "center",
        "point drawer": "52 41",
        "side gripper drawer": "left",
        "height gripper drawer": "below",
        "where gripper": "bottom left",
        "point gripper": "30 70",
        "state drawer": "open",
        "amount drawer": "90 %",
        "gripper": "open",
    }


@pytest.mark.parametrize(
    ("x", "y", "side", "height"),
    [
        (0.8, 0.1, "right", "above"),
        (0.2, 0.9, "left", "below"),
        (0.57, 0.33, "right", "above"),
        (0.55, 0.35, None, None),
        (0.45, 0.45, None, None),
    ],
)
def test_sides_are_asked_only_about_parts_that_are_apart(
    x: float, y: float, side: str | None, height: str | None
) -> None:
    """They must differ by more than 6 % of the picture; the cabinet is at (50 %, 40 %)."""
    things = {"cabinet": CABINET, "gripper": VisiblePart(x, y, 0.01, True)}
    found = get_answers(FrameLabels("drawer", things, 0.5, 0.9))
    assert (found.get("side gripper cabinet"), found.get("height gripper cabinet")) == (side, height)


@pytest.mark.parametrize(
    ("opened", "state", "amount"),
    [
        (0.0, "closed", "0 %"),
        (0.09, "closed", "10 %"),
        (0.2, None, "20 %"),
        (0.3, "half open", "30 %"),
        (0.7, "half open", "70 %"),
        (0.8, None, "80 %"),
        (0.86, "open", "90 %"),
        (1.0, "open", "100 %"),
    ],
)
@pytest.mark.parametrize(("scene", "main"), [("drawer", "cabinet"), ("window", "window"), ("door", "cabinet")])
def test_how_far_a_part_is_open(opened: float, state: str | None, amount: str, scene: str, main: str) -> None:
    found = get_answers(FrameLabels(scene, {main: CABINET}, opened, 0.9))
    assert (found.get(f"state {scene}"), found[f"amount {scene}"]) == (state, amount)
    assert "pressed" not in found


@pytest.mark.parametrize(("opened", "pressed"), [(0.0, "no"), (0.2, "no"), (0.3, None), (0.7, None), (0.8, "yes")])
def test_a_button_is_pressed_or_not(opened: float, pressed: str | None) -> None:
    found = get_answers(FrameLabels("button", {"box": CABINET, "button": DRAWER}, opened, 0.9))
    assert found.get("pressed") == pressed
    assert found["what"] == "a button on a box"
    assert not {"state button", "amount button"} & set(found)
    assert "pressed" not in get_answers(FrameLabels("button", {"box": CABINET}, opened, 0.9))


@pytest.mark.parametrize(
    ("gap", "answer"), [(0.0, "closed"), (0.5, "closed"), (0.6, None), (0.84, None), (0.85, "open")]
)
def test_the_gripper_is_open_or_closed(gap: float, answer: str | None) -> None:
    assert get_answers(replace(OPEN_DRAWER, gripper=gap)).get("gripper") == answer
    assert "gripper" not in get_answers(FrameLabels("drawer", {"cabinet": CABINET}, 0.5, gap))


POSITION_KINDS = {"where cabinet", "point cabinet", "side gripper cabinet", "height gripper cabinet"}
STATE_KINDS = {"state drawer", "amount drawer"}


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"whole": False}, POSITION_KINDS | STATE_KINDS),  # the edge cuts it
        ({"clear": 0.49}, POSITION_KINDS | STATE_KINDS),  # the robot hides half of it
        ({"clear": 0.5}, STATE_KINDS),
        ({"clear": 0.79}, STATE_KINDS),
        ({"clear": 0.8}, set()),
        ({"area": 0.0149}, POSITION_KINDS | STATE_KINDS | {"what", "color cabinet"}),
        ({"area": 0.015}, set()),
        ({"color": None}, {"color cabinet"}),
    ],
)
def test_nothing_is_asked_that_the_picture_does_not_show(change: dict[str, object], missing: set[str]) -> None:
    seen = replace(OPEN_DRAWER, things={**OPEN_DRAWER.things, "cabinet": replace(CABINET, **change)})  # type: ignore[arg-type]
    assert set(get_answers(OPEN_DRAWER)) - set(get_answers(seen)) == missing
    assert ("exists" in ask(seen)) == ("what" not in missing)


def test_a_part_counts_from_a_thousandth_of_the_picture() -> None:
    for area, known in ((0.0009, False), (0.001, True)):
        seen = replace(OPEN_DRAWER, things={**OPEN_DRAWER.things, "drawer": replace(DRAWER, area=area)})
        assert ("point drawer" in get_answers(seen)) == known


@pytest.mark.parametrize("scene", ["drawer", "window", "door", "button"])
def test_a_scene_has_its_own_object_and_no_other(scene: str) -> None:
    """Yes and no are equally frequent."""
    main = {"drawer": "cabinet", "window": "window", "door": "cabinet", "button": "box"}[scene]
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(60):
        question = ask(FrameLabels(scene, {main: CABINET}, 0.0, 0.9), seed)["exists"]
        (named,) = (s for s in ("drawer", "window", "door", "button") if s in question.question)
        found[named, question.answer] += 1
    assert {(named == scene, answer) for named, answer in found} == {(True, "yes"), (False, "no")}
    assert len(found) == 4
    assert 15 < found[scene, "yes"] < 45


@pytest.mark.parametrize(
    ("scene", "main", "named"),
    [
        ("drawer", "cabinet", "a cabinet with a drawer"),
        ("window", "window", "a window"),
        ("door", "cabinet", "a cabinet with a door"),
        ("button", "box", "a button on a box"),
    ],
)
def test_each_scene_has_its_name(scene: str, main: str, named: str) -> None:
    assert get_answers(FrameLabels(scene, {main: CABINET}, 0.0, 0.9))["what"] == named


def test_questions_vary_in_their_choice_and_phrasing_with_the_generator_alone() -> None:
    kinds, phrases = Counter(), set()
    for seed in range(60):
        questions = ask_questions(OPEN_DRAWER, 3, np.random.default_rng(seed))
        assert questions == ask_questions(OPEN_DRAWER, 3, np.random.default_rng(seed))
        assert len({q.kind for q in questions}) == 3
        kinds.update(q.kind for q in questions)
        phrases |= {q.question for q in questions if q.kind == "what"}
    assert len(kinds) == 16
    assert max(kinds.values()) < 30
    assert phrases == set(PHRASES["what"])
    assert len(ask_questions(OPEN_DRAWER, 99, np.random.default_rng(0))) == 16


NINTHS = [["top left", "top center", "top right"], ["middle left", "center", "middle right"]]
NINTHS += [["bottom left", "bottom center", "bottom right"]]


def test_positions_in_words() -> None:
    for row, y in enumerate((0.0, 0.5, 1.0)):
        for column, x in enumerate((0.0, 0.5, 1.0)):
            assert describe_position(x, y) == NINTHS[row][column]
    assert [describe_position(x, 0.4) for x in (0.33, 0.34, 0.66, 0.67)] == [
        "middle left",
        "center",
        "center",
        "middle right",
    ]
    assert [describe_position(0.9, y) for y in (0.33, 0.34, 0.66, 0.67)] == [
        "top right",
        "middle right",
        "middle right",
        "bottom right",
    ]
