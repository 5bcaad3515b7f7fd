"""The contents of the page: its numbers are those of the analysis, and no cell is left out."""

import base64
import json
from dataclasses import replace

import pytest

from anyvla.cli.study.command import main
from anyvla.study.analysis.analyze import analyze
from anyvla.study.file import Comparison
from anyvla.study.page.cell_rows import list_cells, sum_minutes
from anyvla.study.page.write import to_json, write_page
from anyvla.study.sources import Sources
from tests.report.reading import Page, plain
from tests.study.small_study import BENCHMARK, make_study, sample_lines
from tests.study.test_sources import write

AXES = {"head": {"none": {}, "gru": {}}, "model.chunk": [4, 8, 16]}
COMPARISONS = (
    Comparison(name="Does it help?", axis="head", claim="someone: it hurts"),
    Comparison(name="Chunks", axis="model.chunk", kind="curve", by="head"),
    Comparison(name="Cost", axis="head", kind="cost"),
)
ERROR = "train: ValueError: <the> loss is NaN"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    study = make_study(AXES, *COMPARISONS)
    lines = sample_lines(study, lambda labels: 0.8 if labels["head"] == "gru" else 0.3, spread=0.05)
    costs = {"none": 1.0, "gru": 3.0}
    lines = [
        replace(
            line,
            costs={"minutes.train": costs[line.labels["head"]], "minutes.collect": 2.0},
            recipe={"model": {"head": line.labels["head"]}},
            keys={
                "collect.0": "collect-shared",
                "train.1": f"train-{line.cell}",
                "evaluate.2": f"evaluate-{line.cell}",
            },
            versions={"torch": "2.13" if line.seed else "2.12"},
        )
        for line in lines
    ]
    lines[3] = replace(lines[3], state="failed", error=ERROR, episodes=())
    lines[4] = replace(lines[4], state="invalid", error="model.chunk: 8 is odd", episodes=())
    folder = tmp_path_factory.mktemp("study")
    return Sources(study, "it's mine.yaml", folder / "store.jsonl", tuple(lines[:-2]), ("head=lstm",))


@pytest.fixture(scope="module")
def analysis(sources):
    return analyze(sources.study, sources.lines)


@pytest.fixture(scope="module")
def page(sources, analysis, tmp_path_factory):
    return Page(write_page(sources, analysis, tmp_path_factory.mktemp("page") / "small.html"))


def test_question_and_answer_are_at_its_head(page, analysis):
    head = page.text("head")
    assert "Does it help?" in head
    assert analysis.answer in head


def test_missing_and_failed_cells_are_counted_at_its_head(page):
    notes = [" ".join(text.split()) for text in page.paragraphs("missing")]
    assert notes[0].startswith("2 of 18 cells are missing. anyvla study run &#39;it&#39;")
    assert notes[1] == "2 of 18 cells have no result: reasons."
    assert notes[2] == "The store has 1 more cell, which the study file does not plan: head=lstm."
    assert "14 of 18 cells done" in page.text("head")


def test_each_test_has_its_numbers_verdict_and_sample(page, analysis):
    (finding,) = analysis.results[0].findings
    text = plain(page.text("comparison-1"))
    assert "Others found: someone: it hurts" in text
    rows = page.rows("comparison-1")
    assert rows[1][:3] == [
        finding.name,
        f"{100 * finding.value:+.1f}",
        f"{100 * finding.low:+.1f} to {100 * finding.high:+.1f}",
    ]
    bar = rows[1][3]
    reach = float(rows[0][3].split("+")[-1]) / 100
    assert (bar.left, bar.width) == pytest.approx((50, 50 * finding.value / reach), abs=0.01)
    assert rows[2][0].startswith(f"{finding.verdict} 3 training seeds, {finding.states} start states")
    assert "crossed test" in rows[2][0]


def test_each_row_of_a_table_has_its_rate(page, analysis):
    rows = [row for row in page.rows("tables") if len(row) == 4 and row[0].startswith("head")]
    expected = [row for row in analysis.tables[0].rows if row.rate is not None]
    assert len(rows) == len(expected)
    for row, own in zip(rows, expected, strict=True):
        assert row[1] == f"{100 * own.rate.value:.1f}".removesuffix(".0") + " %"
        assert row[3].width == pytest.approx(100 * own.rate.value, abs=0.01)
        assert all(label in row[0] for label in own.labels.values())
    assert "failed" in page.text("tables")
    assert "missing" in page.text("tables")


