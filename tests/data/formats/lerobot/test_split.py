"""Tests of vectors that a LeRobot data set stores in several columns, as DROID does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anyvla.config import build, to_dict
from anyvla.data.open import open_dataset
from anyvla.data.training.mixture import Source, open_source
from anyvla.data.undeclared import UndeclaredError
from tests.data.formats.lerobot.test_package import FIXTURES, SO101

STATE = ("observation.state.joint_position", "observation.state.gripper_position")
ACTION = ("action.joint_position", "action.gripper_position")


@pytest.fixture(params=["v2_image", "v3_image"])
def split(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a data set with joints and gripper in separate columns; the gripper is a single number."""
    root = Path(shutil.copytree(FIXTURES / request.param, tmp_path / "set"))
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for whole, keys in (("observation.state", STATE), ("action", ACTION)):
        for file in root.glob("data/**/*.parquet"):
            table = pq.read_table(file)
            values = np.stack(table[whole].to_numpy())
            table = table.drop_columns([whole]).append_column(keys[0], pa.array(list(values[:, :5])))
            table = table.append_column(keys[1], pa.array(values[:, 5]))
            pq.write_table(table.append_column(f"{whole}.velocity", pa.array(list(values[:, :3]))), file)
        del info["features"][whole]
        for key, size in ((keys[0], 5), (keys[1], 1), (f"{whole}.velocity", 3)):
            info["features"][key] = {"dtype": "float32", "shape": [size], "names": None}
    path.write_text(json.dumps(info))
    return root


def test_columns_are_joined_in_the_declared_order(split: Path) -> None:
    name = "lerobot_v2" if (split / "meta/episodes.jsonl").exists() else "lerobot"
    declared = {"name": name, "state": list(STATE), "action": list(ACTION)}
    whole = open_dataset(FIXTURES / f"{'v2' if name == 'lerobot_v2' else 'v3'}_image", embodiment=SO101)
    source = build(Source, {"path": str(split), "format": declared, "embodiment": to_dict(SO101)})
    dataset = open_source(source)
    assert len(dataset) == len(whole)
    for i in range(len(whole)):
        assert np.array_equal(dataset[i].actions, whole[i].actions)
        assert np.array_equal(dataset[i].proprio, whole[i].proprio)


def test_split_columns_are_proposed(split: Path) -> None:
    with pytest.raises(UndeclaredError) as undeclared:
        open_dataset(split)
    options = undeclared.value.options
    assert (options["state"], options["action"]) == (list(STATE), list(ACTION))
    assert [g.name for g in undeclared.value.plain.action.groups] == list(ACTION)


def test_the_error_about_a_missing_feature_names_the_existing_ones(split: Path) -> None:
    with pytest.raises(ValueError, match=r"has no feature 'action'.*action: \[NAME, NAME\] for several") as refused:
        open_dataset(split, embodiment=SO101)
    assert "action.joint_position" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_error_about_a_missing_feature_names_the_format_of_the_version(split: Path) -> None:
    name = "lerobot_v2" if (split / "meta/episodes.jsonl").exists() else "lerobot"
    with pytest.raises(ValueError, match=f"has no feature 'action': .*format: {{name: {name}, action: NAME}}"):
        open_dataset(split, embodiment=SO101)
