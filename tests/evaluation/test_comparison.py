from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.evaluation.comparison import compare, compare_many, mcnemar
from anyvla.evaluation.power import paired_sample_size, unpaired_sample_size
from anyvla.evaluation.results import EpisodeResult
from tests.evaluation.test_results import RESULT
from tests.fake_run import write_results


def episodes(won: Sequence[bool], checkpoint: str = "a", **keys: object) -> list[EpisodeResult]:
    """Two tasks in turn."""
    return [
        replace(
            RESULT,
            task=("open", "close")[i % 2],
            seed=i,
            outcome="success" if w else "failure",
            checkpoint=checkpoint,
            **keys,  # type: ignore[arg-type]
        )
        for i, w in enumerate(won)
    ]


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_statsmodels(a: int, b: int) -> None:
    assert mcnemar(a, b) == pytest.approx(reference([[5, a], [b, 5]], exact=True).pvalue)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=10, max_size=60))
def test_a_comparison_is_antisymmetric(outcomes: list[tuple[bool, bool]]) -> None:
    a, b = (episodes([o[k] for o in outcomes]) for k in (0, 1))
    there, back = compare(a, b), compare(b, a)
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.difference.value == pytest.approx(there.b.value - there.a.value)
    assert there.difference.low <= there.difference.value + 1e-9
    assert there.difference.value <= there.difference.high + 1e-9
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)
    assert there.p == back.p


def test_episodes_that_one_policy_solved_decide() -> None:
    a = episodes([True] * 60 + [False] * 40)
    same = compare(a, episodes([True] * 60 + [False] * 40, "b"))
    assert (same.difference.low, same.difference.high, same.p) == (0, 0, 1)
    better = compare(a, episodes([True] * 80 + [False] * 20, "b"))
    assert better.difference.value == pytest.approx(0.2)
    assert 0.1 < better.difference.low < 0.15
    assert better.p == pytest.approx(2 * 0.5**20)
    assert better.length is None


def test_episodes_are_paired_by_condition_task_and_seed() -> None:
    def lines(won: dict[str, str], checkpoint: str) -> list[EpisodeResult]:
        """Return a result per mark, with seeds from 0: + success, - failure, ! error, . not played."""
        outcomes = {"+": "success", "-": "failure", "!": "error"}
        return [
            replace(RESULT, condition=c, task=t, instructed=t, seed=i, outcome=outcomes[mark], checkpoint=checkpoint)  # type: ignore[arg-type]
            for name, marks in won.items()
            for c, _, t in [name.partition(" ")]
            for i, mark in enumerate(marks)
            if mark != "."
        ]

    a = lines({"original open": "++--+!", "original close": "+-----", "swapped open": "-----+"}, "a")
    b = lines({"swapped open": "++--.-", "original close": "-+++--", "original open": "+-+-!+"}, "b")
    # By hand: original open has seeds 0 to 3, original close all six, swapped open 0 to 3 and 5.
    for other in (b, b[::-1], sorted(b, key=lambda r: (r.seed, r.task))):
        found = compare(a, other)
        assert found.a.episodes == found.b.episodes == found.difference.episodes == 4 + 6 + 5
        assert (found.a.successes, found.b.successes) == (2 + 1 + 1, 2 + 3 + 2)
        assert (found.only_a, found.only_b) == (1 + 1 + 1, 1 + 3 + 2)
        assert found.difference.value == pytest.approx(3 / 15)
        assert found.p == pytest.approx(130 / 256 * 0.5 * 2)  # 3 of 9 or fewer: (1 + 9 + 36 + 84) / 512, two-sided


def test_differences_are_resampled_within_each_task() -> None:
    """B solves every `open` that A does not, and no `close` is solved: within a task nothing varies."""
    a = episodes([False] * 40)
    b = episodes([i % 2 == 0 for i in range(40)], "b")
    found = compare(a, b)
    assert (found.difference.low, found.difference.value, found.difference.high) == (0.5, 0.5, 0.5)
    apart = [replace(r, task="open", condition=("original", "empty")[r.seed % 2]) for r in a]
    found = compare(apart, [replace(r, outcome=o.outcome) for r, o in zip(apart, b, strict=True)])
    assert (found.difference.low, found.difference.high) == (0.5, 0.5)  # nor does anything vary within a condition


