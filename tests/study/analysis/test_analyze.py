import dataclasses
import json
import random

import numpy as np
import pytest

from anyvla.config import ConfigError
from anyvla.evaluation.comparison import mcnemar
from anyvla.study.analysis.analyze import analyze
from anyvla.study.analysis.contrasts import list_contrasts, match
from anyvla.study.analysis.results import answer_comparison
from anyvla.study.analysis.scores import read_scores
from anyvla.study.file import Comparison, Stop
from anyvla.study.store import Played
from tests.study.small_study import BENCHMARK, TASKS, make_line, make_study, sample_lines, with_marks

HEADS = {"none": {}, "gru": {}}
RATES = {"none": 0.3, "gru": 0.8}


def by_head(labels):
    return RATES[labels["head"]]


def only(study, lines, number=0):
    return answer_comparison(study, study.comparisons[number], lines)


def test_a_large_difference_is_found_with_its_direction():
    study = make_study({"head": HEADS, "window": [1, 4]})
    result = only(study, sample_lines(study, by_head, episodes=40))
    (finding,) = result.findings
    assert (finding.verdict, finding.test, finding.seeds, finding.settings) == ("higher", "crossed", 3, 2)
    assert finding.states == 80
    assert finding.low < 0.5 < finding.high
    assert [t.labels for t in finding.terms] == [{"head": "none"}, {"head": "gru"}]
    assert finding.value == pytest.approx(sum(t.weight * t.mean for t in finding.terms))
    assert finding.sentence.startswith("head gru against none: ")
    assert "points higher (" in finding.sentence


def test_swapping_base_and_other_negates():
    lines = sample_lines(make_study({"head": HEADS}), by_head)
    one, other = (
        only(make_study({"head": HEADS}, Comparison(name="x", axis="head", base=base)), lines).findings[0]
        for base in HEADS
    )
    assert [one.value, one.low, one.high, one.p] == pytest.approx([-other.value, -other.high, -other.low, other.p])
    assert {one.verdict, other.verdict} == {"higher", "lower"}


def test_neither_the_order_of_lines_nor_the_names_of_labels_and_seeds_matter():
    study = make_study({"head": HEADS, "window": [1, 4]}, Comparison(name="x", axis="head", by="window"))
    lines = sample_lines(study, by_head, spread=0.1)
    shuffled = random.Random(0).sample(lines, len(lines))
    assert only(study, lines) == only(study, shuffled)
    renamed = make_study({"head": {"z": {}, "a": {}}, "window": [1, 4]}, Comparison(name="x", axis="head", by="window"))
    names = {"none": "z", "gru": "a"}
    other = [dataclasses.replace(x, labels={**x.labels, "head": names[x.labels["head"]]}) for x in lines]
    for a, b in zip(only(study, lines).findings, only(renamed, other).findings, strict=True):
        assert (a.value, a.low, a.high, a.p_adjusted) == (b.value, b.low, b.high, b.p_adjusted)


def test_one_seed_gives_mcnemars_test_and_a_limit_to_these_policies():
    study = make_study({"head": HEADS}, seeds=[0])
    a, b = "0" * 12 + "1" * 8, "1" * 9 + "0" * 4 + "1" * 7
    lines = [make_line({"head": head}, 0, {"push": marks}) for head, marks in (("none", a), ("gru", b))]
    (finding,) = only(study, lines).findings
    assert finding.test == "mcnemar"
    assert finding.p == mcnemar(1, 9)
    assert "these trained policies only" in finding.sentence
    assert (finding.seeds_for_planned, finding.states_for_planned) == (None, None)


