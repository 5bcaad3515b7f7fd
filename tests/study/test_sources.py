import dataclasses
import json

import pytest
import yaml

from anyvla.config import ConfigError, to_dict
from anyvla.study.sources import read_sources
from anyvla.study.store import append_cell
from tests.study.small_study import make_line, make_study

STUDY = make_study({"head": {"none": {}, "gru": {}}, "model.chunk": [4, 8]}, seeds=[0, 1])
LINES = [make_line({"head": head, "model.chunk": "4"}, 0, {"push": "0011"}) for head in ("none", "gru")]


def write(folder, lines=LINES, store="small.jsonl", file="small.yaml"):
    (folder / file).write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(STUDY))), sort_keys=False))
    for line in lines:
        append_cell(folder / store, line)
    return folder / file


def test_a_file_and_a_committed_store_are_enough(tmp_path):
    file = write(tmp_path)  # its base recipe does not exist
    sources = read_sources(file)
    assert (len(sources.lines), sources.planned, sources.others) == (2, 8, ())
    assert sources.store == tmp_path / "small.jsonl"


def test_the_store_of_a_run_comes_before_the_committed_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path)
    folder = tmp_path / "outputs/studies/small"
    folder.mkdir(parents=True)
    write(folder, LINES[:1], "store.jsonl", "study.yaml")
    assert len(read_sources(file).lines) == 1
    assert len(read_sources(file, tmp_path / "small.jsonl").lines) == 2
    of_folder = read_sources(folder)
    assert (len(of_folder.lines), of_folder.file) == (1, str(folder))


def test_cells_that_the_file_does_not_plan_are_named_and_left_out(tmp_path):
    other = make_line({"head": "lstm", "model.chunk": "4"}, 0, {"push": "1111"})
    late = make_line({"head": "gru", "model.chunk": "4"}, 7, {"push": "1111"})
    sources = read_sources(write(tmp_path, [*LINES, other, late]))
    assert [line.cell for line in sources.lines] == [line.cell for line in LINES]
    assert sources.others == (other.cell, late.cell)


def test_keys_can_be_set_as_for_the_run(tmp_path):
    assert read_sources(write(tmp_path), overrides=["--seeds", "[0]"]).planned == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "other"}, "the store of the study 'other', not of 'small'"),
        ({"labels": {"neck": "long"}}, "has none of the cells of .*small.yaml; its first cell is head=none"),
    ],
)
def test_a_store_of_another_study_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        read_sources(write(tmp_path, [dataclasses.replace(LINES[0], **change)]))


def test_a_store_of_another_version_is_refused(tmp_path):
    file = write(tmp_path)
    store = tmp_path / "small.jsonl"
    store.write_text(store.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(ConfigError, match="a store of version 9"):
        read_sources(file)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, [])
    with pytest.raises(ConfigError, match=r"neither outputs/studies/small/store.jsonl nor .*small.jsonl"):
        read_sources(file)
    with pytest.raises(ConfigError, match=r"there is no store .*none.jsonl"):
        read_sources(file, tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"it has no study.yaml"):
        read_sources(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no study file .*else.yaml"):
        read_sources(tmp_path / "else.yaml")
