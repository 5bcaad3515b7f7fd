from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from anyvla.config import ConfigError, to_dict
from anyvla.play.checkpoints import SHIPPED, check_robot, choose_suite, read_checkpoint
from anyvla.policy import VLA
from anyvla.types import Observation
from tests.play import fakes


@pytest.fixture
def other(tmp_path):
    """A checkpoint of a robot that no simulator has."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "embodiments.json").write_text(json.dumps([to_dict(fakes.other_robot())]))
    (folder / "config.yaml").write_text("schema: 2\nname: other\n")
    return read_checkpoint(folder, "other")


def test_the_shipped_policy_is_small_and_acts():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) <= 8e6
    vla = VLA.load(SHIPPED)
    images = {camera: np.zeros((96, 96, 3), np.uint8) for camera in ("corner", "wrist")}
    observation = Observation(images, np.array([0, 0.6, 0.2, 1], np.float32))
    [chunk] = vla.act([observation], [vla.start("open the drawer")])
    assert chunk.actions.shape == (8, 4)
    assert "anyvla quickstart" in (SHIPPED / "README.md").read_text()


def test_the_suite_is_that_of_the_recipe_or_the_one_asked_for():
    shipped = read_checkpoint(SHIPPED, "shipped")
    assert choose_suite([shipped, shipped], None) == "metaworld/half-open"
    assert choose_suite([shipped], "metaworld/mt10") == "metaworld/mt10"


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"outputs/x holds no trained policy.*config\.yaml"):
        read_checkpoint(tmp_path, "outputs/x")


def test_policies_of_different_robots_are_not_compared(other):
    shipped = read_checkpoint(SHIPPED, "shipped")
    with pytest.raises(ConfigError, match=r"shipped and other have different robots \(sawyer-metaworld; "):
        choose_suite([shipped, other], None)


def test_a_robot_without_a_simulator_is_refused(other):
    with pytest.raises(ConfigError, match=r"names no benchmark.*no simulator installed here has it"):
        choose_suite([other], None)


@pytest.mark.simulator("metaworld")
def test_the_suites_that_have_the_robot_are_named(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "copy/config.yaml").write_text("schema: 2\nname: mine\n")
    mine = read_checkpoint(tmp_path / "copy", "mine")
    with pytest.raises(ConfigError, match="give --benchmark metaworld/half-open"):
        choose_suite([mine], None)
    with pytest.raises(ConfigError, match=r"metaworld/mt10 simulates another robot \(cart\).*metaworld/half-open"):
        check_robot(mine, fakes.ROBOT, "metaworld/mt10")
