from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from anyvla.cli import compare as command
from anyvla.config import ConfigError
from anyvla.evaluation.results import EpisodeResult, append_result
from anyvla.report.comparison import make_labels, write_comparison_report
from tests import chromium
from tests.fake_run import write_results
from tests.report.reading import Page, plain

PROTOCOL = {"horizon": 250, "episodes": 20, "settings": {"render": "fast", "cameras": {"corner": [96, 96]}}}


def episode(condition, task, seed, won, **given):
    values = {
        "benchmark": "toy/line", "condition": condition, "task": task, "instructed": task,
        "instruction": f"go <{task}>",
        "seed": seed, "outcome": "success" if won else "failure", "reached": task if won else None, "steps": 9,
        "latency_ms": 10.0, "checkpoint": "aaaa", "protocol": PROTOCOL, "policy": {"execute": 4},
    }  # fmt: skip
    return EpisodeResult(**(values | given))


def evaluation(folder, rates, **given):
    """Write results with `rates[condition]` successes in each 20 episodes of two tasks."""
    lines = [
        episode(condition, task, seed, seed < won, **given)
        for condition, won in rates.items()
        for task in ("left", "right")
        for seed in range(20)
    ]
    write_results(folder / "results.jsonl", lines)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    a = evaluation(root / "small" / "eval", {"original": 8, "original+light=dim": 4}, versions={"torch": "2.13.0"})
    b = evaluation(root / "large" / "eval", {"original": 15, "original+light=dim": 4, "empty": 1}, checkpoint="bbbb")
    more = {**PROTOCOL, "episodes": 30}  # the number alone may differ
    c = evaluation(root / "other" / "eval", {"original": 8, "original+light=dim": 6}, checkpoint="cccc", protocol=more)
    # These have no partner: an error, and an episode that only one evaluation has.
    append_result(a / "results.jsonl", episode("original", "left", 20, False, outcome="error"))
    append_result(b / "results.jsonl", episode("original", "left", 20, True, checkpoint="bbbb"))
    append_result(b / "results.jsonl", episode("original", "left", 21, True, checkpoint="bbbb"))
    return a, b, c


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    return write_comparison_report(folders, tmp_path_factory.mktemp("page") / "deep" / "compare.html")


def test_the_sentences_state_significant_and_open_differences(page):
    head = plain(Page(page).text("head"))
    assert "large is better than small: 75 % against 40 %, a difference of +35 points (95 % interval +" in head
    assert "over 40 shared episodes" in head
    assert "other and small do not differ significantly: 40 % against 40 %, a difference of 0 points" in head


def test_every_number_is_over_the_shared_episodes(page):
    read = Page(page)
    overall = plain(read.text("overall"))
    assert "small 16 /40 40 %" in overall
    assert "large 30 /40 75 %" in overall
    assert "corrected for 2 comparisons (Holm)" in overall
    assert "+35 14 / 0" in overall
    assert "left small 8 /20 40 %" in plain(read.text("tasks")).replace(
        "Policy Episodes Success 95 % interval 0 to 100 % ", ""
    )
    conditions = plain(read.text("conditions"))
    assert "original+light=dim" in conditions
    assert "other 12 /40 30 %" in conditions
    assert "empty" not in conditions  # only one has it
    assert "<left>" not in page.read_text()


def test_the_properties_of_each_policy_are_listed(page):
    protocol = plain(Page(page).text("protocol"))
    for words in ("checkpoint aaaa bbbb cccc", "torch 2.13.0 not given not given", "simulator errors 1 episodes 0"):
        assert words in protocol
    assert "episodes 20; 30 settings.render fast settings.cameras corner 96x96" in protocol


def test_chains_are_compared_by_their_length(tmp_path):
    chain = {"instructed": "chain", "length": 5, "extra": {"chain": list("abcde")}}
    for name, done in (("a", 1), ("b", 3)):
        for seed in range(12):
            one = episode("original", "chain", seed, False, completed=done, **chain)
            append_result(tmp_path / name / "results.jsonl", one)
    read = Page(write_comparison_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html"))
    assert "average length +2.00 (+2.00 to +2.00)" in plain(read.text("overall"))
    assert "tasks" not in read.sections


def test_incomparable_evaluations_are_refused_without_a_page(folders, tmp_path):
    page = tmp_path / "page.html"
    with pytest.raises(ConfigError, match="at least two evaluations"):
        write_comparison_report(folders[:1], page)
    with pytest.raises(ConfigError, match="one occurs twice"):
        write_comparison_report([folders[0], folders[0]], page)
    with pytest.raises(ConfigError, match="too few episodes of empty in common"):
        write_comparison_report(folders, page, "empty")
    other = evaluation(tmp_path / "native", {"original": 8}, protocol={**PROTOCOL, "horizon": 300})
    with pytest.raises(ConfigError, match="different protocols and cannot be compared: horizon: 250, 300"):
        write_comparison_report([folders[0], other], page)
    assert not page.exists()


def test_labels_are_the_shortest_distinct_paths():
    assert make_labels([Path("/r/small/eval"), Path("/r/large/eval")]) == ["small", "large"]
    assert make_labels([Path("/a/run/eval"), Path("/b/run/eval")]) == ["a/run", "b/run"]
    assert make_labels([Path("/r/run/eval"), Path("/r/run/eval-libero-goal")]) == ["run", "eval-libero-goal"]
    assert make_labels([Path("/r/run/eval"), Path("/r/run")]) == ["eval", "run"]


def test_the_command_writes_it_too(folders, tmp_path, capsys):
    page = tmp_path / "page.html"
    runs = [str(f.parent) for f in folders[:2]]
    assert command.main([*runs, "--condition", "original+light=dim", "--page", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[runs[1]]["difference"]["value"] == 0
    assert "do not differ significantly: 20 % against 20 %" in plain(Page(page).text("head"))


def test_different_instructions_are_refused(folders, tmp_path):
    line = episode("original", "left", 0, True)
    for seed in range(10):
        other = dataclasses.replace(line, seed=seed, instruction="walk")
        append_result(tmp_path / "b" / "results.jsonl", other)
    with pytest.raises(ConfigError, match="given different instructions, first in original-left-0"):
        write_comparison_report([folders[0], tmp_path / "b"], tmp_path / "page.html")


@pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_loads_without_errors_and_fits(browser, page, width, dark):
    browser.open(page, width, dark=dark, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requests()} <= {"file", "data"}
