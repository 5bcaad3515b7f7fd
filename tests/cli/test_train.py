from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anyvla.cli.train import open_data
from anyvla.config import ConfigError, build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import DataConfig
from tests import small


def recipe(data: dict[str, Any]) -> Any:
    return SimpleNamespace(name="mine", data=build(DataConfig, data))


def test_sources_of_a_recipe_go_before_demonstrations_that_were_collected(tmp_path: Path) -> None:
    write_dataset(tmp_path / "run/dataset", small.embodiment(), [small.episode(6)])
    write_dataset(tmp_path / "mine", small.embodiment(), [small.episode(9), small.episode(8)])
    named = open_data(recipe({"sources": [{"path": str(tmp_path / "mine")}]}), tmp_path / "run")
    assert [data.lengths.tolist() for data in named.datasets] == [[9, 8]]
    collected = open_data(recipe({}), tmp_path / "run")
    assert [data.lengths.tolist() for data in collected.datasets] == [[6]]


def test_without_either_the_command_that_collects_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"make them with: anyvla data collect mine"):
        open_data(recipe({}), tmp_path / "run")
