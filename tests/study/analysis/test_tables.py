import dataclasses

import pytest

from anyvla.evaluation.intervals import wilson
from anyvla.study.analysis.results import answer_comparison
from anyvla.study.analysis.tables import make_tables
from anyvla.study.file import Comparison
from anyvla.study.store import CellLine
from tests.study.small_study import BENCHMARK, make_line, make_study, sample_lines

AXES = {"head": {"none": {}, "gru": {}}}


def test_a_row_pools_the_seeds_and_keeps_each():
    study = make_study(AXES, seeds=[0, 1])
    lines = [
        make_line({"head": "none"}, 0, {"push": "1111100000"}),
        make_line({"head": "none"}, 1, {"push": "11111111-0"}),
    ]
    row = make_tables(study, lines)[0].rows[0]
    assert row.rate.value == pytest.approx((0.5 + 8 / 9) / 2)
    assert row.rate.episodes == 19
    assert [seed.rate for seed in row.seeds] == [wilson(5, 10), wilson(8, 9)]
    assert [seed.simulator_errors for seed in row.seeds] == [0, 1]
    assert row.rate.high - row.rate.low > wilson(13, 19).high - wilson(13, 19).low  # two seeds that differ


def test_nothing_is_silently_missing():
    study = make_study(AXES)
    failed = CellLine(study="small", cell="x", labels={"head": "gru"}, seed=1, state="failed", error="out of memory")
    lines = [line for line in sample_lines(study, lambda labels: 0.5) if line.labels["head"] == "none"]
    none, gru = make_tables(study, [*lines, failed])[0].rows
    assert none.done == 3
    assert gru.rate is None
    assert gru.done == 0
    assert [(s.progress, s.error) for s in gru.seeds] == [("missing", ""), ("failed", "out of memory"), ("missing", "")]


def test_each_benchmark_and_condition_has_a_table_with_its_chance():
    study = make_study(AXES)
    lines = sample_lines(study, lambda labels: 0.5)
    recall = [
        dataclasses.replace(
            line,
            episodes=tuple(dataclasses.replace(p, benchmark="metaworld/recall") for p in line.episodes),
            protocols={"metaworld/recall": {"chance": 0.5}},
        )
        if line.labels["head"] == "gru"
        else line
        for line in lines
    ]
    mt10, other = make_tables(study, recall)
    assert (mt10.benchmark, mt10.chance, other.chance) == (BENCHMARK, None, 0.5)
    assert [row.labels["head"] for row in mt10.rows] == ["none"]
    assert [row.labels["head"] for row in other.rows] == ["gru"]
    swapped = [
        dataclasses.replace(line, episodes=(*line.episodes, dataclasses.replace(line.episodes[0], condition="swapped")))
        for line in lines[:1]
    ]
    original, table = make_tables(study, [*swapped, *lines[1:]])
    assert (original.condition, table.condition) == ("original", "swapped")
    assert [s.progress for s in table.rows[0].seeds] == ["done", "not played", "not played"]


def test_pairs_are_the_sample_and_give_the_curve_of_the_benchmark():
    """A policy without memory solves exactly one task of each pair, so its rate is certain."""
    protocol = {
        "chance": 0.5,
        "groups": {"d0": ["d0a", "d0b"], "d48": ["d48a", "d48b"]},
        "pairs": [["d0a", "d0b"], ["d48a", "d48b"]],
        "curve": {"axis": "delay, actions", "groups": {"d0": 0, "d48": 48}},
    }
    marks = {"d0a": "1" * 20, "d0b": "1" * 20, "d48a": "10" * 10, "d48b": "01" * 10}
    study = make_study(AXES, Comparison(name="x", axis="head"), Comparison(name="late", axis="head", tasks=("d48",)))
    lines = [
        make_line({"head": head}, seed, marks if head == "none" else dict.fromkeys(marks, "1" * 20))
        for head in ("none", "gru")
        for seed in study.seeds
    ]
    lines = [dataclasses.replace(line, protocols={BENCHMARK: protocol}) for line in lines]
    (table,) = make_tables(study, lines)
    none = table.rows[0]
    assert table.curve_axis == "delay, actions"
    assert {x: rate.value for x, rate in none.curve.items()} == {0: 1.0, 48: 0.5}
    assert none.rate.episodes == 240
    assert none.seeds[0].rate.high - none.seeds[0].rate.low < wilson(60, 80).high - wilson(60, 80).low
    both, late = (answer_comparison(study, comparison, lines).findings[0] for comparison in study.comparisons)
    assert (both.states, both.value) == (40, 0.25)
    assert (late.states, late.value) == (20, 0.5)
    unknown = Comparison(name="y", axis="head", tasks=("d84",))
    (missing,) = answer_comparison(study, unknown, lines).missing
    assert "no task or group 'd84'" in missing
    assert "d48" in missing


def test_excluded_groups_have_no_row_and_costs_are_means_of_finished_cells():
    study = make_study({**AXES, "window": [1, 4]}, Comparison(name="x", axis="head"), exclude=({"window": "4"},))
    lines = sample_lines(make_study(AXES), lambda labels: 0.5)
    lines = [
        dataclasses.replace(line, labels={**line.labels, "window": "1"}, costs={"minutes.train": float(line.seed)})
        for line in lines
    ]
    rows = make_tables(study, lines)[0].rows
    assert [row.labels for row in rows] == [{"head": "none", "window": "1"}, {"head": "gru", "window": "1"}]
    assert rows[0].costs == {"minutes.train": 1.0}


def test_a_table_says_why_its_rows_cannot_be_compared():
    study = make_study(AXES)
    lines = sample_lines(study, lambda labels: 0.5)
    lines = [
        dataclasses.replace(line, protocols={BENCHMARK: {"horizon": 99}}) if line.labels["head"] == "gru" else line
        for line in lines
    ]
    (table,) = make_tables(study, lines)
    assert any(fault.startswith("horizon: 50, 99") for fault in table.protocol_differences)
    mixed = [dataclasses.replace(line, labels={"head": "none"}, seed=number) for number, line in enumerate(lines[2:4])]
    (row, _) = make_tables(study, mixed)[0].rows
    assert row.rate is None  # seeds of different protocols are not pooled
    assert row.seeds[0].rate is not None


def test_groups_of_other_benchmarks_have_no_row_before_they_are_played():
    """`recall` is the base recipe's benchmark, which only the lines of the store tell."""
    suites = {"recall": {}, "chains": {"benchmark": "metaworld/chains"}, "mt10": {"benchmark": BENCHMARK}}
    study = make_study({"suite": suites, "head": {"none": {}, "gru": {}}}, Comparison(name="x", axis="head"))

    def line(suite, head, benchmark):
        found = make_line({"suite": suite, "head": head}, 0, {"push": "0110"})
        return dataclasses.replace(
            found,
            episodes=tuple(dataclasses.replace(p, benchmark=benchmark) for p in found.episodes),
            protocols={benchmark: {"horizon": 50}},
        )

    tables = make_tables(study, [line("recall", "none", "metaworld/recall"), line("mt10", "none", BENCHMARK)])
    assert {table.benchmark: [(row.labels["suite"], row.labels["head"]) for row in table.rows] for table in tables} == {
        "metaworld/recall": [("recall", "none"), ("recall", "gru")],
        BENCHMARK: [("mt10", "none"), ("mt10", "gru")],
    }
