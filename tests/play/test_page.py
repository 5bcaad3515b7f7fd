"""The page in a real browser, with a cart instead of a simulator, and once with Meta-World."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.play.test_server import FakePool, serving

READY = "document.querySelector('#status').textContent.startsWith('Ready')"


def find(selector):
    return f"document.querySelector({json.dumps(selector)})"


def say(browser, text):
    browser.evaluate(f"{find('#text')}.value = {json.dumps(text)}; {find('#go')}.click()")


def press(browser, key):
    browser("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
    browser("Input.dispatchKeyEvent", type="keyUp", key=key)


def drag(browser, at, by):
    """Drag with the mouse, in steps."""
    common = {"button": "left", "buttons": 1, "clickCount": 1}
    browser("Input.dispatchMouseEvent", type="mousePressed", x=at[0], y=at[1], **common)
    for part in (0.5, 1):
        browser("Input.dispatchMouseEvent", type="mouseMoved", x=at[0] + part * by[0], y=at[1] + part * by[1], **common)
    browser("Input.dispatchMouseEvent", type="mouseReleased", x=at[0] + by[0], y=at[1] + by[1], **common)


@pytest.fixture
def cart():
    with serving(FakePool(gains=(0.2,))) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_fits_and_loads_nothing_from_elsewhere(browser, cart, width, dark):
    browser.open(cart, width, dark=dark, mobile=width < 500)
    browser.wait(READY)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {
        address for address in browser.requests() if not address.startswith((cart, "data:", "blob:", "ws:"))
    } == set()
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == dark
    unlabeled = "[...document.querySelectorAll('button, input, canvas')].filter(x => !x.hidden && !x.textContent.trim()"
    assert browser.evaluate(f"{unlabeled} && !x.ariaLabel && !x.labels?.length).length") == 0


def test_it_obeys_and_is_interrupted(browser, cart):
    browser.open(cart, 1280)
    browser.wait(READY)
    say(browser, "go left")
    browser.wait(f"+{find('.pane')}.dataset.step > 3 && {find('.path.next')}.getAttribute('points').includes(' ')")
    browser.evaluate("[...document.querySelectorAll('#chips button')].find(x => x.textContent == 'go right').click()")
    browser.wait(f"!{find('.outcome')}.hidden")
    assert browser.evaluate(f"{find('.outcome')}.textContent").startswith("✓Goal reached: cart right")
    assert browser.evaluate(f"{find('.pane')}.className") == "pane good"
    past = browser.evaluate("[...document.querySelectorAll('#past li')].map(x => x.textContent)")
    assert re.fullmatch(r"go right✓ cart right, \d+ actions", past[0])
    assert past[1] == "go leftinterrupted"
    assert browser.complaints() == []


def test_keys_pause_step_and_start_anew(browser, cart):
    browser.open(cart, 1280)
    browser.wait(READY)
    say(browser, "go left")
    browser.evaluate("document.activeElement.blur()")
    browser.wait(f"+{find('.pane')}.dataset.step > 1")
    press(browser, " ")
    browser.wait(f"{find('#status')}.textContent.startsWith('Paused')")
    steps = browser.evaluate(f"+{find('.pane')}.dataset.step")
    press(browser, ".")
    browser.wait(f"+{find('.pane')}.dataset.step == {steps + 1}")
    press(browser, "r")
    browser.wait(f"{find('#seed')}.value == '1' && {READY}")
    press(browser, "/")
    assert browser.evaluate("document.activeElement.id") == "text"
    press(browser, "r")  # now it is a letter
    assert browser.evaluate(f"{find('#text')}.value").endswith("r")
    assert browser.evaluate(f"{find('#seed')}.value") == "1"


def test_the_ring_is_dragged_and_follows_the_object(browser, cart):
    browser.open(cart, 1280)
    browser.wait(READY)
    browser.wait(f"{find('.wait')}.hidden && !{find('.ring')}.hidden")  # the first picture gives the frame its height
    where = f"(r => [r.x + r.width / 2, r.y + r.height / 2])({find('.ring')}.getBoundingClientRect())"
    at = browser.evaluate(where)
    size = browser.evaluate(f"{find('.picture')}.getBoundingClientRect().width")
    drag(browser, at, (0.2 * size, 0))
    moved = f"({where})[0] - {at[0]}"  # the cart moves by the fraction, which is 2.4 m wide
    browser.wait(f"Math.abs({moved} - {0.2 * size / 2.4}) < 2")


def test_two_policies_are_side_by_side(browser):
    with serving(FakePool(names=("first", "second"), gains=(1.0, 0.5))) as port:
        browser.open(f"http://127.0.0.1:{port}/", 1280)
        browser.wait(READY)
        say(browser, "go left")
        browser.wait("[...document.querySelectorAll('.outcome')].filter(x => !x.hidden).length == 2")
        steps = browser.evaluate("[...document.querySelectorAll('.outcome small')].map(x => parseInt(x.textContent))")
        assert steps == [10, 19]


def test_a_wrong_seed_is_explained_until_the_next_command(browser, cart):
    browser.open(cart, 1280)
    browser.wait(READY)
    for typed in ("-5", ""):
        browser.evaluate(f"{find('#seed')}.value = '{typed}'; {find('#seed')}.dispatchEvent(new Event('change'))")
        browser.wait(f"{find('#error')}.textContent.startsWith('a seed must be a whole number')")
        browser.evaluate(f"{find('#fresh')}.click()")
        browser.wait(f"{find('#error')}.hidden")
    browser.wait(f"{find('#seed')}.value == '2'")


def test_the_error_of_a_simulator_is_still_shown_after_it_was_started_again(browser):
    pool = FakePool(gains=(0.2,))
    with serving(pool) as port:
        browser.open(f"http://127.0.0.1:{port}/", 1280)
        browser.wait(READY)
        pool.robots[0][0].step = lambda action: 1 / 0
        say(browser, "go left")
        browser.wait(f"{find('#error')}.textContent.includes('division by zero')")
        browser.wait(READY)
        assert not browser.evaluate(f"{find('#error')}.hidden")
        say(browser, "go left")
        browser.wait(f"+{find('.pane')}.dataset.step > 1 && {find('#error')}.hidden")


def test_an_instruction_is_shown_as_text(browser, cart):
    browser.open(cart, 1280)
    browser.wait(READY)
    say(browser, "<b>go</b>")
    browser.wait(f"{find('#status')}.textContent.includes('<b>go</b>')")
    assert browser.evaluate(f"{find('#error')}.hidden")


@pytest.mark.simulator("metaworld")
def test_the_drawer_opens(browser, tmp_path):
    """The command itself, with the shipped policy."""
    command = [sys.executable, "-m", "anyvla.cli.main", "play", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stderr is not None
            url = re.search(r"http://127\.0\.0\.1:\d+", server.stderr.readline())
            assert url is not None
            browser.open(url[0] + "/", 1280)
            browser.wait(READY, 120)
            say(browser, "open the drawer")
            browser.wait(f"!{find('.outcome')}.hidden", 120)
            assert browser.evaluate(f"{find('.outcome')}.textContent").startswith("✓Goal reached: drawer open")
            assert browser.complaints() == []
        finally:
            server.terminate()
        assert server.wait(30) == 0