def test_the_interval_of_a_difference_holds_95_percent() -> None:
    """60 of 400 pairs for B and 20 for A: the normal interval is 0.1 +- 1.96 sqrt((0.2 - 0.01) / 400)."""
    order = np.random.default_rng(0).permutation(400)
    a = [replace(RESULT, seed=int(i), outcome="success" if n < 20 else "failure") for n, i in enumerate(order)]
    b = [replace(r, outcome="success" if 20 <= n < 80 else "failure") for n, r in enumerate(a)]
    found = compare(a, b).difference
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1 - 0.0427, 0.1 + 0.0427), abs=0.004)


def test_chains_are_compared_by_length() -> None:
    a = [replace(r, length=5, completed=i % 5) for i, r in enumerate(episodes([False] * 50))]
    b = [replace(r, completed=min(5, r.completed + 1), checkpoint="b") for r in a]
    compared = compare(a, b)
    assert compared.length is not None
    assert (compared.length.value, compared.length.low, compared.length.high) == (1, 1, 1)


def test_different_protocols_are_refused() -> None:
    a = episodes([True] * 12, protocol={"settings": {"render": "fast"}, "horizon": 100, "episodes": 5})
    b = episodes([True] * 12, protocol={"settings": {"render": "native"}, "horizon": 200, "episodes": 9})
    with pytest.raises(
        ConfigError,
        match=r"one and two were made under different protocols and cannot be compared: "
        r"settings.render: 'fast', 'native'; horizon: 100, 200$",
    ):
        compare(a, b, ("one", "two"))
    with pytest.raises(ConfigError, match="benchmark: 'metaworld/half-open', 'metaworld/mt10'"):
        compare(a, [replace(r, benchmark="metaworld/mt10") for r in a])
    with pytest.raises(ConfigError, match=r"share 0 episodes .*10 are needed"):
        compare(a, [replace(r, seed=r.seed + 100) for r in a])
    with pytest.raises(ConfigError, match="were given different instructions, first in original-open-0"):
        compare(a, [replace(r, instruction="do it") for r in a])
    with pytest.raises(ConfigError, match="B has no results to compare"):
        compare(a, [])


def test_many_comparisons_are_corrected() -> None:
    base = episodes([True] * 50 + [False] * 50)
    others = {f"p{k}": episodes([True] * (50 + k) + [False] * (50 - k), f"p{k}") for k in (7, 6, 8)}
    found = compare_many({"base": base, **others})
    assert list(found) == list(others)
    assert [found[n].a.successes for n in others] == [50, 50, 50]  # each is compared with the first
    assert [found[n].b.successes for n in others] == [57, 56, 58]
    # One alone solved 7, 6 and 8: p = 2 / 2^n. Holm: 3 times the least; 2 times the next; the last is no less.
    assert [found[n].p for n in others] == [0.015625, 0.03125, 0.0078125]
    assert [found[n].p_adjusted for n in others] == pytest.approx([0.03125, 0.03125, 0.0234375])
    assert found["p7"].p == 0.015625
    assert found["p7"].p_adjusted == pytest.approx(0.03125)
    with pytest.raises(ConfigError, match="at least two results"):
        compare_many({"base": base})


@pytest.mark.parametrize(("rate", "difference", "correlation"), [(0.8, 0.1, 0.5), (0.5, -0.15, 0.0)])
def test_the_sample_size_gives_the_promised_power(rate: float, difference: float, correlation: float) -> None:
    n, other = paired_sample_size(difference, rate, correlation), rate + difference
    both = rate * other + correlation * np.sqrt(rate * (1 - rate) * other * (1 - other))
    rng, seen = np.random.default_rng(0), 0
    for _ in range(1000):
        only_a, only_b, _ = rng.multinomial(n, [rate - both, other - both, 1 - rate - other + 2 * both])
        seen += mcnemar(only_a, only_b) < 0.05
    assert 0.72 < seen / 1000 < 0.85  # the exact test is a little more careful than the formula


