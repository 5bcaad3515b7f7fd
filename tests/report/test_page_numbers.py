"""Compare the tables, bars and videos of written reports with values computed by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from anyvla.evaluation.results import EpisodeResult
from anyvla.report.comparison import write_comparison_report
from tests import fake_run
from tests.report.reading import Bar, Page
from tests.report.test_comparison_page import episode
from tests.report.test_evaluation_page import OTHER, PROTOCOL, TASKS, line, write

DASH = "\N{EN DASH}"


def limits(won: int, of: int) -> tuple[float, float]:
    """Return the limits in percent."""
    found = binomtest(won, of).proportion_ci(0.95, method="wilson")
    return 100 * found.low, 100 * found.high


def row(name: str, won: int, of: int, kind: str, label: str) -> list[str | Bar]:
    """Return the cells of a share of episodes, and its bar."""
    low, high = limits(won, of)
    share, span = f"{round(100 * won / of, 1):g} %", f"{round(low, 1):g}{DASH}{round(high, 1):g} %"
    text = f"{label}: {won} of {of}, {share}, interval {span}"
    bar = Bar(kind, text, 0, *(pytest.approx(v, abs=0.006) for v in (100 * won / of, low, high)))
    return [name, f"{won} /{of}", share, span, bar]


HEADING = ["Episodes", "Share", "95 % interval", "0 50 100 %"]


def played(won: dict[str, dict[str, str]], **given: Any) -> list[EpisodeResult]:
    """Return results from a mark per seed: + own goal, o other goal, - no goal, ! simulator error."""
    return [
        line(
            condition, task, seed, mark == "+", **given,
            reached={"+": task, "o": OTHER.get(task)}.get(mark),
            outcome={"+": "success", "!": "error"}.get(mark, "failure"),
            extra={"error": "hung"} if mark == "!" else {},
        )
        for condition, tasks in won.items()
        for task, marks in tasks.items()
        for seed, mark in enumerate(marks)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Ten episodes of `reach`, four of `push` and two of `slide`, so that no two means are equal."""
    lines = played(
        {
            "unrelated": {"reach": "++---", "push": "-"},
            "swapped": {"reach": "+oooo-oooo", "push": "oo++"},
            "original": {"reach": "+++++++++-!", "push": "+---", "slide": "++"},
            "empty": {"reach": "+++--"},
            "original+light=dim": {"reach": "++++--", "push": "++--"},
            "original+light=bright": {"reach": "+-----"},
            "original+light=dim+push@9": {"reach": "++--"},
            "swapped+light=dim": {"reach": "+o--"},
            "original+delay=3": {"reach": "++++-", "push": "-"},
            "original+delay=8": {"push": "+--"},
        },
        protocol={**PROTOCOL, "groups": {"easy": ["reach", "slide"], "hard": ["push"]}},
    )
    lines[-1] = dataclasses.replace(lines[-1], outcome="invalid_action", latency_ms=12.0 + 10 * len(lines))
    return Page(write(tmp_path_factory.mktemp("eval"), lines))


def test_each_row_has_its_number(evaluation: Page) -> None:
    rows = evaluation.rows("tasks")
    assert rows[:4] == [
        ["Task", *HEADING],
        row("push", 1, 4, "high", "push"),
        row("reach", 9, 10, "high", "reach"),
        row("slide", 2, 2, "high", "slide"),
    ]
    # The limits of the shares are 0.30416 below and 0.08212 above reach, 0.65762 below slide, 0.20441 and 0.44936 of
    # push. Over tasks: sqrt(0.30416^2 + 0.65762^2 + 0.20441^2) / 3 below (0.9 + 1 + 0.25) / 3, and so on.
    by_hand = [
        ("easy", "mean over the group's tasks", "95 %", 95, 58.77, 99.11),
        ("hard", "mean over the group's tasks", "25 %", 25, 4.56, 69.94),
        ("Mean over tasks", "tasks equally weighted", "71.7 %", 71.67, 46.57, 86.89),
        ("Mean over groups", "groups equally weighted", "60 %", 60, 39.20, 82.56),
    ]
    for cells, (name, detail, share, *ends) in zip(rows[4:], by_hand, strict=True):
        assert cells[:3] == [f"{name} {detail}", "", share]
        bar = cells[4]
        assert isinstance(bar, Bar)
        assert (bar.kind, bar.label) == ("high", f"{name}: {share}, interval {cells[3]}")
        assert [bar.width, bar.low, bar.high] == pytest.approx(ends, abs=0.02)
        assert str(cells[3]) == f"{round(bar.low, 1):g}{DASH}{round(bar.high, 1):g} %"