def test_cells_without_a_result_have_their_reasons(page):
    text = page.text("lost")
    assert ERROR in text
    assert "model.chunk: 8 is odd" in text
    assert text.index("failed") < text.index("invalid") < text.index("not run yet")
    assert "gru, 16, seed 2" in text


def test_every_cell_has_its_recipe_and_its_command(page, sources):
    text = page.text("cells")
    assert text.count("It has not been run.") == 2
    for line in sources.lines:
        assert f"anyvla study run 'it'\"'\"'s mine.yaml' --only {line.cell} " in f"{text} "
    assert text.count("head: gru") == sum(line.labels["head"] == "gru" for line in sources.lines)


def test_versions_are_counted_where_they_differ(page, sources):
    counts = {v: sum(line.versions["torch"] == v for line in sources.lines) for v in ("2.12", "2.13")}
    assert f"2.13 ({counts['2.13']} cells); 2.12 ({counts['2.12']} cells)" in page.text("made")


def test_a_comparison_of_obeyed_instructions_does_not_call_them_success(sources, tmp_path):
    study = replace(sources.study, comparisons=(Comparison(name="Obeyed?", axis="head", measure="obeyed"),))
    own = replace(sources, study=study)
    text = write_page(own, analyze(study, own.lines), tmp_path / "obeyed.html").read_text()
    assert "original, instruction obeyed" in text
    assert "Instruction obeyed by head" in text
    assert "Success by head" not in text


def test_it_needs_nothing_beside_it(page):
    assert not page.all("link")[1:]
    assert all("src" not in tag for name in ("script", "img") for tag in page.all(name))


def test_shared_jobs_count_once_in_the_hours(sources):
    trained = sum(line.costs["minutes.train"] for line in sources.lines)
    assert sum_minutes(sources.lines) == pytest.approx(trained + 2.0)


def test_json_has_the_whole_analysis(sources, analysis):
    found = json.loads(json.dumps(to_json(sources, analysis), allow_nan=False))
    assert found["answer"] == analysis.answer
    assert found["cells"] == {"planned": 18, "done": 14, "failed": 1, "invalid": 1, "missing": 2}
    assert found["results"][0]["findings"][0]["value"] == pytest.approx(analysis.results[0].findings[0].value)
    assert found["tables"][0]["rows"][0]["rate"]["value"] == pytest.approx(analysis.tables[0].rows[0].rate.value)


def test_videos_of_the_best_and_worst_cell_are_in_the_page(sources, analysis, tmp_path):
    cells = [cell for cell in list_cells(sources, analysis.tables) if cell.score]
    best, worst = (choose(cells, key=lambda cell: cell.score.value) for choose in (max, min))
    entry = {
        "instructed": "push",
        "condition": "original",
        "instruction": "push it",
        "reached": None,
        "seed": 3,
        "steps": 9,
    }
    for cell, name in ((best, "best"), (worst, "worst"), (cells[1], "middle")):
        videos = tmp_path / "made" / cell.line.keys["evaluate.2"] / "videos"
        videos.mkdir(parents=True)
        entries = []
        for success in (False, True):
            file = f"{name}{success}.mp4"
            (videos / file).write_bytes(file.encode())
            entries.append(entry | {"file": file, "task": "push", "success": success})
        (videos / "index.json").write_text(json.dumps(entries))
    page = Page(write_page(replace(sources, store=tmp_path / "store.jsonl"), analysis, tmp_path / "page.html"))
    shown = [base64.b64decode(film.video.partition("base64,")[2]).decode() for film in page.films]
    assert shown == ["bestTrue.mp4", "bestFalse.mp4", "worstFalse.mp4", "worstTrue.mp4"]
    assert page.films[0].heading.startswith(f"Best cell on {BENCHMARK}: {best.line.cell}")


def test_a_store_without_finished_cells_has_a_page(sources, tmp_path):
    lines = tuple(line for line in sources.lines if line.state != "done")
    empty = replace(sources, lines=lines)
    page = Page(write_page(empty, analyze(empty.study, lines), tmp_path / "page.html"))
    assert "There are no results yet" in page.text("head")
    assert "No cell has been evaluated yet." in page.text("tables")


def test_the_command_writes_the_page_beside_the_store_or_prints_json(tmp_path, capsys):
    file = write(tmp_path)
    assert main(["report", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "small.html")
    assert f"{BENCHMARK}, original" in (tmp_path / "small.html").read_text()
    (tmp_path / "small.html").unlink()
    assert main(["report", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"]["planned"] == 8
    assert not (tmp_path / "small.html").exists()
    assert main(["report", str(file), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").is_file()
