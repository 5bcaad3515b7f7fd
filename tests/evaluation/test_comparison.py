from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference
from test_results import RESULT

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.evaluation.comparison import compare, compare_many, mcnemar
from anyvla.evaluation.power import paired, unpaired
from anyvla.evaluation.results import EpisodeResult, append_result


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


def test_what_only_one_solved_decides() -> None:
    a = episodes([True] * 60 + [False] * 40)
    same = compare(a, episodes([True] * 60 + [False] * 40, "b"))
    assert (same.difference.low, same.difference.high, same.p) == (0, 0, 1)
    better = compare(a, episodes([True] * 80 + [False] * 20, "b"))
    assert better.difference.value == pytest.approx(0.2)
    assert 0.1 < better.difference.low < 0.15
    assert better.p == pytest.approx(2 * 0.5**20)
    assert better.length is None


def test_errors_of_the_simulator_are_left_out() -> None:
    a, b = episodes([True] * 12), episodes([True] * 12, "b")
    b[3] = replace(b[3], outcome="error")
    assert compare(a, b).a.episodes == 11


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
    with pytest.raises(ConfigError, match="were told different words, first in told-open-0"):
        compare(a, [replace(r, instruction="do it") for r in a])
    with pytest.raises(ConfigError, match="B has no results to compare"):
        compare(a, [])


def test_many_comparisons_are_corrected() -> None:
    base = episodes([True] * 50 + [False] * 50)
    others = {f"p{k}": episodes([True] * (50 + k) + [False] * (50 - k), f"p{k}") for k in (6, 8, 10)}
    found = compare_many({"base": base, **others})
    assert list(found) == list(others)
    raw = [found[n].p for n in others]
    assert found["p10"].p_adjusted == pytest.approx(3 * raw[2])  # Holm: the smallest times all
    assert all(c.p_adjusted >= c.p for c in found.values())
    with pytest.raises(ConfigError, match="two results at least"):
        compare_many({"base": base})


@pytest.mark.parametrize(("rate", "difference", "correlation"), [(0.8, 0.1, 0.5), (0.5, -0.15, 0.0)])
def test_so_many_pairs_show_the_difference_as_often_as_promised(
    rate: float, difference: float, correlation: float
) -> None:
    n, other = paired(difference, rate, correlation), rate + difference
    both = rate * other + correlation * np.sqrt(rate * (1 - rate) * other * (1 - other))
    rng, seen = np.random.default_rng(0), 0
    for _ in range(1000):
        only_a, only_b, _ = rng.multinomial(n, [rate - both, other - both, 1 - rate - other + 2 * both])
        seen += mcnemar(only_a, only_b) < 0.05
    assert 0.72 < seen / 1000 < 0.85  # the exact test is a little more careful than the formula


def test_episodes_needed() -> None:
    assert unpaired(0.05, 0.8) == 903  # Cohen's h
    assert paired(0.05, 0.8) < unpaired(0.05, 0.8)
    assert paired(0.1, 0.8) < paired(0.05, 0.8)
    for difference, rate in ((0.0, 0.8), (0.3, 0.8), (5, 80)):
        with pytest.raises(ValueError, match="rates lie between 0 and 1 and differ"):
            unpaired(difference, rate)
    with pytest.raises(ValueError, match="cannot have a correlation of -1"):
        paired(0.05, 0.8, correlation=-1)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("one", 30), ("two", 20)):
        for line in episodes([True] * count + [False] * (40 - count), name):
            append_result(tmp_path / name / "eval" / "results.jsonl", line)
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer[str(tmp_path / "two")]["difference"]["value"] == pytest.approx(-0.25)
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert "-25.0%" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "three")]) == 1
    assert "holds no results.jsonl" in capsys.readouterr().err.replace("\n", " ")
    assert main(["power", "--difference", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unpaired"] == 903
