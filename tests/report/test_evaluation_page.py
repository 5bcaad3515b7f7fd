from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.statistics import summarize
from anyvla.report.evaluation import write_evaluation_report
from tests import chromium, fake_run
from tests.report.reading import Page, plain

TASKS = ("reach", "push")
OTHER = {"reach": "push", "push": "reach"}
PROTOCOL = {
    "horizon": 250,
    "control_hz": 40,
    "groups": {"easy": ["reach"], "hard": ["push"]},
    "settings": {"render": "fast", "cameras": {"corner": [96, 96]}},
    "simulator": {"mujoco": "3.3.0"},
}


def line(condition: str, task: str, seed: int, won: bool, **given: object) -> EpisodeResult:
    instructed = OTHER[task] if condition.startswith("swapped") else task
    values = {
        "benchmark": "metaworld/mt50",
        "condition": condition,
        "task": task,
        "instructed": instructed,
        "instruction": f"{instructed} <it> & stop",
        "seed": seed,
        "outcome": "success" if won else "failure",
        "reached": task if won else instructed if instructed != task else None,
        "steps": 40 + seed,
        "latency_ms": 12.0,
        "checkpoint": "0123456789abcdef",
        "policy": {"execute": 4, "ensemble": "none", "chunk": 8},
        "protocol": PROTOCOL,
        "versions": {"torch": "2.13.0"},
    }
    return EpisodeResult(**{**values, **given})  # type: ignore[arg-type]


def write(folder: Path, lines: Sequence[EpisodeResult]) -> Path:
    fake_run.write_results(folder / "results.jsonl", lines)
    return write_evaluation_report(folder)


def every_condition() -> list[EpisodeResult]:
    conditions = {
        "original": 9,
        "swapped": 1,
        "unrelated": 4,
        "empty": 5,
        "original+light=dim": 6,
        "swapped+light=dim": 2,
    }
    conditions |= {"original+delay=4": 7, "original+delay=8": 3}
    lines = [line(c, task, seed, seed < won) for c, won in conditions.items() for task in TASKS for seed in range(10)]
    lines += [
        line("original+push@20", task, seed, seed < 3, extra={"disturbed_at": 20}) for task in TASKS for seed in (0, 5)
    ]
    lines.append(line("original", "push", 11, False, outcome="error", extra={"error": "the simulator hung"}))
    lines.append(line("original", "push", 12, False, outcome="invalid_action"))
    return lines


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    lines = every_condition()
    fake_run.write_results(folder / "results.jsonl", lines)
    (folder / "videos").mkdir()
    fake_run.film(folder / "videos", [r for r in lines if r.condition in ("original", "swapped") and r.seed in (0, 9)])
    return write_evaluation_report(folder)


def test_the_numbers_equal_the_summary(page: Path) -> None:
    read = Page(page)
    head = plain(read.text("head"))
    assert "metaworld/mt50" in head
    assert "18 of 21 episodes" in head  # the error counts neither way, the invalid one is a failure
    assert "simulator errors: 1 episodes, excluded from the rates" in head
    assert "invalid actions (NaN or infinite): 1 episodes, counted as failures" in head
    assert "Use of language 90 %" in head
    tasks = plain(read.text("tasks"))
    assert "reach 9 /10 90 %" in tasks
    assert "push 9 /11 81.8 %" in tasks
    assert "easy mean over the group's tasks 90 %" in tasks
    assert "Mean over groups groups equally weighted 85.9 %" in tasks


def test_each_kind_of_condition_has_its_table(page: Path) -> None:
    read = Page(page)
    language = plain(read.text("language"))
    for words in (
        "original the task's own instruction",
        "swapped, obeyed the instructed goal",
        "unrelated",
        "empty an empty instruction",
    ):
        assert words in language
    assert "light=dim" not in language
    assert "original the task's own instruction; simulator errors: 1; invalid actions: 1 18 /21" in language
    scene = plain(read.text("generalization"))
    assert scene.index("light Level") < scene.index("as in training") < scene.index("dim 12 /20 60 %")
    assert "push" not in scene
    assert "swapped+light=dim" in plain(read.text("combined"))
    assert "original+push@20: disturbed of 4 episodes; 20 actions to success, median 2 /4" in plain(
        read.text("correction")
    )
    latency = plain(read.text("latency"))
    assert latency.index("0 actions 0 ms") < latency.index("4 actions 100 ms") < latency.index("8 actions 200 ms")
    assert latency.count("a chunk of 8 actions ends before it arrives: the robot holds still 6 /20") == 1
    assert read.html.count('class="dot"') == 3  # and a curve of them
    assert "chains" not in read.sections


