"""The picture of a structure in a real browser: all words stay on the page and inside their boxes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anyvla.policy import VLA
from anyvla.report.explanation import explain
from anyvla.report.structure import draw_structure
from anyvla.robot.shared_layout import Robot
from tests import chromium
from tests.small import FUSERS, embodiment, model, statistics

pytestmark = pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")

MODELS = {
    "one step": {"readouts": 3},
    "in one sequence": {"history": {"name": "interleaved", "window": 6}, "proprio": "token"},
    "a sequence each": {"history": {"name": "policy_head", "window": 3}, "fuser": FUSERS[2]},
    "a state": {"history": {"name": "recurrent"}, "fuser": FUSERS[4]},
    "a suffix": {
        "history": {"name": "interleaved", "window": 4, "past": "visible"},
        "decoder": "lm_tokens",
        "representation": {"name": "bins", "bins": 16},
        "proprio": "token",
    },
    "all steps and a wide matrix": {"history": {"name": "interleaved", "window": 3}, "decoder": "expert"},
}
INSIDE = """(() => {
  const page = document.querySelector('.page').getBoundingClientRect();
  const out = [...document.querySelectorAll('text')].filter(text => {
    const r = text.getBoundingClientRect();
    return r.left < 0 || r.top < 0 || r.right > page.right || r.bottom > page.bottom;
  });
  const boxes = [...document.querySelectorAll('.box')].map(b => b.getBoundingClientRect());
  const torn = [...document.querySelectorAll('text.middle')].filter(text => {
    const r = text.getBoundingClientRect(), x = (r.left + r.right) / 2, y = (r.top + r.bottom) / 2;
    const box = boxes.find(b => b.left < x && x < b.right && b.top < y && y < b.bottom);
    return box && (r.left < box.left || r.right > box.right);
  });
  const level = [...document.querySelectorAll('text:not([transform])')].map(t => [t, t.getBoundingClientRect()]);
  const crossed = level.filter(([t, r], i) => level.some(([u, s], j) =>
    i < j && r.left < s.right - 1 && s.left < r.right - 1 && r.top < s.bottom - 4 && s.top < r.bottom - 4
  )).map(([t]) => t);
  return [...out, ...torn, ...crossed].map(text => text.textContent);
})()"""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cameras", [("corner", "wrist"), ("left_shoulder_camera", "right_shoulder_camera", "a", "b")])
def test_words_stay_inside(browser, tmp_path, name, cameras):
    torch.manual_seed(0)
    vla = VLA(model(**MODELS[name]), [Robot(replace(embodiment(), cameras=cameras), statistics())]).eval()
    file = tmp_path / "structure.svg"
    file.write_text(draw_structure(explain(vla, name)))
    colors = set()
    for dark in (False, True):
        browser.open(file, 960, dark=dark)
        assert browser.evaluate("document.querySelectorAll('text').length") > 20
        assert browser.evaluate(INSIDE) == []
        assert browser.complaints() == []
        colors.add(browser.evaluate("getComputedStyle(document.querySelector('.page')).fill"))
    assert len(colors) == 2
