from __future__ import annotations

from pathlib import Path

import pytest

from anyvla.data.formats.rlds.oxe import find_entry
from anyvla.data.training.presets import expand, presets


def _make_data_set(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text("{}")
    return folder


# As published: OXE_MAGIC_SOUP of prismatic/vla/datasets/rlds/oxe/mixtures.py in github.com/openvla/openvla.
SOUP = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_orig": 1.0,
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    "language_table": 0.1,
    "stanford_hydra_dataset_converted_externally_to_rlds": 2.0,
    "austin_buds_dataset_converted_externally_to_rlds": 1.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 2.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "dlr_edan_shared_control_converted_externally_to_rlds": 1.0,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}


def test_mixtures_have_the_data_sets_and_weights_of_openvla() -> None:
    assert presets() == {
        "oxe_magic_soup": SOUP,
        "oxe_magic_soup_plus": SOUP | {"bc_z": 0.2, "fmb_dataset": 1.0, "dobbe": 0.2, "droid": 0.06},
        "bridge": {"bridge_orig": 1.0},
        "rt1": {"fractal20220817_data": 1.0},
    }


def test_a_mixture_is_found_below_its_root(tmp_path: Path) -> None:
    paths = {name: _make_data_set(tmp_path / name / "0.1.0") for name in presets()["oxe_magic_soup"]}
    members = expand("oxe_magic_soup", tmp_path)
    assert {m.name: m.path for m in members} == paths
    assert {m.name: m.weight for m in members} == presets()["oxe_magic_soup"]


@pytest.mark.parametrize("folder", ["bridge_orig/1.0.0", "bridge_dataset/1.0.0", "bridge_orig"])
def test_a_folder_may_be_named_by_an_alias_and_have_no_version(tmp_path: Path, folder: str) -> None:
    path = _make_data_set(tmp_path / folder)
    assert [(m.path, m.name) for m in expand("bridge", tmp_path)] == [(path, "bridge_orig")]


def test_the_highest_version_is_taken_unless_the_table_asks_for_one(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0"):
        _make_data_set(tmp_path / "bridge_orig" / version)
    (tmp_path / "bridge_orig" / "2.0.0.incomplete").mkdir()
    assert expand("bridge", tmp_path)[0].path.name == "0.10.0"
    entry = find_entry("bc_z")
    assert entry is not None
    assert entry.version == "0.1.0"
    for version in ("0.1.0", "1.0.0"):
        _make_data_set(tmp_path / "bc_z" / version)
    (found,) = [m for m in expand("oxe_magic_soup_plus", tmp_path, missing="skip") if m.name == "bc_z"]
    assert found.path.name == "0.1.0"


def test_missing_data_sets_are_listed_with_the_searched_folders(tmp_path: Path) -> None:
    _make_data_set(tmp_path / "kuka" / "0.1.0")
    with pytest.raises(ValueError, match="22 of 23 data sets of the mixture 'oxe_magic_soup' are missing") as error:
        expand("oxe_magic_soup", tmp_path)
    assert f"{tmp_path}/bridge_orig/<version> or {tmp_path}/bridge_dataset/<version>" in str(error.value)
    assert f"{tmp_path}/kuka" not in str(error.value)
    assert "missing: skip" in str(error.value)
    assert [m.name for m in expand("oxe_magic_soup", tmp_path, missing="skip")] == ["kuka"]


def test_an_empty_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="put at least one there"):
        expand("rt1", tmp_path, missing="skip")
    with pytest.raises(ValueError, match="which is no folder"):
        expand("rt1", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no mixture 'oxe_magic': did you mean 'oxe_magic_soup'"):
        expand("oxe_magic", tmp_path)