def test_one_seed_that_cannot_tell_says_how_many_start_states_would():
    """Of 40 start states 12 differ, by 4 in sum: a variance of 0.3 - 0.1^2 each, so (1.96 + 0.84)^2 0.29 / 0.1^2."""
    study = make_study({"head": HEADS}, seeds=[0])
    a, b = "0" * 8 + "1" * 4 + "01" * 14, "1" * 8 + "0" * 4 + "01" * 14
    lines = [make_line({"head": head}, 0, {"push": marks}) for head, marks in (("none", a), ("gru", b))]
    (finding,) = only(study, lines).findings
    assert (finding.verdict, finding.test) == ("cannot tell", "mcnemar")
    assert finding.states_for_planned == pytest.approx(7.849 * 0.29 / 0.01, rel=0.1)
    assert finding.states_for_value == finding.states_for_planned  # 10 points were observed
    assert f"About {finding.states_for_planned} start states would detect a difference of 10 points" in finding.sentence
    assert "can be planned after a second one" in finding.sentence
    assert "start states would detect 10 points between the trained policies" in analyze(study, lines).answer
    long = [
        dataclasses.replace(x, episodes=tuple(dataclasses.replace(p, outcomes=p.outcomes * 8) for p in x.episodes))
        for x in lines
    ]
    assert only(study, long).findings[0].verdict == "higher"  # 320 start states


def test_p_values_are_corrected_for_all_tests_of_a_comparison():
    study = make_study({"head": {"none": {}, "gru": {}, "same": {}}, "window": [1, 4]}, seeds=range(4))
    lines = sample_lines(study, lambda labels: RATES.get(labels["head"], 0.3), spread=0.1)
    findings = only(study, lines).findings
    assert len(findings) == 2
    small, large = sorted(findings, key=lambda f: f.p)
    assert small.p_adjusted == pytest.approx(2 * small.p)
    assert large.p_adjusted == max(large.p, 2 * small.p)


def test_only_start_states_that_all_policies_share_are_compared():
    study = make_study({"head": HEADS}, seeds=[0, 1])
    lines = sample_lines(study, by_head, episodes=20)
    lines[0] = with_marks(lines[0], lambda marks: "-" + marks[1:])  # a simulator error
    lines[3] = with_marks(lines[3], lambda marks: marks[:15])
    (finding,) = only(study, lines).findings
    assert (finding.states, finding.unshared) == (28, 12)


def test_start_states_of_one_policy_alone_are_counted():
    study = make_study({"head": HEADS}, seeds=[0])
    lines = [make_line({"head": head}, 0, {"push": "01" * n}) for head, n in (("none", 10), ("gru", 6))]
    (finding,) = only(study, lines).findings
    assert (finding.states, finding.unshared) == (12, 8)
    assert "12 start states (8 more not played by all)" in finding.sentence


def test_cells_without_a_partner_are_left_out_and_named():
    study = make_study({"head": HEADS})
    lines = sample_lines(study, by_head)
    (finding,) = only(study, lines[:-1]).findings
    assert finding.seeds == 2
    assert finding.left_out == ("head=none,seed=2",)
    assert "head=none,seed=2" not in finding.cells


def test_a_contrast_without_cells_is_missing_with_the_reason():
    study = make_study({"head": {**HEADS, "lstm": {}}})
    lines = [line for line in sample_lines(study, lambda labels: 0.5) if line.labels["head"] != "lstm"]
    result = only(study, lines)
    assert len(result.findings) == 1
    assert result.missing == ("head lstm against none: there are no finished cells with lstm",)
    assert "1 planned test has no result yet." in analyze(study, lines).answer


def test_different_protocols_are_refused_with_the_difference():
    study = make_study({"head": HEADS})
    lines = sample_lines(study, by_head)
    lines[1] = dataclasses.replace(lines[1], protocols={BENCHMARK: {"horizon": 60, "episodes": 10}})
    result = only(study, lines)
    assert not result.findings
    assert "different protocols" in result.missing[0]
    assert "horizon: " in result.missing[0]
    (contrast,) = list_contrasts(study, study.comparisons[0])
    with pytest.raises(ConfigError, match="horizon"):
        match(contrast, read_scores(lines, None, ["original"]))


def test_too_few_start_states_are_refused():
    study = make_study({"head": HEADS})
    (missing,) = only(study, sample_lines(study, by_head, episodes=4)).missing
    assert "share 8 start states, but 10 are needed" in missing


