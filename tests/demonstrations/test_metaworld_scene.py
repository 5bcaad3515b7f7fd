"""Labels of frames, from masks written out here and from Meta-World."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from anyvla.demonstrations.metaworld_scene import COLORS, VisiblePart, _measure_part, _sample_share
from anyvla.demonstrations.questions import ask_questions
from tests import simulators

if TYPE_CHECKING:
    from anyvla.demonstrations.metaworld_scene import SceneLabeler


HUES = {
    "red": (-15, 15),
    "orange": (20, 40),
    "yellow": (45, 65),
    "green": (90, 150),
    "blue": (210, 260),
    "purple": (270, 310),
}


def test_colors_have_the_hues_of_their_names() -> None:
    """Hues are in degrees; white and black are judged by their brightness."""
    assert set(COLORS) == {*HUES, "white", "black"}
    for name, (low, high) in HUES.items():
        hue, saturation, value = colorsys.rgb_to_hsv(*COLORS[name])
        degrees = 360 * hue
        assert low <= degrees <= high or low <= degrees - 360 <= high, name
        assert saturation > 0.7
        assert value > 0.5
    assert min(COLORS["white"]) > 0.8
    assert max(COLORS["black"]) < 0.1


def test_a_part_in_a_picture() -> None:
    """The picture has 4 rows and 10 columns; the robot hides the right column of the part."""
    mask = np.zeros((4, 10), bool)
    mask[1:3, 1:4] = True
    unhidden = mask.copy()
    unhidden[1:3, 4] = True
    assert _measure_part(mask, unhidden, "blue") == VisiblePart(0.25, 0.5, 6 / 40, True, 0.75, "blue")
    assert _measure_part(np.zeros((4, 10), bool), unhidden, None) is None
    for edge in ((0, 5), (3, 5), (2, 0), (2, 9)):  # cut by the edge, though hidden there
        cut = unhidden.copy()
        cut[edge] = True
        seen = _measure_part(mask, cut, None)
        assert seen is not None
        assert not seen.whole


def test_joints_are_closed_half_open_and_open_equally_often() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([_sample_share(rng) for _ in range(600)])
    groups = [((low <= shares) & (shares <= high)).sum() for low, high in ((0, 0.08), (0.3, 0.7), (0.9, 1))]
    assert sum(groups) == 600
    assert min(groups) > 150


@pytest.fixture(scope="module")
def labeler() -> Iterator[SceneLabeler]:
    simulators.require("metaworld")
    from anyvla.demonstrations.metaworld_scene import SceneLabeler

    made = SceneLabeler(96, "fast")
    yield made
    made.close()


# Motion of a part in the corner view from closed (button: up) to open (pressed), in shares of width and height.
@pytest.mark.parametrize(
    ("scene", "part", "across", "down"),
    [
        ("drawer", "drawer", -0.12, 0.04),
        ("drawer", "handle", -0.15, 0.06),
        ("window", "handle", 0.15, 0.10),
        ("door", "door", -0.30, 0.0),
        ("button", "button", 0.0, 0.06),
    ],
)
def test_labels_follow_the_joint(labeler: SceneLabeler, scene: str, part: str, across: float, down: float):
    from anyvla.demonstrations.metaworld_scene import SCENES, project_points

    labeler.environment.reset(SCENES[scene].task, 3)
    colors = labeler.paint(scene, np.random.default_rng(0))
    found = {}
    for share in (0.0, 1.0):
        labeler.set_joint(scene, share)
        pixels, found[share] = labeler.look(scene, labeler.view(), colors)
        assert found[share].opened == pytest.approx(share)
    before, after = (found[share].things[part] for share in (0.0, 1.0))
    assert [after.x - before.x, after.y - before.y] == pytest.approx([across, down], abs=0.05)
    # Two ways to locate the part: the geom ids of the pixels, and the projection of the geoms' positions.
    sim = labeler.environment.simulation.sim
    geoms = labeler.geoms(SCENES[scene].parts[part])
    projected = project_points(sim.model, sim.data, labeler.view(), sim.data.geom_xpos[geoms]).mean(0)
    assert np.abs(projected - [after.x, after.y]).max() < 0.08
    again, labels = labeler.look(scene, labeler.view(), colors)
    assert np.array_equal(again, pixels)  # rendering ids changes nothing
    assert labels == found[1.0]


def test_the_labeled_color_is_the_visible_color(labeler: SceneLabeler):
    checked = set()
    for number in (1, 3, 4, 5, 7, 8, 14, 17):  # frames of all colors in which nothing hides the box
        pixels, labels = labeler.frame("button", np.random.default_rng(number))
        box = labels.things["box"]
        assert box.clear == 1
        assert labels.things["button"].color != box.color
        shown = pixels[int(box.y * 96) - 1 : int(box.y * 96) + 2, int(box.x * 96) - 1 : int(box.x * 96) + 2]
        seen = np.median(shown.reshape(-1, 3), 0) / 255
        shades = {name: np.array(rgb) * (seen @ rgb) / (np.array(rgb) @ rgb) for name, rgb in COLORS.items()}
        nearest = min(shades, key=lambda name: float(np.abs(shades[name] - seen).sum()))
        if box.color in ("white", "black"):
            assert np.ptp(seen) < 0.1
            assert (seen.mean() > 0.4) == (box.color == "white")
        else:
            assert nearest == box.color
        checked.add(box.color)
    assert checked == set(COLORS)


def test_no_question_is_about_a_hidden_part(labeler: SceneLabeler):
    """Equal generators make equal frames; in the first and the last of these the arm is in front of the handle."""
    hidden = 0
    for number in range(5, 10):
        pixels, labels = labeler.frame("window", np.random.default_rng((100, number)))
        handle = labels.things.get("handle")
        hidden += handle is not None and handle.clear < 0.5
        kinds = {q.kind for q in ask_questions(labels, 99, np.random.default_rng(0))}
        if handle is None or handle.clear < 0.5:
            assert not kinds & {"point handle", "where handle", "side gripper handle"}
    assert hidden == 2
    again, same = labeler.frame("window", np.random.default_rng((100, 9)))
    assert np.array_equal(again, pixels)
    assert same == labels


def test_the_view_is_shifted_by_at_most_12_percent(labeler: SceneLabeler) -> None:
    """Without a generator it is not shifted."""
    still = labeler.view()
    assert (still.height, still.width) == (96, 96)
    boxes = np.array([labeler.view(np.random.default_rng(seed)).box for seed in range(40)]) - still.box
    left, right, top, bottom = boxes.T
    assert np.allclose(left, right)
    assert np.allclose(top, bottom)
    for shift in (left, top):
        assert -0.12 <= shift.min() < -0.08
        assert 0.08 < shift.max() <= 0.12
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.5


def test_a_joint_beyond_its_end_counts_as_at_its_end(labeler: SceneLabeler) -> None:
    labeler.environment.reset("drawer-open", 3)
    for share, opened in ((1.05, 1.0), (-0.05, 0.0)):
        labeler.set_joint("drawer", share)
        assert labeler.look("drawer", labeler.view(), {})[1].opened == opened


def test_the_gripper_is_labeled_by_its_opening(labeler: SceneLabeler) -> None:
    """In Meta-World the last number of an action closes the gripper at 1 and opens it at -1."""
    found = {}
    for command in (-1.0, 1.0):
        labeler.environment.reset("drawer-open", 3)
        for _ in range(15):
            labeler.environment.step(np.array([0, 0, 0, command], np.float32))
        found[command] = labeler.look("drawer", labeler.view(), {})[1].gripper
    assert found[-1.0] > 0.9
    assert found[1.0] < 0.5
