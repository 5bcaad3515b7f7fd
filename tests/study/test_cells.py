from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyvla.config import ConfigError
from anyvla.study.cells import Cell, expand
from anyvla.study.file import read_study
from tests.study.toy import write_study


def cells(path: Path) -> list[Cell]:
    return expand(read_study(path), path)


def test_every_combination_of_labels_and_seeds_is_a_cell(tmp_path: Path) -> None:
    found = cells(write_study(tmp_path, set={"training.steps": 3}))
    assert len(found) == 8
    assert len({cell.name for cell in found}) == 8
    for cell in found:
        assert cell.recipe.model.chunk == int(cell.labels["model.chunk"])
        assert (cell.recipe.training.optim.lr == 3e-4) == (cell.labels["rate"] == "low")
        assert (cell.recipe.training.seed, cell.recipe.training.steps) == (cell.seed, 3)


def test_training_seeds_begin_with_other_weights_unless_the_recipe_sets_their_seed(tmp_path: Path) -> None:
    found = cells(write_study(tmp_path, seeds=[0, 5]))
    assert {(cell.recipe.training.seed, cell.recipe.model.backbone.config.seed) for cell in found} == {(0, 0), (5, 5)}
    fixed = cells(write_study(tmp_path, seeds=[0, 5], set={"model.backbone.seed": 3}))
    assert {(cell.recipe.training.seed, cell.recipe.model.backbone.config.seed) for cell in fixed} == {(0, 3), (5, 3)}


def test_excluded_cells_are_left_out(tmp_path: Path) -> None:
    found = cells(write_study(tmp_path, exclude=[{"model.chunk": "2", "rate": ["low"]}]))
    assert len(found) == 6
    assert ("2", "low") not in {(cell.labels["model.chunk"], cell.labels["rate"]) for cell in found}


def test_a_whole_part_is_a_value_of_an_axis(tmp_path: Path) -> None:
    axes = {"model.fuser": {"small": {"name": "mlp", "widths": [8]}, "none": "identity"}}
    found = cells(write_study(tmp_path, axes=axes, comparisons=[{"name": "a", "axis": "model.fuser"}]))
    assert [cell.recipe.model.fuser.name for cell in found] == ["mlp", "identity"] * 2  # of each seed


def test_keys_of_several_axes_are_joined_and_dotted_ones_are_read(tmp_path: Path) -> None:
    axes = {"a": {"x": {"training.steps": 5}}, "b": {"y": {"training": {"batch_size": 2}}, "z": {}}}
    [first, *_] = cells(write_study(tmp_path, axes=axes, comparisons=[{"name": "a", "axis": "b"}]))
    assert (first.recipe.training.steps, first.recipe.training.batch_size) == (5, 2)


def test_nested_keys_of_set_are_laid_over_the_base_and_replace_nothing_else(tmp_path: Path) -> None:
    [first, *_] = cells(write_study(tmp_path, set={"training": {"batch_size": 3}, "training.steps": 7}))
    assert (first.recipe.training.steps, first.recipe.training.batch_size) == (7, 3)
    assert first.recipe.training.optim.lr == cells(write_study(tmp_path))[0].recipe.training.optim.lr


def test_an_item_of_a_list_is_a_value_of_an_axis(tmp_path: Path) -> None:
    """The other sources, and the other keys of the item, stay as they are."""
    data = {"data": {"sources": [{"path": "a", "weight": 2.0}, {"path": "b"}]}}
    axes = {"where": {"here": {}, "there": data}, "data.sources.0.scale": [0.1, 1.0]}
    found = cells(write_study(tmp_path, data, axes=axes, comparisons=[{"name": "a", "axis": "where"}], seeds=[0]))
    for cell in found:
        first, second = cell.recipe.data.sources
        assert (first.path, first.weight, second.path, second.scale) == ("a", 2.0, "b", 1.0)
        assert str(first.scale) == cell.labels["data.sources.0.scale"]
    axes = {"data.sources.2.scale": [0.1, 1.0]}
    with pytest.raises(ConfigError, match=r"'2' is no item of a list of 2"):
        cells(write_study(tmp_path, data, axes=axes, comparisons=[{"name": "a", "axis": "data.sources.2.scale"}]))


def test_a_cell_whose_recipe_is_refused_is_kept_with_the_reason(tmp_path: Path) -> None:
    axes = {"model.chunk": [2, 4, -1]}
    found = cells(write_study(tmp_path, axes=axes))
    assert [bool(cell.invalid) for cell in found] == [False, False, True] * 2
    assert "model.chunk" in found[-1].invalid


def test_stages_are_read_with_the_seed(tmp_path: Path) -> None:
    chain = {
        "stages": {"pretrain": {"collect": {"seed": 1}, "training": {"seed": 9}}, "last": {"training": {"steps": 1}}}
    }
    found = cells(
        write_study(
            tmp_path,
            recipe=chain,
            axes={"stages.last.training.steps": [1, 3]},
            comparisons=[{"name": "a", "axis": "stages.last.training.steps"}],
        )
    )
    assert [stage.recipe.training.seed for stage in found[2].stages] == [1, 1]
    assert [cell.recipe.training.steps for cell in found] == [1, 3, 1, 3]


ON = [{"name": "a", "axis": "a"}]
CHUNKS = {"axes": {"model.chunk": [2, 4, -1]}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"axes": {"chunk": [2]}, "comparisons": [{"name": "a", "axis": "chunk"}]}, "'chunk' is no field.*model.chunk"),
        ({"axes": {"a": {"x": 3}}, "comparisons": ON}, "keys of a recipe are needed"),
        ({"axes": {"a": {"x": {"modl": {}}}}, "comparisons": ON}, "did you mean 'model'"),
        ({"axes": {"model.chunk": [-1, 0]}}, "no cell of the study is valid"),
        ({"exclude": [{"model.chunk": ["2", "4"]}]}, "leaves nothing"),
        ({"exclude": [{"model.chunk": "2"}]}, "'chunk' needs valid cells with 2 labels"),
        (CHUNKS | {"comparisons": [{"name": "a", "axis": "model.chunk", "against": ["-1"]}]}, "chunk=-1.* is refused"),
        (
            {"axes": {"a": {"x y": {}, "x-y": {}}}, "comparisons": ON},
            "several cells would have the folder a=x-y,seed=0",
        ),
        ({"base": "quickstrat"}, "did you mean 'quickstart'"),
        ({"axes": {"model.chnk": [2]}, "comparisons": [{"name": "a", "axis": "model.chnk"}]}, "did you mean 'chunk'"),
    ],
)
def test_a_study_without_the_cells_that_it_needs_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?is){said}"):
        cells(write_study(tmp_path, **keys))