def test_good_and_bad_rates_have_their_colors(evaluation: Page) -> None:
    other = "the original goal was reached"
    rows = evaluation.rows("language")
    assert rows == [
        ["Instruction", *HEADING],
        row("original the task's own instruction; simulator errors: 1", 12, 16, "high", "original"),
        row(f"swapped another task of the scene was instructed; {other}", 3, 14, "low", "swapped"),
        row("swapped, obeyed the instructed goal was reached first", 10, 14, "high", "swapped, obeyed"),
        row(f"unrelated a task of another scene was instructed; {other}", 2, 6, "neutral", "unrelated"),
        row(f"empty an empty instruction; {other}", 3, 5, "neutral", "empty"),
    ]
    assert evaluation.rows("generalization") == [
        ["Level", *HEADING],
        row("as in training simulator errors: 1", 12, 16, "neutral", "as in training"),
        row("dim", 6, 10, "high", "dim"),
        row("bright", 1, 6, "high", "bright"),
    ]
    assert evaluation.rows("combined") == [
        ["Condition", *HEADING],
        row("original+light=dim+push@9 the task's own instruction", 2, 4, "high", "original+light=dim+push@9"),
        row(f"swapped+light=dim another task of the scene was instructed; {other}", 1, 4, "low", "swapped+light=dim"),
    ]


def test_delays_are_in_milliseconds_of_the_robots_rate(evaluation: Page) -> None:
    still = "a chunk of 8 actions ends before it arrives: the robot holds still"
    assert evaluation.rows("latency") == [
        ["Delay", *HEADING],
        row("0 actions 0 ms", 12, 16, "high", "0 actions"),
        row("3 actions 75 ms", 4, 6, "high", "3 actions"),
        row(f"8 actions 200 ms; {still}", 1, 3, "high", "8 actions"),
    ]


def test_the_head_is_about_the_original_instructions(evaluation: Page) -> None:
    head = " ".join(evaluation.text("head").replace("\N{NO-BREAK SPACE}", " ").split())
    low, high = limits(12, 16)
    assert f"Success, original 75 % 12 of 16 episodes 95 % interval {low:.1f}{DASH}{high:.1f} %" in head
    assert "Mean over groups 60 % mean over tasks 71.7 %" in head
    # Start states played under both: reach 0 to 9 (9 original and 8 swapped right), push 0 to 3 (1 and 2).
    assert "Use of language 71.4 %" in head
    assert "simulator errors: 1 episodes" in head
    assert "counted as failures; out of range and clipped: 0" in head
    assert "22 ms per policy call" in head  # 12 on average, but for one line: 10 more


def test_recovery_states_episodes_and_actions(tmp_path: Path) -> None:
    pushed = [
        line("original+push@9", "reach", seed, won, extra={"disturbed_at": 10}, steps=steps)
        for seed, (won, steps) in enumerate([(True, 15), (True, 100), (False, 250), (True, 17)])
    ]
    again = [line("original", "push", seed, seed < 1, extra={"grasps": 1 + seed}) for seed in range(3)]
    page = Page(write(tmp_path, [*again, *pushed]))
    assert page.rows("correction") == [
        ["What happened", *HEADING],
        row("original: grasped again of 2 episodes", 0, 2, "high", "original: grasped again"),
        row(
            "original+push@9: disturbed of 4 episodes; 7 actions to success, median",
            3,
            4,
            "high",
            "original+push@9: disturbed",
        ),
    ]


def test_ours_is_given_in_the_measure_of_the_published_number(tmp_path: Path) -> None:
    """Over all episodes 10 of 14; of two groups of unequal tasks (0.9 + 0.25) / 2."""
    protocol = {**PROTOCOL, "episodes": 10, "tasks": 50}
    page = Page(write(tmp_path, played({"original": {"reach": "+++++++++-", "push": "+---"}}, protocol=protocol)))
    ours = {str(cells[0]): cells[1:3] for cells in page.rows("published")}
    found = {name.partition(";")[0]: numbers for name, numbers in ours.items()}
    assert found["ALAM + pi0 over all episodes"] == ["86.8 %", "ours 71.4 %"]
    assert found["ALAM + pi0 mean over groups"] == ["84.98 %", "ours 57.5 %"]
    assert found["SmolVLA (2.25B) mean over groups"] == ["68.24 %", "ours 57.5 %"]
    assert all("2 of its 50 tasks were played" in str(cells[3]) for cells in page.rows("published")[1:])


