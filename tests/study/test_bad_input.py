"""Bad input to `anyvla study` ends with one clear line and no traceback, before anything runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from anyvla.cli.main import main
from anyvla.study.store import append_cell
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.study.small_study import make_line
from tests.study.toy import write_study


def refuse(capsys: Any, *arguments: str | Path) -> str:
    """Run `anyvla study`, which must fail, and return its message on one line."""
    assert main(["study", *map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return " ".join(said.err.split())


def on(axis: str, **keys: Any) -> dict[str, Any]:
    return {"comparisons": [{"name": "first", "axis": axis, **keys}]}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"axes": {"model.chnk": [2, 4]}} | on("model.chnk"), "did you mean 'chunk'"),
        ({"axes": {"trainin.steps": [2, 4]}} | on("trainin.steps"), "did you mean 'training.steps'"),
        (
            {"axes": {"model.chunk": [0, -4]}} | on("model.chunk"),
            "no cell of the study is valid. The first reason of 2",
        ),
        (on("model.chunk", where={"rate": "mid"}), "the axis 'rate' has no label 'mid'"),
        ({"exclude": [{"model.chunk": "2"}]} | on("model.chunk"), "'first' needs valid cells with 2 labels"),
        (on("model.chunk", tasks=["lefft"]), "toy/line has no task or group 'lefft': did you mean 'left'"),
    ],
)
def test_a_faulty_study_is_refused(tmp_path: Path, capsys: Any, keys: dict[str, Any], said: str) -> None:
    out = tmp_path / "out"
    assert said in refuse(capsys, "run", write_study(tmp_path, **keys), "--out", out)
    assert not out.exists()


def test_a_folder_of_another_study_is_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.yaml").write_text(json.dumps({"name": "other"}))
    path = write_study(tmp_path)
    said = refuse(capsys, "run", path, "--out", tmp_path / "out")
    assert "is the folder of the study 'other', not of 'small': give another --out" in said


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyvla.study.folder.StudyFolder.gigabytes_free", lambda self: 0.1)
    said = refuse(capsys, "run", write_study(tmp_path), "--out", tmp_path / "out")
    assert "the study needs about 1.0 GB more, and the disk of" in said
    assert "has 0.1 GB free: give an --out on another disk, or fewer cells" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["run", "report"])
def test_a_store_of_another_version_is_refused(tmp_path: Path, capsys: Any, verb: str) -> None:
    path, out = write_study(tmp_path), tmp_path / "out"
    out.mkdir()
    line = dataclasses.replace(make_line({"model.chunk": "2", "rate": "low"}, 0, {"left": "11"}), version=99)
    append_cell(out / "store.jsonl", line)
    where = ["--out", out] if verb == "run" else ["--store", out / "store.jsonl"]
    said = refuse(capsys, verb, path, *where)
    assert "line 1: a store of version 99, this anyvla reads 1: run the study into another folder" in said


def test_policies_of_different_protocols_are_not_compared(tmp_path: Path, capsys: Any) -> None:
    path, store = write_study(tmp_path, **on("model.chunk")), tmp_path / "store.jsonl"
    for chunk, horizon in (("2", 50), ("4", 60)):
        protocols = {"metaworld/mt10": {"horizon": horizon, "episodes": 10}}
        for seed in (0, 1):
            labels = {"model.chunk": chunk, "rate": "low"}
            append_cell(store, make_line(labels, seed, {"push": "1101100110"}, protocols=protocols))
    assert main(["study", "report", str(path), "--store", str(store), "--json"]) == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["findings"] == []
    assert "were evaluated under different protocols and cannot be compared: horizon" in result["missing"][0]
    assert main(["study", "report", str(path), "--store", str(store), "--out", str(tmp_path / "page.html")]) == 0
    assert "different protocols" in (tmp_path / "page.html").read_text()
