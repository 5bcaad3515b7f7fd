from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from anyvla.cli.main import main
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.evaluation.open_loop.recordings import OpenLoopConfig, choose_recordings
from anyvla.evaluation.open_loop.runner import evaluate_open_loop
from anyvla.evaluation.open_loop.summary import summarize_open_loop, write_summary
from anyvla.report.open_loop import film_recordings, format_error, state_open_loop_verdict, write_open_loop_report
from anyvla.report.prediction_curves import draw_horizon, draw_prediction, draw_ratio
from anyvla.report.run_report import write_report
from tests import chromium, small
from tests.report.reading import Page

SPACES = {"small": small.embodiment().action}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the page of three episodes, of which two are shown, and the summary."""
    folder = tmp_path_factory.mktemp("runs") / "kitchen" / "open-loop"
    root = folder.parent / "dataset"
    texts = ["open the <big> drawer", "close it", "press & hold"]
    write_dataset(root, small.embodiment(), [small.episode(12 + i, i, text) for i, text in enumerate(texts)])
    recordings = choose_recordings([small.embodiment()], small.mixture(root), 3)
    results = evaluate_open_loop(small.policy(), recordings, OpenLoopConfig(), folder, checkpoint="abc")
    summary = summarize_open_loop(results, SPACES, "training", 2)
    film_recordings(recordings, results, summary, folder)
    write_summary(folder, summary)
    return write_open_loop_report(folder), summary, {r.key: r for r in results}


def test_the_page_has_the_numbers_of_the_summary(made):
    index, summary, results = made
    page = Page(index)
    head, position, gripper = page.rows("errors")
    assert head[:3] == ["Action group", "Policy", "Executed"]
    for row, group in zip((position, gripper), summary.robots[0].groups, strict=True):
        values = (group.error, group.executed, group.mean_action, group.hold_still)
        assert row[1:5] == [format_error(v, group.unit) for v in values]
        assert row[5].replace(" /", "/") == f"{group.better}/{group.compared} episodes"
    assert "of its training data, so this does not show whether it generalizes" in page.text("head")
    assert len([a for a in page.all("svg") if "curve" in a.get("class", "")]) == 2
    worst = [results[e.key] for e in summary.worst_first]
    assert [a["src"].partition("#")[0] for a in page.all("video")] == [
        f"videos/{r.data[:16]}-{r.episode}-{camera}.mp4" for r in worst[:2] for camera in range(2)
    ]
    assert all((index.parent / a["src"].partition("#")[0]).is_file() for a in page.all("video"))
    assert page.html.count('class="recorded" d=') == 2 * 4  # dims
    assert "open the &lt;big&gt; drawer" in page.html
    assert page.rows("episodes")[1][0] == str(worst[0].number)
    assert "kitchen" in page.sections["head"]


def test_the_report_command_writes_the_page_again(made, capsys):
    index, _, _ = made
    before = index.read_text()
    index.unlink()
    assert main(["report", str(index.parent)]) == 0
    assert capsys.readouterr().out.strip() == str(index)
    assert index.read_text() == before


def test_the_report_of_the_run_gives_the_verdict(made):
    index, summary, _ = made
    page = Page(write_report(index.parents[1]))
    assert state_open_loop_verdict(summary).text in page.text("training")
    assert "../open-loop/index.html" in [a.get("href") for a in page.all("a")]


def test_a_summary_without_its_results_is_refused(made, tmp_path):
    _, summary, _ = made
    write_summary(tmp_path, summary)
    with pytest.raises(ValueError, match="lacks 3 episodes of the summary"):
        write_open_loop_report(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary\.json: 'checkpoint' is required"):
        write_open_loop_report(tmp_path)


@pytest.mark.parametrize(
    ("standings", "split", "tone", "words"),
    [
        (("better", "better"), "validation", "good", "in every group"),
        (("better", "better"), "training", "open", "does not show whether it generalizes"),
        (("better", "equal"), "given", "good", "in position, and equal in gripper (position"),
        (("better", "unclear"), "given", "open", "in position, but not in gripper"),
        (("worse", "unclear"), "given", "bad", "no group clearly better"),
        (("unclear", "unclear"), "given", "open", "no group clearly better"),  # three episodes cannot show more
        (("equal", "equal"), "given", "open", "the same errors"),
    ],
)
def test_the_verdict(made, standings, split, tone, words):
    _, summary, _ = made
    [robot] = summary.robots
    groups = [dataclasses.replace(g, standing=s) for g, s in zip(robot.groups, standings, strict=True)]
    changed = dataclasses.replace(summary, split=split, robots=[dataclasses.replace(robot, groups=groups)])
    verdict = state_open_loop_verdict(changed)
    assert verdict.tone == tone
    assert words in verdict.text


def test_the_executed_curve_is_the_beginning_of_each_chunk():
    times, recorded = np.arange(4) / 10, np.zeros(4)
    chunks = np.array([[1.0, 2, 30], [3, 4, 50]])
    picture = str(draw_prediction(times, recorded, np.array([0, 2]), chunks, "x"))
    [executed] = [part for part in picture.split("<path ") if 'class="executed"' in part]
    [faint] = [part for part in picture.split("<path ") if 'class="faint"' in part]
    heights = [114 - 108 * value / 50 for value in (1, 2, 3, 4)]
    points = executed.split('d="M')[1].partition('"')[0].split("L")
    assert [float(p.split()[1]) for p in points] == pytest.approx(heights, abs=0.051)
    assert [float(p.split()[0]) for p in points] == pytest.approx([6, 215.3, 424.7, 634], abs=0.051)
    assert faint.count("M") == 2
    assert faint.count("L") == 2 + 1  # the second ends with the episode
    assert "-1 to 50" in str(draw_prediction(times, recorded, np.array([0, 2]), chunks, "x", (-1, 1)))


def test_a_long_episode_is_drawn_with_fewer_points():
    steps = np.arange(5000)
    picture = str(draw_prediction(steps / 50, np.sin(steps / 40), steps[::10], np.ones((500, 10)), "x"))
    assert len(picture) < 60_000


def test_drawings_of_a_chunk():
    picture = str(draw_horizon({"line": [1.0, 2.0, None], "mean": [4.0, 4.0, 4.0]}, 1, "cm", "arm"))
    assert picture.count("<circle") == 5
    assert "arm: 1 cm at the first action of a chunk, 2 cm at the last" in picture
    assert draw_horizon({"line": [1.0]}, 1, "cm", "arm")
    with pytest.raises(ValueError, match="no error to draw"):
        draw_horizon({"line": [None]}, 1, "cm", "arm")
    assert 'width="33.33%"' in draw_ratio(0.5, "x")
    assert 'width="100.00%"' in draw_ratio(7, "x")


needs_chromium = pytest.mark.skipif(
    chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)"
)


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_loads_without_errors_and_fits(browser, made, width, dark):
    browser.open(made[0], width, dark=dark, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requests()} <= {"file", "data"}


@needs_chromium
def test_each_cursor_follows_the_video_of_its_own_episode(browser, made):
    browser.open(made[0], 1280)
    browser.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    cursors = "[...document.querySelectorAll('.player')].map(p => Number(p.querySelector('.now').getAttribute('x1')))"
    last = "document.querySelectorAll('.player')[1]"
    slide = "s.value = s.max / 2; s.dispatchEvent(new Event('input'));"
    browser.evaluate(f"(() => {{ const s = {last}.querySelector('.time'); {slide} }})()")
    assert browser.evaluate(cursors) == pytest.approx([6, 320], abs=0.1)
    half = f"Number({last}.querySelector('.time').max) / 2"
    browser.wait(f"[...{last}.querySelectorAll('video')].every(v => Math.abs(v.currentTime - {half}) < 0.05)")
    browser.evaluate("document.querySelector('.play').click()")
    browser.wait(f"{cursors}[0] > 200")
    assert browser.evaluate(cursors)[1] == pytest.approx(320, abs=0.1)
    browser.wait("document.querySelector('.play').textContent == 'play'")
    assert browser.evaluate(cursors)[0] == pytest.approx(634, abs=60)