def test_an_interaction_is_the_difference_of_differences():
    study = make_study(
        {"head": HEADS, "task": {"easy": {}, "recall": {}}},
        Comparison(name="x", axis="head", kind="interaction", by="task"),
        seeds=range(4),
    )
    rate = {("none", "easy"): 0.5, ("gru", "easy"): 0.5, ("none", "recall"): 0.2, ("gru", "recall"): 0.9}
    lines = sample_lines(study, lambda labels: rate[labels["head"], labels["task"]], episodes=40)
    (finding,) = only(study, lines).findings
    mean = {tuple(t.labels.values()): t.mean for t in finding.terms}
    expected = mean["gru", "recall"] - mean["none", "recall"] - mean["gru", "easy"] + mean["none", "easy"]
    assert finding.value == pytest.approx(expected)
    assert finding.verdict == "higher"


def test_a_gap_pairs_the_conditions_of_the_same_policy():
    study = make_study({"head": HEADS}, Comparison(name="x", axis="head", kind="gap", other_condition="swapped"))

    def add_swapped(line):
        keep = line.labels["head"] == "gru"
        swapped = [
            Played(
                benchmark=p.benchmark,
                condition="swapped",
                task=p.task,
                first_seed=0,
                outcomes=p.outcomes if keep else "0" * len(p.outcomes),
            )
            for p in line.episodes
        ]
        return dataclasses.replace(line, episodes=(*line.episodes, *swapped))

    lines = [add_swapped(line) for line in sample_lines(study, lambda labels: 0.7)]
    none, gru = only(study, lines).findings
    assert none.verdict == "lower"
    assert none.group == {"head": "none"}
    assert (gru.value, gru.p) == (0, 1)


def test_a_gap_is_taken_for_each_label_of_another_axis():
    """With window 4, `swapped` loses; with window 1, nothing changes."""
    gap = Comparison(name="x", axis="head", kind="gap", other_condition="swapped", by="window", against=("gru",))
    study = make_study({"head": HEADS, "window": [1, 4]}, gap)

    def add_swapped(line):
        lose = line.labels["window"] == "4"
        swapped = [dataclasses.replace(p, condition="swapped") for p in line.episodes]
        swapped = [dataclasses.replace(p, outcomes="0" * len(p.outcomes)) if lose else p for p in swapped]
        return dataclasses.replace(line, episodes=(*line.episodes, *swapped))

    result = only(study, [add_swapped(line) for line in sample_lines(study, lambda labels: 0.7)])
    found = {(f.group["head"], f.group["window"]): f for f in result.findings}
    assert {key: f.verdict for key, f in found.items()} == {
        (head, window): "lower" if window == "4" else "cannot tell" for head in HEADS for window in "14"
    }
    assert all(f.value == 0 for (_, window), f in found.items() if window == "1")
    assert found["gru", "4"].name == "head gru, swapped against original, with window 4"


def test_a_curve_has_points_in_order_and_a_test_of_its_trend():
    study = make_study(
        {"demos": [100, 10, 1000], "head": HEADS}, Comparison(name="x", axis="demos", kind="curve", by="head")
    )
    rate = {"10": 0.2, "100": 0.5, "1000": 0.8}
    lines = sample_lines(study, lambda x: rate[x["demos"]] if x["head"] == "gru" else 0.5, episodes=40)
    result = only(study, lines)
    assert [p.label for p in result.points] == ["10", "100", "1000"] * 2
    flat, rising = result.findings
    assert rising.verdict == "higher"
    assert rising.value == pytest.approx(0.3, abs=0.08)
    assert flat.verdict == "cannot tell"
    assert "points per label" in rising.sentence
    means = {t.labels["demos"]: t.mean for t in rising.terms}
    assert rising.value == pytest.approx((means["1000"] - means["10"]) / 2)


def test_a_curve_goes_on_without_a_failed_label():
    study = make_study({"demos": [10, 100, 1000]}, Comparison(name="x", axis="demos", kind="curve"))
    lines = [x for x in sample_lines(study, lambda x: 0.5) if x.labels["demos"] != "100"]
    result = only(study, lines)
    assert [t.labels["demos"] for t in result.findings[0].terms] == ["10", "1000"]
    assert not result.missing
    assert "without 100" in result.notes[0]


