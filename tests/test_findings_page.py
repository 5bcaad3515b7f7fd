"""The page of findings says what the stores beside the studies say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tools import make_findings_page as tool

from anyvla.config import to_dict
from anyvla.study.file import Comparison
from anyvla.study.store import append_cell
from tests.study.small_study import make_line, make_study, sample_lines


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a study of two labels and two seeds, and an empty page."""
    study = make_study(
        {"history": {"none": {}, "head": {}}, "suite": {"a": {}, "b": {}}},
        Comparison(name="history", axis="history", base="none", by="suite", claim="Others say: it helps."),
        seeds=(0, 1),
    )
    (tmp_path / "studies").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "studies" / "small.yaml").write_text(json.dumps(to_dict(study)))
    for line in sample_lines(study, lambda labels: 0.9 if labels["history"] == "head" else 0.1):
        append_cell(tmp_path / "studies" / "small.jsonl", line)
    (tmp_path / "docs" / "page.md").write_text(
        "# Before\n\n<!-- findings: small -->\nold\n<!-- end of findings -->\n\nBetween\n\n"
        "<!-- findings: other -->\n<!-- end of findings -->\nAfter\n"
    )
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "docs" / "page.md")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["make_findings_page.py", *arguments])
    return tool.main()


def test_findings_replace_the_old_ones_and_the_text_between_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--check") == 1
    assert run(monkeypatch) == 0
    text = (root / "docs" / "page.md").read_text()
    assert text.startswith("# Before\n\n<!-- findings: small -->\n*Does it help?* 8 of 8 cells have results. ")
    assert "old" not in text
    assert "Others say: it helps." in text
    assert "| history head against none, with suite a | +" in text
    assert "No cell of `studies/other.yaml` has been run yet.\n<!-- end of findings -->\nAfter\n" in text
    assert (root / "docs" / "studies" / "small.html").is_file()
    assert run(monkeypatch, "--check") == 0


def test_scores_stand_in_the_row_of_their_label_and_the_column_of_their_group(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    lines = (root / "docs" / "page.md").read_text().splitlines()
    header = lines.index("| history | suite a | suite b |")
    rows = {cells[1].strip(): cells[2:4] for line in lines[header + 2 : header + 4] if (cells := line.split("|"))}
    assert rows.keys() == {"none", "head"}
    assert all(int(cell.split()[0]) > 70 for cell in rows["head"])
    assert all(int(cell.split()[0]) < 30 for cell in rows["none"])


def test_an_unfinished_study_says_how_many_cells_it_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = root / "studies" / "small.jsonl"
    store.unlink()
    append_cell(store, make_line({"history": "none", "suite": "a"}, 0, {"push": "01"}))
    run(monkeypatch)
    assert "1 of 8 cells have results, so that tests are missing" in (root / "docs" / "page.md").read_text()


def test_the_page_of_this_project_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--check") == 0