def test_each_video_is_shown_with_its_own_episode(tmp_path: Path) -> None:
    """The order of the index is not the order of the results."""
    original = [line("original", task, seed, True) for task in TASKS for seed in (3, 0)]
    swapped = [line("swapped", "reach", 0, False), line("swapped", "push", 0, True), line("original", "push", 7, False)]
    (tmp_path / "videos").mkdir()
    fake_run.film(tmp_path / "videos", [*swapped, *original])
    films = Page(write(tmp_path, original)).films
    found = {f.video.removeprefix("videos/"): (f.heading, f.words, f.mark, f.caption) for f in films}
    assert found == {
        "original-reach-0.mp4": ("Successes", "reach <it> & stop", "followed", "reach, seed 0, 40 steps"),
        "original-push-0.mp4": ("Successes", "push <it> & stop", "followed", "push, seed 0, 40 steps"),
        "swapped-reach-0.mp4": (
            "Successes", "push <it> & stop", "followed", "reach, instructed push, seed 0, 40 steps"),
        "swapped-push-0.mp4": (
            "Failures", "reach <it> & stop", "reached push", "push, instructed reach, seed 0, 40 steps"),
        "original-push-7.mp4": ("Failures", "push <it> & stop", "reached no goal", "push, seed 7, 47 steps"),
    }  # fmt: skip


