from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from anyvla.cli.summary import table
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.statistics import summarize
from tests.evaluation.test_results import RESULT


def lines(condition: str, won: dict[str, tuple[int, int]], **given: Any) -> list[EpisodeResult]:
    """Return episodes of tasks, given as {"task": (successes, episodes)}."""
    return [
        replace(
            RESULT, **given, condition=condition, task=task, instructed=task, seed=seed,
            outcome="success" if seed < n else "failure", reached=task if seed < n else None,
        )
        for task, (n, of) in won.items()
        for seed in range(of)
    ]  # fmt: skip


def printed(results: Sequence[EpisodeResult]) -> list[str]:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(summarize(results)))
    return [" ".join(row.split()) for row in console.export_text().splitlines()]


def test_every_row_of_an_evaluation() -> None:
    """Intervals of shares are Wilson's, and intervals of means are computed by hand (Zou and Donner 2008).

    For `empty`, the margin below (0.2 + 0.4) / 2 is sqrt(0.1433^2 + 0.2318^2) / 2, above sqrt(0.3098^2 + 0.2873^2) / 2.
    """
    protocol = {"groups": {"two": ["a", "b"], "one": ["c"]}}
    original = lines("original", {"a": (1, 10), "b": (2, 2), "c": (1, 4)}, protocol=protocol)
    original += [replace(original[0], seed=90, outcome="error"), replace(original[0], seed=91, outcome="error")]
    original[1] = replace(original[1], outcome="invalid_action")
    pushed = lines("original+push@5", {"a": (5, 8)}, extra={"disturbed_at": 5}, protocol=protocol)
    empty = lines("empty", {"a": (2, 10), "b": (4, 10)}, protocol=protocol)
    assert printed([*empty, *pushed, *original]) == [
        "condition task success 95 % interval episodes",
        "original a 10.0% 1.8% to 40.4% 10",
        "original b 100.0% 34.2% to 100.0% 2",
        "original c 25.0% 4.6% to 69.9% 4",
        "original mean of two 55.0% 21.9% to 70.2% 12",
        "original mean of one 25.0% 4.6% to 69.9% 4",
        "original all 25.0% 10.2% to 49.5% 16",
        "original mean over tasks 45.0% 21.9% to 63.1% 16",
        "original mean over groups 40.0% 20.5% to 63.7% 16",
        "original simulator errors 2",
        "original invalid actions 1",
        "original+push@5 all 62.5% 30.6% to 86.3% 8",
        "original+push@5 mean over groups 62.5% 30.6% to 86.3% 8",
        "original+push@5 after the disturbance 62.5% 30.6% to 86.3% 8",
        "empty all 30.0% 14.5% to 51.9% 20",
        "empty mean over groups 30.0% 16.4% to 51.1% 20",
    ]


def test_tasks_of_equal_counts_need_no_other_mean_and_the_use_of_language_comes_last() -> None:
    original = lines("original", {"a": (4, 4), "b": (2, 4)})
    swapped = [replace(r, condition="swapped", instructed="b", reached="b") for r in lines("swapped", {"a": (0, 4)})]
    rows = printed(swapped + original)
    assert [row.rsplit(" ", 5)[0] for row in rows[1:]] == [
        "original a", "original b", "original all", "swapped all", "use of language"
    ]  # fmt: skip
    assert rows[-1] == "use of language 100.0% 67.6% to 100.0% 8"


def test_pairs_and_the_chance_level_of_a_suite() -> None:
    protocol = {"groups": {"d0": ["a", "b"]}, "pairs": [["a", "b"]], "chance": 0.5}
    rows = printed(lines("original", {"a": (20, 20), "b": (0, 20)}, protocol=protocol))
    assert "original d0: both 0, one 20, neither 0 50.0% 41.9% to 58.1% 40" in rows
    assert not any("mean of d0" in row for row in rows)
    assert rows[-1] == "chance without the tested ability 50.0%"


def test_chains_are_given_by_tasks_in_a_row() -> None:
    done = [2, 2, 1, 0]
    chains = [
        replace(RESULT, task="chain", instructed="chain", seed=i, length=2, completed=d) for i, d in enumerate(done)
    ]
    rows = printed(chains)
    assert rows[1:3] == ["original 1 in a row 75.0% 30.1% to 95.4% 4", "original 2 in a row 50.0% 15.0% to 85.0% 4"]
    assert rows[3].startswith("original average length 1.25 ")
    assert len(rows) == 4
