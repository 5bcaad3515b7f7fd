"""The page of an episode in a real browser: it fits, plays, and its cursor is where the video is."""

from __future__ import annotations

import numpy as np
import pytest

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.report.episode import draw_plot, write_episode_report
from tests import chromium
from tests.small import embodiment, episode

in_browser = pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "set"
    write_dataset(root, embodiment(), [episode(15, seed=i) for i in range(2)])
    return write_episode_report(open_dataset(root), 1, root.parent / "page")


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_loads_without_errors_and_fits(browser, index, width, dark):
    browser.open(index, width, dark=dark, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requests()} <= {"file", "data"}


@in_browser
def test_the_cursor_follows_slider_and_video(browser, index):
    browser.open(index, 1280)
    browser.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    cursor = "Number(document.querySelector('.now').getAttribute('x1'))"
    slide = "const s = document.getElementById('time'); s.value = {}; s.dispatchEvent(new Event('input'));"
    browser.evaluate("(() => {" + slide.format(1.4) + "})()")  # the last of 15 steps at 10 a second
    assert browser.evaluate(cursor) == pytest.approx(634)
    browser.wait("[...document.querySelectorAll('video')].every(v => Math.abs(v.currentTime - 1.4) < 0.05)")
    browser.evaluate("(() => {" + slide.format(0.7) + "})()")
    assert browser.evaluate(cursor) == pytest.approx(320)
    browser.evaluate("document.getElementById('play').click()")
    browser.wait(f"{cursor} > 400")
    browser.wait("document.getElementById('play').textContent == 'play'")  # it came to the end
    assert browser.evaluate(cursor) == pytest.approx(634, abs=60)


def test_a_plot_leaves_gaps_where_numbers_are_missing():
    rows = np.array([[0.0], [1.0], [np.nan], [0.5]])
    picture = draw_plot(rows, np.arange(4) / 10, "x")
    assert picture.count("M") == 2
    assert "0 to 1" in picture
    assert "always 3" in draw_plot(np.full((4, 1), 3.0), np.arange(4) / 10, "x")
    assert "&lt;b&gt;" in draw_plot(rows, np.arange(4) / 10, "<b>")
