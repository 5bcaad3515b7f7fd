"""The page in a real browser: it loads without complaint or network, fits a phone, and its videos play."""

from __future__ import annotations

import shutil

import pytest

from anyvla.report.run_report import write_report
from tests import chromium
from tests.fake_run import make_run

pytestmark = pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "quickstart"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_run_without_a_simulator_fits(browser, tmp_path, width):
    run = make_run(tmp_path / "so101")
    shutil.rmtree(run / "eval")
    (run / "checkpoint/config.yaml").write_text("name: mine\ndata:\n  sources: [{path: data/so101}]\n")
    browser.open(write_report(run), width, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert browser.evaluate("document.querySelector('#usage h2').textContent") == "How to evaluate it"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_loads_without_errors_and_fits(browser, index, width, dark):
    browser.open(index, width, dark=dark, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requests()} <= {"file", "data"}
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == dark


def test_the_pair_starts_by_itself_and_has_a_button(browser, index):
    browser.open(index, 1280)
    videos = "[...document.querySelectorAll('.hero video')]"
    assert browser.evaluate(f"{videos}.length") == 2
    browser.wait(f"{videos}.every(v => v.currentTime > 0.2 && v.videoWidth == 240)")
    button = "document.querySelector('#pair .both')"
    browser.evaluate(f"{button}.click()")
    browser.wait(f"{videos}.every(v => v.paused) && {button}.textContent == 'Play both'")
    browser.evaluate(f"{button}.click()")
    browser.wait(f"{videos}.some(v => !v.paused) && {button}.textContent == 'Pause both'")
    browser.wait(f"{videos}.every(v => v.ended)")
    browser.wait(f"{videos}.every(v => !v.ended && v.currentTime > 0)")  # once more, both together
    assert browser.evaluate("[...document.querySelectorAll('video')].filter(v => !v.paused).length") == 2


def test_every_video_can_be_decoded(browser, index):
    browser.open(index, 1280)
    browser.evaluate("document.querySelectorAll('video').forEach(v => { v.preload = 'auto'; })")
    browser.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && v.videoWidth == 240)")
    assert browser.evaluate("[...document.querySelectorAll('video')].filter(v => v.error).length") == 0


def test_reduced_motion_is_respected(browser, index):
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    browser("Page.navigate", url=index.as_uri())
    browser.wait("document.readyState == 'complete'")
    assert browser.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")
    assert browser.evaluate("document.querySelector('#pair .both').textContent") == "Play both"
