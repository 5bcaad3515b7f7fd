from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyvla.config import ConfigError
from anyvla.study.file import matches, read_study
from tests.study.toy import write_study


def test_labels_are_names_or_values(tmp_path: Path) -> None:
    axes = {
        "model.decoder": [{"name": "flow"}, "regression"],
        "training.compile": [True, None],
        "x": {"1": {}, "b": {}},
    }
    study = read_study(write_study(tmp_path, axes=axes, comparisons=[{"name": "a", "axis": "x"}]))
    assert study.labels("model.decoder") == ("flow", "regression")
    assert study.labels("training.compile") == ("true", "null")
    assert study.labels("x") == ("1", "b")


def test_options_are_laid_over_the_file(tmp_path: Path) -> None:
    assert read_study(write_study(tmp_path), ["--seeds", "[7]", "--set.training.steps", "9"]).seeds == (7,)


def test_cells_match_one_or_several_labels() -> None:
    labels = {"a": "1", "b": "x"}
    assert matches(labels, {"a": "1"})
    assert matches(labels, {"a": ["0", "1"], "b": "x"})
    assert not matches(labels, {"a": ["0"], "b": "x"})
    assert matches(labels, {})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"nam": "x"}, "did you mean 'name'"),
        ({"comparisons": []}, "comparisons"),
        (
            {"comparisons": [{"name": "a", "axis": "model.chunks"}]},
            "no axis 'model.chunks'.*did you mean 'model.chunk'",
        ),
        ({"comparisons": [{"name": "a", "axis": "rate", "base": "lw"}]}, "'rate' has no label 'lw'.*low"),
        ({"comparisons": [{"name": "a", "axis": "rate", "where": {"model.chunk": "3"}}]}, "no label '3'"),
        ({"comparisons": [{"name": "a", "axis": "rate"}, {"name": "a", "axis": "model.chunk"}]}, "'a' is there twice"),
        ({"comparisons": [{"name": "a", "axis": "rate", "kind": "curve"}]}, "needs an axis of numbers"),
        ({"comparisons": [{"name": "a", "axis": "rate", "kind": "gap"}]}, "other_condition"),
        ({"comparisons": [{"name": "a", "axis": "rate", "kind": "interaction"}]}, "second axis"),
        ({"exclude": [{"rat": "low"}]}, "exclude, entry 0.*did you mean 'rate'"),
        ({"axes": {"seed": [1]}}, "seeds:"),
        ({"axes": {"rate": []}}, "no values"),
        ({"axes": {"model.chunk": [4, "4"]}}, "the label '4' twice"),
        ({"axes": {"model.fuser": [{"a": 1}]}}, "no short name"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"version": 2}, "reads studies of version 1"),
        ({"name": "a/b"}, "cannot name a folder"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_study(write_study(tmp_path, **keys))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no study file"):
        read_study(tmp_path / "none.yaml")
