import dataclasses

import numpy as np
import pytest

from anyvla.study.file import Comparison, Stop
from anyvla.study.sequential import decide, decided
from tests.study.small_study import make_study, sample_lines, with_marks

HEADS = {"none": {}, "gru": {}}


def after(lines, episodes):
    return [with_marks(line, lambda marks: marks[:episodes]) for line in lines]


def first_end(study, lines, block, episodes):
    """Return the episodes per task after which all is decided; None if it never is."""
    looks = range(2 * block, episodes + 1, block)
    return next((n for n in looks if all(d.decided for d in decide(study, after(lines, n)))), None)


def test_a_large_difference_is_decided_early_and_in_the_right_direction():
    study = make_study({"head": HEADS}, stop=Stop(block=5))
    lines = sample_lines(study, lambda labels: {"none": 0.2, "gru": 0.8}[labels["head"]], episodes=100)
    end = first_end(study, lines, 5, 100)
    assert end is not None
    assert end <= 30
    (decision,) = decide(study, after(lines, end))
    assert decision.higher is True
    assert decided(study, after(lines, end)) == {line.cell for line in lines}


def test_equal_policies_are_seldom_decided_at_many_looks():
    study = make_study({"head": HEADS}, seeds=[0], stop=Stop(error=0.2, block=5))
    rng = np.random.default_rng(0)
    wrong = sum(
        first_end(study, sample_lines(study, lambda labels: 0.5, 50, rng=rng), 5, 50) is not None for _ in range(60)
    )
    assert wrong <= 0.2 * 60


def test_a_cell_stops_only_if_all_its_comparisons_are_decided():
    study = make_study({"head": {**HEADS, "same": {}}}, seeds=[0], stop=Stop(block=5))
    rate = {"none": 0.1, "gru": 0.9, "same": 0.1}
    lines = sample_lines(study, lambda labels: rate[labels["head"]], episodes=50)
    assert decided(study, lines) == {"head=gru,seed=0"}


def test_more_comparisons_need_more_evidence():
    lines = sample_lines(make_study({"head": HEADS}, seeds=[0]), lambda x: 0.8 if x["head"] == "gru" else 0.2, 100)
    one = make_study({"head": HEADS}, seeds=[0], stop=Stop(block=1))
    comparisons = [Comparison(name=str(n), axis="head") for n in range(50)]
    many = make_study({"head": HEADS}, *comparisons, seeds=[0], stop=Stop(block=1))
    end = next(n for n in range(5, 100) if decided(one, after(lines, n)))
    assert not decided(many, after(lines, end))
    assert decided(many, lines)


def test_cells_that_are_not_played_yet_leave_a_comparison_open():
    study = make_study({"head": HEADS}, stop=Stop(block=5))
    lines = sample_lines(study, lambda labels: {"none": 0.05, "gru": 0.95}[labels["head"]], episodes=40)
    assert decided(study, lines)
    assert not decided(study, lines[:-1])
    assert not decided(study, [*lines[:-1], dataclasses.replace(lines[-1], episodes=())])
    assert decided(study, [*lines[:-1], dataclasses.replace(lines[-1], state="failed", episodes=())])


def test_an_incomplete_block_is_no_look():
    study = make_study({"head": HEADS}, seeds=[0], stop=Stop(block=20))
    lines = sample_lines(study, lambda labels: {"none": 0.0, "gru": 1.0}[labels["head"]], episodes=20)
    assert decided(study, lines)
    one_short = [dataclasses.replace(x, episodes=(after([x], 19)[0].episodes[0], x.episodes[1])) for x in lines]
    assert not decided(study, one_short)  # a task lacks an episode


def test_a_study_without_stop_is_refused():
    with pytest.raises(ValueError, match="the key stop"):
        decide(make_study({"head": HEADS}), [])
