"""Tests of the videos, start states and log lines that the report of a run selects."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from anyvla.evaluation.statistics import summarize
from anyvla.report.run_folder import Clip, RunFolder, read_clips, read_run_folder
from anyvla.report.run_report import (
    _collect_versions,
    _count_paired_starts,
    _make_context,
    _pair_clips,
    state_verdict,
    write_report,
)
from anyvla.report.template import environment
from tests.fake_run import make_run, write_results
from tests.report.reading import Page
from tests.report.test_page import original_and_swapped


def run_of(results=(), clips=(), log=()) -> RunFolder:
    summary = summarize(results) if results else None
    return RunFolder(Path("run"), {}, "", log, results, summary, clips, (), None, Path("run/checkpoint"), {})


def clip(condition, task, instructed, seed, reached, name="") -> Clip:
    path = Path(f"{name or condition}-{task}-{seed}.mp4")
    return Clip(path, task, instructed, condition, f"do {instructed}", reached == task, reached, seed, 9)


@pytest.mark.parametrize(
    ("counts", "tone", "words"),
    [
        # Of 20: 6 are 14.5 to 51.9 %, 12 are 38.7 to 78.1 %, 13 are 43.3 to 81.9 %; 2 are 2.8 to 30.1 %.
        ((20, 6, 12), "open", "whether it uses the instruction remains open"),
        ((20, 12, 6), "open", "whether it uses the instruction remains open"),
        ((20, 2, 13), "good", "and it uses the instruction"),
        ((20, 13, 2), "bad", "but it ignores the instruction"),
        ((14, 2, 13), "open", "and it uses the instruction"),  # 14 of 20 are 48.1 to 85.5 %: perhaps no more than half
        ((15, 2, 13), "good", "and it uses the instruction"),  # 15 are 53.1 to 88.8 %
    ],
)
def test_a_verdict_needs_disjoint_intervals(counts, tone, words):
    stated = state_verdict(summarize(original_and_swapped(*counts)))
    assert stated.tone == tone
    assert words in stated.text


def test_start_states_whose_two_instructions_were_followed_are_counted():
    lines = original_and_swapped(
        succeeded=3, first=0, obeyed=2, n=4
    )  # original: seeds 0 to 2 succeed; swapped: seeds 0 and 1 obey
    other = [replace(r, task="door-open", instructed="door-open", reached="door-open", seed=r.seed) for r in lines[:4]]
    found = _count_paired_starts(run_of([*lines, *other]))
    assert (found.starts, found.both_followed) == (4, 2)
    assert _count_paired_starts(run_of(lines[:4])) is None


def test_videos_of_one_start_state_and_opposite_instructions_are_a_pair():
    both = ("original", "a", "a", 1, "a"), ("swapped", "a", "b", 1, "b")
    missed = ("original", "b", "b", 2, None), ("swapped", "b", "a", 2, "b")
    films = [clip(*given) for given in (*missed, ("original", "a", "a", 7, "a"), ("swapped", "a", "b", 3, "b"), *both)]
    films.append(clip("original", "c", "c", 1, "c"))  # of another scene
    films.append(clip("unrelated", "a", "c", 1, "a"))
    found = [[(c.condition, c.task, c.seed) for c in pair] for pair in _pair_clips(films)]
    assert found == [
        [("original", "a", 1), ("swapped", "a", 1)],
        [("original", "b", 2), ("swapped", "b", 2)],
    ]


def test_videos_are_grouped_by_outcome(tmp_path):
    films = [
        clip("original", "a", "a", 0, "a"),
        clip("original", "a", "a", 1, None),
        clip("swapped", "a", "b", 2, "b"),
        clip("swapped", "a", "b", 3, "a"),
        clip("unrelated", "a", "c", 4, "a"),
        clip("unrelated", "a", "c", 5, None),
    ]
    lines = original_and_swapped(succeeded=4, first=3, obeyed=6, n=10)
    lines += [replace(r, condition="unrelated", instructed="c", reached=None) for r in lines[:5]]
    context = _make_context(run_of(lines, films), {film.path: film.path.name for film in films})
    seeds = {heading: [c.seed for c in context[heading]] for heading in ("successes", "failures", "unrelated")}
    assert seeds == {"successes": [0, 2], "failures": [1, 3], "unrelated": [4, 5]}
    assert context["failed"] == 6 + 4  # original 4 of 10, swapped 6 of 10; unrelated ones do not count
    assert context["opposite"] == {"drawer-open": "drawer-close"}


def test_versions_come_from_the_results_and_then_from_this_process():
    base = original_and_swapped(succeeded=1, first=0, obeyed=0, n=1)[0]
    protocol = {"simulator": {"mujoco": "3.3.0", "torch": "9"}}
    lines = [replace(base, seed=n, protocol=protocol, versions={"torch": f"0.{n}"}) for n in (1, 2)]
    found = _collect_versions(run_of(lines))
    assert (found["torch"], found["mujoco"]) == ("0.1, 0.2", "3.3.0")
    assert found["python"] == platform.python_version()
    assert {"anyvla", "transformers", "numpy", "av"} <= set(found)


def test_each_curve_has_its_own_caption_and_scale():
    log = [{"step": s, "loss": 1.0 / s, "lr": 1e-3 * s, "grad_norm": 5.0 * s, "elapsed_s": 45 * s} for s in (1, 2, 4)]
    context = _make_context(run_of(log=log), {})
    found = {title: str(drawing) for title, drawing in context["curves"]}
    assert list(found) == ["Loss", "Learning rate", "Gradient norm"]
    assert "<title>step 4: 0.25</title>" in found["Loss"]
    assert "<title>step 4: 0.004</title>" in found["Learning rate"]
    assert "<title>step 4: 20</title>" in found["Gradient norm"]
    assert ">0<" in found["Learning rate"]  # its axis is linear and begins at 0
    assert [">0.2<" in found[title] for title in ("Loss", "Learning rate")] == [
        True,
        False,
    ]  # the loss has a logarithmic axis
    assert context["took"] == 3  # minutes of the last line


def test_numbers_that_were_measured_in_training_have_curves():
    log = [
        {"step": 1, "loss": 4.0},
        {
            "step": 2,
            "loss": 2.0,
            "validation.loss": 3.0,
            "validation.left_arm_cm": 1.5,
            "validation.gripper_accuracy": 1,
        },
        {"step": 3, "evaluation.success": 0.25, "evaluation.success_low": 0.1, "evaluation.success_high": 0.5},
        {"step": 4, "validation.loss": 5.0},
    ]
    found = {title: str(drawing) for title, drawing in _make_context(run_of(log=log), {})["curves"]}
    assert list(found) == [
        "Loss",
        "Success in training, with 95 % intervals",
        "Left arm (cm), held out",
        "Gripper (accuracy), held out",
    ]
    assert "held out: 3 at step 2, 5 at step 4" in found["Loss"]
    assert "<title>step 2: 1.5</title>" in found["Left arm (cm), held out"]
    assert "25\xa0%, interval 10\N{EN DASH}50\xa0%" in found["Success in training, with 95 % intervals"]


def test_the_stages_of_a_run_are_added_up(tmp_path):
    runs = [
        ("collect", 1.1, 1.9, False), ("collect", 1.3, 2.1, True), ("train", 3.4, 2.9, True),
        ("collect", 0.004, 0.3, True), ("train", 0.5, None, False),
    ]  # fmt: skip
    keys = ("stage", "minutes", "peak_memory_gb", "finished")
    (tmp_path / "stages.jsonl").write_text("".join(json.dumps(dict(zip(keys, r, strict=True))) + "\n" for r in runs))
    stages = [(s.name, s.minutes, s.peak_memory_gb, s.runs, s.finished) for s in read_run_folder(tmp_path).stages]
    assert stages == [
        ("collect", pytest.approx(2.404), 2.1, 3, True), ("train", pytest.approx(3.9), 2.9, 2, False)
    ]  # fmt: skip


def test_failed_attempts_are_counted_one_by_one(tmp_path):
    found = read_run_folder(make_run(tmp_path / "run", filmed=False)).demonstrations
    assert found.failures == {"door-open": 2, "drawer-open": 0}
    assert (found.episodes, found.frames, found.fps) == (240, 9705, 40)


def test_the_last_intermediate_checkpoint_is_reported(tmp_path):
    for step in (400, 1200, 800):
        folder = tmp_path / f"train/step-{step:08}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"name: at {step}\n")
    assert read_run_folder(tmp_path).checkpoint.name == "step-00001200"
    assert read_run_folder(tmp_path).recipe == {"name": "at 1200"}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.yaml").write_text("name: done\n")
    assert read_run_folder(tmp_path).recipe == {"name": "done"}


@pytest.mark.parametrize(("minutes", "text"), [(0.2, "12 s"), (0.99, "59 s"), (1, "1.0 min"), (4.25, "4.2 min")])
def test_times_are_in_seconds_below_a_minute(minutes, text):
    assert environment().filters["minutes"](minutes) == text


def test_the_page_gives_each_tasks_numbers_in_its_row(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", filmed=False)))
    rows = {str(cells[0]).split()[0]: cells[1:] for cells in page.rows("language")[2:]}
    assert [c for c in rows["drawer-open"] if isinstance(c, str)] == ["20 /20", "20 /20", "0 /20", "2 /10"]
    assert [c for c in rows["door-open"] if isinstance(c, str)] == ["19 /20", "no opposite", "no opposite", "2 /10"]
    assert [c for c in rows["All"] if isinstance(c, str)] == ["119 /120", "80 /80", "0 /80", "12 /60"]
    kinds = [(c.kind, c.width) for c in rows["drawer-open"] if not isinstance(c, str)]
    assert kinds == [("high", 100), ("high", 100), ("low", 0), ("neutral", 20)]
    tasks = {str(cells[0]).split()[0]: cells[1:] for cells in page.rows("tasks")[1:]}
    assert tasks["door-open"][:2] == ["19 /20", "95 %"]
    assert tasks["All"][:2] == ["119 /120", "99.2 %"]


def test_an_index_of_videos_of_format_2_is_read_under_todays_names(tmp_path):
    entry = {"file": "told-a-0.mp4", "task": "a", "told": "a", "condition": "told+light=coloured"}
    entry |= {"instruction": "go", "success": True, "reached": "a", "seed": 0, "steps": 9}
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    (clip,) = read_clips(tmp_path)
    assert (clip.path.name, clip.instructed, clip.condition) == ("told-a-0.mp4", "a", "original+light=colored")


@pytest.mark.parametrize("judged", [True, False])
def test_the_page_of_chains_names_their_average_length(tmp_path: Path, judged: bool) -> None:
    """`swapped` counts the first task. Where only the current goal is judged, nobody knows what else was reached."""
    run = make_run(tmp_path / "run", filmed=False)
    base = replace(
        original_and_swapped(1, 0, 0, 1)[0],
        task="chain",
        instructed="chain",
        length=5,
        protocol={"other_goals": "judged"} if judged else {},
    )
    lines = [
        replace(base, seed=i, completed=d, outcome="success" if d == 5 else "failure") for i, d in enumerate([5, 2, 3])
    ]
    lines += [
        replace(base, condition="swapped", instructed="b", reached="b", seed=i, outcome="failure") for i in range(3)
    ]
    (run / "eval" / "results.jsonl").unlink()
    write_results(run / "eval" / "results.jsonl", lines)
    page = Page(write_report(run))
    text = " ".join(" ".join(page.sections.values()).split())
    assert "The robot solved 3.33 of 5 tasks in a row, on average over 3 chains" in text
    assert ("whether it uses the instruction was not tested" in text) is not judged
    assert ("it reached the original goal in 0 of 3" in text) is judged
    assert "Average length 3.33" in text