def compared(root: Path, marks: dict[str, dict[str, str]], **given: dict[str, Any]) -> Page:
    """Return the page of evaluations: {"run": {"condition task": a mark an episode}}."""
    outcomes = {"+": "success", "-": "failure", "!": "error"}
    for name, conditions in marks.items():
        lines = []
        for key, episodes in conditions.items():
            condition, _, task = key.partition(" ")
            for seed, mark in enumerate(episodes):
                keys = {"outcome": outcomes[mark], **given.get(name, {})}
                lines.append(episode(condition, task, seed, mark == "+", **keys))
        fake_run.write_results(root / name / "results.jsonl", lines)
    return Page(write_comparison_report([root / name for name in marks], root / "page.html"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """`zoe` comes first and is not first in the alphabet. Against it `amy` is worse and `max` solves six more."""
    return compared(
        tmp_path_factory.mktemp("three"),
        {
            "zoe": {
                "original left": "+" * 10 + "-" * 6 + "!",
                "original right": "+" * 4 + "-" * 8,
                "empty left": "-" * 6,
            },
            "amy": {"empty left": "-" * 6, "original right": "-" * 12, "original left": "-" * 2 + "+" + "-" * 13 + "+"},
            "max": {"original left": "+" * 16 + "-+", "original right": "++++--------", "empty left": "-+----"},
        },
        amy={"latency_ms": 30.0, "checkpoint": "bbbb", "policy": {"execute": 8}},
        max={"latency_ms": 20.0, "checkpoint": "cccc"},
    )


def test_the_sentences_are_about_corrected_p_values(three: Page) -> None:
    """By hand, over 16 + 12 episodes: 14, 1 and 20 solved. `amy` alone solved 0 and lost 13, `max` 6 and 0.

    2 / 2^13 after Holm is twice that; 2 / 2^6 = 0.031 is the larger of the two and stays.
    """
    text = three.paragraphs("verdict good") + three.paragraphs("verdict open")
    assert text[0].startswith(
        "amy is worse than zoe: 3.6 % against 50 %, a difference of -46.4 points (95 % interval -"
    )
    assert text[0].endswith(" over 28 shared episodes, p = 0.00049.")
    assert text[1].startswith(
        "max is better than zoe: 71.4 % against 50 %, a difference of +21.4 points (95 % interval +"
    )
    assert text[1].endswith(" over 28 shared episodes, p = 0.031.")
    for sentence in text:
        low, high = sentence.partition("interval ")[2].partition(")")[0].split(" to ")
        value = float(sentence.partition("difference of ")[2].split()[0])
        assert float(low) < value < float(high)


def test_a_corrected_p_above_the_level_is_not_significant(tmp_path: Path) -> None:
    """`b` and `c` solve six more each: 2 / 2^6 = 0.031, times two."""
    few, more = {"original left": "+" * 6 + "-" * 6}, {"original left": "+" * 12}
    page = compared(tmp_path, {"a": few, "b": more, "c": more})
    assert page.paragraphs("verdict good") == []
    assert [text[:40] for text in page.paragraphs("verdict open")] == [
        "b and a do not differ significantly: 100", "c and a do not differ significantly: 100"
    ]  # fmt: skip
    assert all(text.endswith("p = 0.062.") for text in page.paragraphs("verdict open"))
    assert "corrected for 2 comparisons (Holm)" in " ".join(page.text("overall").split())


def test_rates_differences_and_their_bars_are_in_the_rows_of_their_policies(three: Page) -> None:
    rows = three.rows("overall")
    heading = ["Policy", "", "Success", "95 % interval", "0 50 100 %"]
    assert rows[:4] == [
        heading,
        row("zoe", 14, 28, "neutral", "zoe, original"),
        row("amy", 1, 28, "high", "amy, original"),
        row("max", 20, 28, "high", "max, original"),
    ]
    assert rows[4] == ["Against zoe", "Points", "Only this / only zoe", "95 % interval", "-100 0 +100"]
    assert [cells[:3] for cells in rows[5:]] == [
        ["amy p = 0.00049", "-46.4", "0 / 13"],
        ["max p = 0.031", "+21.4", "6 / 0"],
    ]
    for cells, (value, kind) in zip(rows[5:], ((-13 / 28, "low"), (6 / 28, "high")), strict=True):
        low, high = (float(end) for end in str(cells[3]).split(" to "))
        bar = cells[4]
        assert isinstance(bar, Bar)
        assert bar.kind == kind
        assert (bar.left, bar.left + bar.width) == pytest.approx(sorted((50, 50 + 50 * value)), abs=0.02)
        assert (bar.low, bar.high) == pytest.approx((50 + low / 2, 50 + high / 2), abs=0.06)
        assert bar.label == f"{cells[0].split()[0]} against zoe: {cells[1]}, interval {cells[3]}"  # type: ignore[union-attr]


def test_each_task_and_each_other_condition_has_a_row_for_each_policy(three: Page) -> None:
    shares = [cells for cells in three.rows("tasks") if isinstance(cells[-1], Bar)]
    assert shares == [
        row("zoe", 10, 16, "neutral", "left, zoe"), row("amy", 1, 16, "high", "left, amy"),
        row("max", 16, 16, "high", "left, max"), row("zoe", 4, 12, "neutral", "right, zoe"),
        row("amy", 0, 12, "high", "right, amy"), row("max", 4, 12, "high", "right, max"),
    ]  # fmt: skip
    assert [cells for cells in three.rows("conditions") if isinstance(cells[-1], Bar)] == [
        row("zoe", 0, 6, "neutral", "zoe, empty"), row("amy", 0, 6, "high", "amy, empty"),
        row("max", 1, 6, "high", "max, empty"),
    ]  # fmt: skip
    assert "Fewer than 10 shared episodes: no difference is computed." in three.text("conditions")


def test_the_properties_of_each_policy_are_in_its_column(three: Page) -> None:
    rows = {str(cells[0]): cells[1:] for cells in three.rows("protocol")}
    assert rows[""] == ["zoe", "amy", "max"]
    assert rows["checkpoint"] == ["aaaa", "bbbb", "cccc"]
    assert rows["execute"] == ["4", "8", "4"]
    assert rows["ms per policy call"] == ["10.0", "30.0", "20.0"]
    assert rows["simulator errors"] == ["1 episodes", "0 episodes", "0 episodes"]
    assert rows["invalid actions"] == ["0 episodes"] * 3


@pytest.mark.parametrize(("gained", "reach"), [(2, "+25"), (40, "+100"), (0, "+10")])
def test_the_bars_of_differences_reach_as_far_as_the_longest_interval(tmp_path: Path, gained: int, reach: str) -> None:
    page = compared(
        tmp_path, {"a": {"original left": "-" * 40}, "b": {"original left": "+" * gained + "-" * (40 - gained)}}
    )
    assert page.rows("overall")[3][4] == f"-{reach[1:]} 0 {reach}"
    bar = page.rows("overall")[4][4]
    assert isinstance(bar, Bar)
    assert bar.high <= 100