def test_a_suite_with_a_chance_level_shows_it_with_pairs_and_curve(tmp_path: Path) -> None:
    tasks = {"d0": ["d0-a", "d0-b"], "d12": ["d12-a", "d12-b"]}
    protocol = {
        **PROTOCOL, "groups": tasks, "chance": 0.5, "pairs": list(tasks.values()),
        "curve": {"axis": "delay, actions", "groups": {"d0": 0, "d12": 12}},
    }  # fmt: skip
    won = {"d0-a", "d0-b", "d12-b"}
    lines = [
        line("original", task, seed, task in won, protocol=protocol)
        for pair in tasks.values()
        for task in pair
        for seed in range(10)
    ]
    read = Page(write(tmp_path, lines))
    assert "30 of 40 episodes" in plain(read.text("head"))
    assert "; chance 50 %" in plain(read.text("head"))
    pairs = plain(read.text("pairs"))
    assert "tested ability: 50 %." in plain(read.text("tasks"))
    assert "d0 pairs: both right 10, one 0, neither 0 20 /20 100 %" in pairs
    assert "d12 pairs: both right 0, one 10, neither 0 10 /20 50 %" in pairs
    assert read.html.count('class="dot"') == 2
    assert read.html.count('class="chance"') == 1
    assert "mean over the group's tasks" not in plain(read.text("tasks"))


def test_protocol_errors_and_published_numbers(page: Path) -> None:
    read = Page(page)
    protocol = plain(read.text("protocol"))
    for words in ("settings.cameras corner 96x96", "simulator.mujoco 3.3.0", "torch 2.13.0", "the simulator hung"):
        assert words in protocol
    published = plain(read.text("published"))
    assert "SmolVLA" in published
    assert "not stated" in published
    assert "85.9 %" in published  # ours, in the measure of theirs
    assert "<it>" not in page.read_text()  # words are escaped


def test_chains(tmp_path: Path) -> None:
    lines = [
        line("original", "chain", seed, done == 3, benchmark="calvin/ABC-D", completed=done, length=3, reached=None,
             extra={"chain": ["a", "b", "c"]})
        for seed, done in enumerate([0, 1, 2, 3])
    ]  # fmt: skip
    read = Page(write(tmp_path, lines))
    assert "Average length 1.50" in plain(read.text("head"))
    assert "1 in a row 3 /4 75 %" in plain(read.text("chains"))
    assert "1.50 tasks" in plain(read.text("published"))
    assert "tasks" not in read.sections


def test_only_what_was_played_has_a_section(tmp_path: Path) -> None:
    read = Page(write(tmp_path, [line("original", "reach", seed, True) for seed in range(3)]))
    assert set(read.sections) == {"head", "tasks", "published", "protocol"}


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_evaluation_report(tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="there are no results to summarize; `anyvla eval` makes them"):
        write_evaluation_report(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_the_terminal_has_the_same_numbers() -> None:
    from rich.console import Console

    from anyvla.cli.summary import table

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(summarize(every_condition())))
    rows = [" ".join(row.split()) for row in console.export_text().splitlines()]
    for row in (
        "original reach 90.0% 59.6% to 98.2% 10",
        "original simulator errors 1",
        "original+light=dim all 60.0%",
    ):
        assert any(found.startswith(row) for found in rows), row
    assert any(found.startswith("original+push@20 after the disturbance 50.0%") for found in rows)


@pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_loads_without_errors_and_fits(browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requests()} <= {"file", "data"}
    browser.evaluate("document.querySelectorAll('video').forEach(v => { v.preload = 'auto'; })")
    browser.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")


@pytest.mark.skipif(chromium.BINARY is None, reason="Chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_of_tasks_fit(browser, tmp_path: Path, width: int) -> None:
    """Names of LIBERO's tasks have no space at which a line could break."""
    long = "put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket"
    lines = [line("original", long, seed, seed == 0) for seed in range(3)]
    (tmp_path / "videos").mkdir()
    fake_run.film(tmp_path / "videos", lines)
    browser.open(write(tmp_path, lines), width, mobile=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    wider = "[...document.querySelectorAll('section, figcaption')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.evaluate(wider) == 0


def test_differing_lines_list_every_value(tmp_path: Path) -> None:
    lines = [line("original", "reach", 0, True), line("original", "reach", 1, True, versions={"torch": "2.14.0"})]
    assert "torch 2.13.0; 2.14.0" in Page(write(tmp_path, lines)).text("protocol")


def test_a_published_number_states_its_measure_and_whether_it_was_checked(page: Path) -> None:
    published = plain(Page(page).text("published"))
    assert "Ours: 21 episodes, tasks: 2." in published
    assert "ALAM + pi0 over all episodes; huggingface.co 86.8 % ours 85.7 % differs" in published
    assert "Diffusion Policy mean over groups; arxiv.org (Table 2) 10.5 % ours 85.9 % unchecked" in published


@pytest.mark.parametrize(("tasks", "noted"), [(2, False), (50, True)])
def test_a_partly_played_suite_is_noted_beside_published_numbers(tmp_path: Path, tasks: int, noted: bool) -> None:
    lines = [line("original", task, 0, True, protocol={**PROTOCOL, "tasks": tasks}) for task in TASKS]
    published = plain(Page(write(tmp_path, lines)).text("published"))
    assert (f"2 of its {tasks} tasks were played" in published) == noted