def test_the_front_of_costs_has_what_nothing_cheaper_beats():
    study = make_study(
        {"size": {"small": {}, "middle": {}, "large": {}}}, Comparison(name="x", axis="size", kind="cost")
    )
    rate = {"small": 0.3, "middle": 0.9, "large": 0.5}
    minutes = {"small": 1.0, "middle": 2.0, "large": 3.0}
    lines = [
        dataclasses.replace(line, costs={"minutes.train": minutes[line.labels["size"]]})
        for line in sample_lines(study, lambda labels: rate[labels["size"]], episodes=40)
    ]
    small, middle, large = only(study, lines).costs
    assert small.front == middle.front == ("minutes.train",)
    assert large.front == ()
    assert large.beaten_by == {"minutes.train": ("middle",)}
    assert middle.beaten_by == {"minutes.train": ()}
    assert small.beaten_by == {"minutes.train": ()}  # middle is better, but costs more


def test_by_and_where_and_exclude_choose_the_contrasts():
    axes = {"head": {**HEADS, "lstm": {}}, "window": [1, 4, 8]}
    comparison = Comparison(name="x", axis="head", by="window", where={"window": ["1", "8"], "head": ["none", "gru"]})
    study = make_study(axes, comparison, exclude=({"window": "8", "head": "gru"},))
    assert [c.name for c in list_contrasts(study, comparison)] == ["head gru against none, with window 1"]


def test_an_interaction_is_with_the_first_label_that_where_allows():
    axes = {"head": HEADS, "window": [1, 4, 8]}
    comparison = Comparison(name="x", axis="head", kind="interaction", by="window", where={"window": ["4", "8"]})
    (contrast,) = list_contrasts(make_study(axes, comparison), comparison)
    assert contrast.terms == {("none", "4"): 1, ("none", "8"): -1, ("gru", "4"): -1, ("gru", "8"): 1}


def test_a_comparison_without_anything_to_compare_says_so():
    comparison = Comparison(name="x", axis="demos", kind="curve", where={"demos": "10"})
    study = make_study({"demos": [10, 100]}, comparison)
    result = only(study, sample_lines(study, lambda labels: 0.5))
    assert not result.findings
    assert "leave nothing to compare" in result.missing[0]


def test_lengths_of_chains_are_compared_in_tasks():
    study = make_study({"head": HEADS}, Comparison(name="x", axis="head", measure="length"))
    rng = np.random.default_rng(0)

    def chain(line):
        done = rng.integers(0, 3, 30) + (2 if line.labels["head"] == "gru" else 0)
        played = Played(
            benchmark=BENCHMARK,
            condition="original",
            task="chain",
            first_seed=0,
            outcomes="0" * 30,
            completed="".join(map(str, done)),
            length=5,
        )
        return dataclasses.replace(line, episodes=(played,))

    lines = [chain(line) for line in sample_lines(study, lambda labels: 0.5)]
    analysis = analyze(study, lines)
    (finding,) = analysis.results[0].findings
    assert finding.verdict == "higher"
    assert finding.value == pytest.approx(2, abs=0.4)
    assert "tasks" in finding.sentence
    none, gru = analysis.tables[0].rows
    assert gru.length.value - none.length.value == pytest.approx(finding.value)
    assert 0 <= none.length.low < none.length.value < none.length.high <= 5


def with_other_instructions(lines, judged=True):
    """Return the lines as if the same episodes had been won by obeying the instruction of another task."""
    fails = str.maketrans("01", "10")

    def swap(played):
        obeyed = played.outcomes if judged else ""
        return dataclasses.replace(
            played, condition="swapped", outcomes=played.outcomes.translate(fails), obeyed=obeyed
        )

    return [dataclasses.replace(line, episodes=tuple(map(swap, line.episodes))) for line in lines]