def test_episodes_needed() -> None:
    """Cohen (1988): 2 (z + z)^2 / h^2 of each policy. Connor (1987): pairs. z of 0.975, 0.8; of 0.995, 0.9."""
    assert unpaired_sample_size(0.05, 0.8) == 903  # 2 * 2.80159^2 / 0.131897^2
    assert unpaired_sample_size(0.2, 0.5, power=0.9, alpha=0.01) == 176  # 2 * 3.85738^2 / 0.411517^2
    # Uncorrelated, 0.5 * 0.3 are A's alone and 0.5 * 0.7 B's: (1.95996 sqrt(0.5) + 0.84162 sqrt(0.5 - 0.04))^2 / 0.04
    assert paired_sample_size(0.2, 0.5, correlation=0) == 96
    assert paired_sample_size(0.2, 0.5, correlation=0, power=0.9, alpha=0.01) == 181
    # 0.35 + 0.5 * 0.229129 of both, 0.035436 A's alone, 0.235436 B's
    assert paired_sample_size(0.2, 0.5) == paired_sample_size(0.2, 0.5, correlation=0.5) == 51
    for difference, rate in ((0.0, 0.8), (0.3, 0.8), (5, 80)):
        with pytest.raises(ValueError, match="rates must be between 0 and 1"):
            unpaired_sample_size(difference, rate)
    with pytest.raises(ValueError, match="cannot have a correlation of -1"):
        paired_sample_size(0.05, 0.8, correlation=-1)


def rows(printed: str) -> list[str]:
    return [" ".join(line.split()) for line in printed.splitlines()]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three runs of 40 episodes each; under other instructions the first is the best."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    for name, original, empty in (("one", 30, 40), ("two", 23, 30), ("three", 36, 10)):
        lines = [
            line
            for condition, count in (("empty", empty), ("original", original))
            for line in episodes([True] * count + [False] * (40 - count), name, condition=condition)
        ]
        write_results(tmp_path / name / "eval" / "results.jsonl", lines)
    return ["one", "two", "three"]


def test_compare_prints_each_policy_against_the_first(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs]) == 0
    printed = rows(capsys.readouterr().out)
    assert printed[0] == "success difference 95 % interval episodes p (McNemar)"
    assert printed[1] == "one 75.0% 40"
    # 2 / 2^7 and 2 / 2^6, after Holm twice and once the number: both 0.03125
    assert printed[2].startswith("two 57.5% -17.5% -30.0% to -")
    assert printed[2].endswith("40 0.0312")
    assert printed[3].startswith("three 90.0% +15.0% +5.0% to +")
    assert printed[3].endswith("40 0.0312")
    assert printed[4:] == ["p values are corrected for 2 comparisons (Holm)"]
    assert main(["compare", "two", "one"]) == 0
    printed = rows(capsys.readouterr().out)
    assert printed[2].startswith("one 75.0% +17.5% +")
    assert printed[2].endswith("40 0.0156")
    assert len(printed) == 3


def test_compare_uses_the_requested_condition(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {n: (c["a"]["value"], c["b"]["value"]) for n, c in printed.items()} == {
        "two": (0.75, 0.575),
        "three": (0.75, 0.9),
    }
    assert main(["compare", *runs, "--condition", "empty", "--json"]) == 0
    empty = json.loads(capsys.readouterr().out)
    assert {n: c["difference"]["value"] for n, c in empty.items()} == {"two": -0.25, "three": -0.75}
    assert main(["compare", "one", "four"]) == 1
    assert "four has no results.jsonl" in capsys.readouterr().err.replace("\n", " ")


def test_compare_prints_the_difference_of_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, done in (("one", 1), ("two", 3)):
        write_results(tmp_path / name / "results.jsonl", episodes([False] * 12, name, length=5, completed=done))
    assert main(["compare", "one", "two"]) == 0
    assert rows(capsys.readouterr().out)[3] == "average length +2.00 +2.00 to +2.00 12"


def test_power_passes_on_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--difference", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"paired": 460, "unpaired": 903}
    options = ["--difference", "20", "--rate", "50", "--correlation", "0", "--power", "0.9", "--alpha", "0.01"]
    assert main(["power", *options]) == 0
    assert capsys.readouterr().out == (
        "To tell 50 % from 70 %: 181 episodes of each policy if both play the same start states (correlation 0), "
        "176 if each plays its own\n"
    )
