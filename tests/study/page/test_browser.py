"""The page of 600 cells in a real browser: it is fast, fits a phone, and its filters, legends and choices work."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anyvla.report.video import write_video
from anyvla.study.analysis.analyze import analyze
from anyvla.study.page.write import write_page
from anyvla.study.sources import read_sources
from tests import chromium
from tests.study.page.invented import write_invented
from tests.study.small_study import make_line
from tests.study.test_sources import write

pytestmark = pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")
ROWS = "[...document.querySelectorAll('.table:not([hidden]) .scores tbody tr:not([hidden])')]"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invented")
    sources = read_sources(*write_invented(folder))
    return write_page(sources, analyze(sources.study, sources.lines), folder / "how.html")


def press(browser, label):
    browser.evaluate(f"document.querySelector('fieldset [data-text=\"{label}\"]').click()")


def shown(browser):
    return browser.evaluate("document.querySelector('#shown').textContent")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_600_cells_open_fast_without_errors_and_fit(browser, page, width, dark):
    browser.open(page, width, dark=dark, mobile=width < 500)
    assert page.stat().st_size < 20e6
    browser("Performance.enable")
    used = {metric["name"]: metric["value"] for metric in browser("Performance.getMetrics")["metrics"]}
    assert used["ThreadTime"] < 2  # CPU seconds of the page, whatever else the machine does
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requests()} <= {"file", "data"}
    assert shown(browser) == "200 of 200 settings, 600 of 600 cells"
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == dark


def test_filters_combine_over_axes_and_clear(browser, page):
    browser.open(page, 1280)
    press(browser, "gru")
    press(browser, "interleaved")
    assert shown(browser) == "100 of 200 settings, 300 of 600 cells"
    press(browser, "siglip")
    assert shown(browser) == "20 of 200 settings, 60 of 600 cells"
    texts = browser.evaluate(f"{ROWS}.map(row => row.textContent)")
    assert len(texts) == 20
    assert all("siglip" in text and ("gru" in text or "interleaved" in text) for text in texts)
    assert browser.evaluate("document.querySelectorAll('.cell:not([hidden])').length") == 60
    browser.evaluate("document.querySelector('#clear').click()")
    assert shown(browser) == "200 of 200 settings, 600 of 600 cells"
    assert browser.evaluate("document.querySelectorAll('fieldset [aria-pressed=true]').length") == 0


def test_long_tables_show_their_first_rows_until_asked(browser, page):
    browser.open(page, 1280)
    assert browser.evaluate(f"{ROWS}.length") == 50
    browser.evaluate("document.querySelector('.table:not([hidden]) .more button').click()")
    assert browser.evaluate(f"{ROWS}.length") == 200


def test_tables_can_be_chosen_and_ordered(browser, page):
    browser.open(page, 1280)
    change = "(s, v) => { s = document.querySelector(s); s.value = v; s.dispatchEvent(new Event('change')); }"
    browser.evaluate(f"({change})('#choose-table', '3')")
    assert browser.evaluate("[...document.querySelectorAll('.table:not([hidden]) h3')].map(h => h.textContent)") == [
        "metaworld/chains, original"
    ]
    before = browser.evaluate(f"{ROWS}.map(row => row.textContent)")
    browser.evaluate(f"({change})('#order', 'down')")
    scores = browser.evaluate(f"{ROWS}.map(row => Number(row.dataset.score))")
    assert scores == sorted(scores, reverse=True)
    browser.evaluate(f"({change})('#order', '')")
    assert browser.evaluate(f"{ROWS}.map(row => row.textContent)") == before


def test_all_tables_are_printed_and_no_filter(browser, page):
    browser.open(page, 800)
    visible = "[...document.querySelectorAll('{}')].filter(e => e.offsetParent).length"
    tables = browser.evaluate("document.querySelectorAll('.table').length")
    assert (browser.evaluate(visible.format(".table")), browser.evaluate(visible.format("fieldset"))) == (1, 4)
    browser("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.evaluate(visible.format(".table")) == tables > 1
        assert browser.evaluate(visible.format("fieldset")) == 0
    finally:
        browser("Emulation.setEmulatedMedia", media="")


def test_planned_tests_without_a_result_are_listed_on_demand(browser, tmp_path):
    """A study that has just begun would else be a wall of text."""
    lines = [make_line({"head": "none", "model.chunk": "4"}, 0, {"push": "0110"})]
    sources = read_sources(write(tmp_path, lines, "store.jsonl"), tmp_path / "store.jsonl")
    analysis = analyze(sources.study, sources.lines)
    browser.open(write_page(sources, analysis, tmp_path / "page.html"), 1280)
    shown = "[...document.querySelectorAll('details.missing li')].map(li => [li.textContent, li.offsetParent != null])"
    found = browser.evaluate(shown)
    assert [text for text, _ in found] == [reason for result in analysis.results for reason in result.missing]
    several = [result for result in analysis.results if len(result.missing) > 1]
    assert sum(not visible for _, visible in found) == sum(len(result.missing) for result in several)


def test_a_legend_hides_its_line_and_a_point_picks_its_cells(browser, page):
    browser.open(page, 1280)
    section = "document.querySelector('#comparison-3')"
    browser.evaluate(f"{section}.querySelector('.legend [data-series=\"1\"]').click()")
    line = f"{section}.querySelector('svg [data-series=\"1\"]')"
    assert browser.evaluate(f"getComputedStyle({line}).display") == "none"
    assert browser.evaluate(f"{section}.querySelectorAll('svg .series').length") == 4
    click = "dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    browser.evaluate(f"{section}.querySelector('[data-pick]').{click}")
    assert shown(browser) == "10 of 200 settings, 30 of 600 cells"
    tip = browser.evaluate("document.querySelector('#tip').textContent")
    assert tip.startswith("history none, 1: ")


def test_a_cost_can_be_chosen(browser, page):
    browser.open(page, 1280)
    section = "document.querySelector('#comparison-6')"
    visible = f"[...{section}.querySelectorAll('figure:not([hidden])')].map(f => f.dataset.choice)"
    assert browser.evaluate(visible) == ["minutes of training"]
    browser.evaluate(
        f"(s => {{ s.value = 'parameters'; s.dispatchEvent(new Event('change')); }})({section}.querySelector('select'))"
    )
    assert browser.evaluate(visible) == ["parameters"]


def test_videos_in_the_page_can_be_played(browser, tmp_path):
    labels = {"head": "none", "model.chunk": "4"}
    lines = [make_line(labels, 0, {"push": "01"}, keys={"evaluate.0": "evaluate-1"})]
    file = write(tmp_path, lines, "store.jsonl")
    folder = tmp_path / "made" / "evaluate-1" / "videos"
    folder.mkdir(parents=True)
    write_video(folder / "a.mp4", iter([np.full((240, 240, 3), shade, np.uint8) for shade in range(0, 200, 20)]), 10)
    entry = {"file": "a.mp4", "task": "push", "instructed": "push", "condition": "original", "instruction": "push it"}
    (folder / "index.json").write_text(
        json.dumps([entry | {"success": True, "reached": "push", "seed": 0, "steps": 9}])
    )
    sources = read_sources(file, tmp_path / "store.jsonl")
    browser.open(write_page(sources, analyze(sources.study, sources.lines), tmp_path / "page.html"), 1280)
    browser.evaluate("document.querySelector('video').play()")
    browser.wait(
        "document.querySelector('video').currentTime > 0.2 && document.querySelector('video').videoWidth == 240"
    )
    assert browser.complaints() == []