def test_under_another_instruction_obeying_is_not_success():
    lines = with_other_instructions(sample_lines(make_study({"head": HEADS}), by_head, episodes=30))
    of = {
        measure: make_study({"head": HEADS}, Comparison(name="x", axis="head", condition="swapped", measure=measure))
        for measure in ("success", "obeyed")
    }
    disobeyed, obeyed = (only(study, lines).findings[0] for study in of.values())
    assert (disobeyed.verdict, obeyed.verdict) == ("lower", "higher")
    assert disobeyed.value == pytest.approx(-obeyed.value)
    result = only(of["obeyed"], with_other_instructions(lines, judged=False))
    assert not result.findings
    assert "does not judge the instructed goal under swapped" in result.missing[0]


def test_stopped_cells_are_tested_sequentially():
    study = make_study({"head": HEADS}, stop=Stop(block=5))
    lines = [dataclasses.replace(line, stopped=True) for line in sample_lines(study, by_head, episodes=30)]
    (finding,) = only(study, lines).findings
    assert finding.test == "sequential"
    assert finding.verdict == "higher"
    assert "ended early" in finding.sentence
    assert "3 training seeds" in finding.sentence
    assert all(seed.stopped for row in analyze(study, lines).tables[0].rows for seed in row.seeds)


def test_what_cannot_be_told_says_how_many_seeds_would():
    study = make_study({"head": HEADS})
    lines = sample_lines(study, lambda labels: 0.5, episodes=100, spread=0.05)
    analysis = analyze(study, lines)
    (finding,) = analysis.results[0].findings
    assert finding.verdict == "cannot tell"
    assert finding.seeds_for_planned > 2
    assert "would detect a difference of 10 points with 80 % power" in finding.sentence
    assert analysis.answer.startswith("The only test shows no difference.")
    assert "higher" not in analysis.answer


def test_the_answer_claims_what_the_tests_show():
    study = make_study({"head": HEADS})
    text = analyze(study, sample_lines(study, by_head, episodes=40)).answer
    assert "gru against none: " in text
    assert "points higher" in text
    assert text.count(". ") == 1
    assert "no results" in analyze(study, []).answer


def test_the_whole_analysis_is_plain_json():
    study = make_study(
        {"head": HEADS, "window": [1, 4]},
        Comparison(name="a", axis="head", by="window"),
        Comparison(name="b", axis="window", kind="cost"),
    )
    lines = sample_lines(study, by_head)
    text = json.dumps(dataclasses.asdict(analyze(study, lines)), allow_nan=False)
    assert json.loads(text)["results"][0]["findings"][0]["verdict"] == "higher"


def test_a_store_of_another_study_is_refused_and_dropped_labels_are_ignored():
    study = make_study({"head": HEADS})
    lines = sample_lines(make_study({"head": {**HEADS, "old": {}}}), lambda labels: 0.5)
    assert len(analyze(study, lines).tables[0].rows) == 2
    with pytest.raises(ConfigError, match="of the study 'another'"):
        analyze(study, [dataclasses.replace(lines[0], study="another")])


def test_suites_of_one_study_keep_their_own_protocol():
    """One suite has pairs of tasks, which must neither double the episodes of the other nor prevent its means."""
    axes = {"suite": {"pairs": {}, "plain": {}}, "head": HEADS}
    study = make_study(axes, Comparison(name="x", axis="head", by="suite"))
    other = "metaworld/recall"
    lines = [
        dataclasses.replace(
            line,
            episodes=tuple(dataclasses.replace(p, benchmark=other) for p in line.episodes),
            protocols={other: {"pairs": [TASKS], "groups": {"both": list(TASKS)}}},
        )
        if line.labels["suite"] == "pairs"
        else line
        for line in sample_lines(study, by_head, episodes=20)
    ]
    result = only(study, lines)
    assert result.benchmarks == (other, BENCHMARK)
    assert not result.notes
    assert [(p.group["suite"], p.label, p.score.episodes) for p in result.points] == [
        (suite, head, 20 * len(TASKS) * 3) for suite in ("pairs", "plain") for head in HEADS
    ]
    assert [finding.states for finding in result.findings] == [20, 40]
    where = Comparison(name="x", axis="head", where={"suite": "pairs"}, tasks=("both",))
    assert not only(dataclasses.replace(study, comparisons=(where,)), lines).missing
