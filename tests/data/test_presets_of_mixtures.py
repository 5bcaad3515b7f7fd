from __future__ import annotations

from pathlib import Path

import pytest

from anyvla.data.formats.oxe import describe
from anyvla.data.presets import expand, presets


def _lay(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text("{}")
    return folder


def test_the_soups_have_the_data_sets_and_weights_of_openvla() -> None:
    soup, plus = presets()["oxe_magic_soup"], presets()["oxe_magic_soup_plus"]
    assert (len(soup), len(plus)) == (23, 27)
    assert soup["language_table"] == 0.1
    assert {n: w for n, w in plus.items() if n not in soup} == {
        "bc_z": 0.2,
        "fmb_dataset": 1.0,
        "dobbe": 0.2,
        "droid": 0.06,
    }


def test_a_mixture_is_found_below_its_root(tmp_path: Path) -> None:
    paths = {name: _lay(tmp_path / name / "0.1.0") for name in presets()["oxe_magic_soup"]}
    members = expand("oxe_magic_soup", tmp_path)
    assert {m.name: m.path for m in members} == paths
    assert {m.name: m.weight for m in members} == presets()["oxe_magic_soup"]


@pytest.mark.parametrize("folder", ["bridge_orig/1.0.0", "bridge_dataset/1.0.0", "bridge_orig"])
def test_a_data_set_may_lie_under_an_alias_and_without_its_version(tmp_path: Path, folder: str) -> None:
    path = _lay(tmp_path / folder)
    assert [(m.path, m.name) for m in expand("bridge", tmp_path)] == [(path, "bridge_orig")]


def test_the_highest_version_is_taken_unless_the_table_asks_for_one(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0"):
        _lay(tmp_path / "bridge_orig" / version)
    (tmp_path / "bridge_orig" / "2.0.0.incomplete").mkdir()
    assert expand("bridge", tmp_path)[0].path.name == "0.10.0"
    entry = describe("bc_z")
    assert entry is not None
    assert entry.version == "0.1.0"
    for version in ("0.1.0", "1.0.0"):
        _lay(tmp_path / "bc_z" / version)
    (found,) = [m for m in expand("oxe_magic_soup_plus", tmp_path, missing="skip") if m.name == "bc_z"]
    assert found.path.name == "0.1.0"


def test_what_is_missing_is_listed_with_where_it_is_looked_for(tmp_path: Path) -> None:
    _lay(tmp_path / "kuka" / "0.1.0")
    with pytest.raises(ValueError, match="22 of 23 data sets of the mixture 'oxe_magic_soup' are missing") as error:
        expand("oxe_magic_soup", tmp_path)
    assert f"{tmp_path}/bridge_orig/<version> or {tmp_path}/bridge_dataset/<version>" in str(error.value)
    assert f"{tmp_path}/kuka" not in str(error.value)
    assert "missing: skip" in str(error.value)
    assert [m.name for m in expand("oxe_magic_soup", tmp_path, missing="skip")] == ["kuka"]


def test_a_mixture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="put at least one there"):
        expand("rt1", tmp_path, missing="skip")
    with pytest.raises(ValueError, match="which is no folder"):
        expand("rt1", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no mixture 'oxe_magic': did you mean 'oxe_magic_soup'"):
        expand("oxe_magic", tmp_path)
