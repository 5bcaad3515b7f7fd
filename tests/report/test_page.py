from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, replace
from urllib.parse import unquote

import pytest
import yaml

from anyvla.evaluation.statistics import summarize
from anyvla.report.plots import format_interval, format_percent
from anyvla.report.run_report import state_verdict, write_report
from tests.fake_run import OPPOSITE, WORDS, make_run, results
from tests.report.reading import Page, plain


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "quickstart")


def test_the_page_needs_nothing_from_outside(run):
    index = write_report(run)
    assert index == run / "report" / "index.html"
    page = Page(index)
    assert page.open == []
    for name, attributes in page.tags:
        for key in ("src", "href", "data", "poster", "srcset", "action"):
            address = attributes.get(key)
            if address is None or address.startswith(("#", "data:")):
                continue
            assert not re.match(r"[a-z]+:|//", address), f"<{name}> asks for {address}"
            assert (index.parent / unquote(address.partition("#")[0])).is_file(), f"<{name}> lacks {address}"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", page.html)
    assert len({v["src"] for v in page.all("video")}) == len(json.loads((run / "eval/videos/index.json").read_text()))


def test_the_numbers_equal_the_summary(run):
    page = Page(write_report(run))
    summary = summarize(results())
    head, tasks, listening = plain(page.text("head")), plain(page.text("tasks")), plain(page.text("language"))
    assert "followed its instruction in 119 of 120 unseen episodes (99.2 %), and it uses the instruction" in head
    assert "reached the original goal in 0 of 80" in head
    for rates in (summary.original, summary.swapped, summary.unrelated):
        assert plain(format_percent(rates.overall.value)) in head
        assert f"95 % interval {plain(format_interval(rates.overall))}" in head
    for task, interval in summary.original.tasks.items():
        assert (
            f"{interval.successes} /20 {plain(format_percent(interval.value))} {plain(format_interval(interval))}"
            in tasks
        )
        assert f"“{WORDS[task]}”" in tasks or WORDS[task] in tasks
    for task, opposite in OPPOSITE.items():
        assert f"{task} opposite: {opposite}" in listening
    labels = [plain(a["aria-label"]) for a in page.all("svg")]
    assert "door-open: 19 of 20, 95 %, interval 76.4\N{EN DASH}99.1 %" in labels
    assert "all, opposite instruction, original goal: 0 of 80, 0 %, interval 0\N{EN DASH}4.6 %" in labels
    assert (
        "drawer-open, opposite instruction, instructed goal: 20 of 20, 100 %, interval 83.9\N{EN DASH}100 %" in labels
    )
    assert (
        "80 start states that were played under both instructions of a pair, 80 led to the instructed goal" in listening
    )


def test_stages_and_commands_are_listed(run):
    made = plain(Page(write_report(run)).text("made"))
    assert "collect 2.4 min 2.1 GB 3" in made  # three runs together
    assert "All 7.9 min 2.9 GB" in made
    assert "240 episodes, 9,705 frames at 40 Hz. 2 attempts of the scripted experts failed" in made
    assert "backbone: nano # <small>" in made
    assert "mujoco 3.3.0" in made
    assert f"anyvla train {run}/checkpoint/config.yaml --out {run}-again" in made


def test_commands_survive_a_folder_with_a_space(original, tmp_path):
    run = shutil.copytree(original, tmp_path / "my run")
    assert f"anyvla report '{run}-again'" in Page(write_report(run)).text("made")


def test_pairs_share_a_start_and_differ_in_instructions(run):
    page = Page(write_report(run))
    assert "Same start, opposite instructions" in page.text("pair")
    films = [a["src"].partition("#")[0] for a in page.all("video")]
    assert films[:2] == ["videos/original-drawer-open-0.mp4", "videos/swapped-drawer-open-0.mp4"]
    moving = [a for a in page.all("video") if "autoplay" in a]
    assert len(moving) == 2
    for attributes in page.all("video"):
        assert {"muted", "loop", "playsinline", "controls", "aria-label"} <= attributes.keys()
        assert attributes["preload"] == "metadata"


def test_failures_are_shown_or_their_absence_is_stated(original, tmp_path):
    shown = Page(write_report(original)).text("videos")
    assert (
        "Of the episodes with the original or the opposite instruction, 1 did not reach the instructed goal; all shown."
        in shown
    )
    assert "reached no goal" in shown
    spotless = Page(write_report(make_run(tmp_path / "spotless", failing=False))).text("videos")
    assert (
        "There was none: every episode with the original or the opposite instruction reached the instructed goal."
        in spotless
    )


def test_text_from_files_cannot_become_markup(run):
    page = Page(write_report(run))
    assert "<big>" not in page.html
    assert "&lt;big&gt; button &amp; hold" in page.html
    assert not [tag for tag, _ in page.tags if tag in ("big", "small")]


MISSING = {
    "checkpoint": ("made", "There is no checkpoint yet", "anyvla train RECIPE --out {run}"),
    "train": ("training", "There is no training log", "anyvla train {run}/checkpoint/config.yaml --out {run}"),
    "eval": ("tasks", "no episodes with the original instruction", "anyvla eval {run}"),
    "eval/videos": ("videos", "There are no videos", "anyvla eval {run}"),
    "dataset": ("made", "There are no demonstrations", "anyvla data collect {run}/checkpoint/config.yaml --out {run}"),
    "stages.jsonl": (
        "made",
        "The stages have no recorded times",
        "anyvla quickstart --recipe {run}/checkpoint/config.yaml --out {run}",
    ),
}


@pytest.mark.parametrize("part", MISSING)
def test_a_missing_part_is_shown_with_its_command(run, part):
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    section, sentence, command = MISSING[part]
    text = Page(write_report(run)).text(section)
    assert sentence in text
    assert command.format(run=run) in text


@pytest.mark.parametrize("part", ["checkpoint", "train", "eval", "dataset", "stages.jsonl"])
def test_one_part_alone_is_enough(original, tmp_path, part):
    run = tmp_path / "run"
    run.mkdir()
    (shutil.copytree if (original / part).is_dir() else shutil.copy)(original / part, run / part)
    page = Page(write_report(run))
    assert page.open == []
    assert len(page.sections) >= 5


def test_only_original_episodes(run):
    original = [r for r in results() if r.condition == "original"]
    (run / "eval/results.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in original))
    page = Page(write_report(run))
    assert "whether it uses the instruction was not tested" in page.text("head")
    assert "No episode was played with another instruction" in page.text("language")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has no part of a run .* anyvla report outputs/quickstart"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"there is no run folder .*; make one with: anyvla quickstart"):
        write_report(tmp_path / "nowhere")


BROKEN = {
    "checkpoint/config.yaml": ("a: [", r"config\.yaml.*not valid YAML"),
    "train/log.jsonl": ('{"loss": 1}\n', r"log\.jsonl, line 1: lacks step"),
    "eval/results.jsonl": ("{}\n", r"results\.jsonl, line 1: 'benchmark' is required"),
    "eval/videos/index.json": ('[{"file": "a.mp4"}]', r"index\.json: not an entry of a video \('task' is missing\)"),
    "stages.jsonl": ("3\n", r"stages\.jsonl, line 1: expected one JSON object, found int"),
    "dataset/meta/info.json": ('{"total_episodes": 3}', r"info\.json is not the info of a LeRobot dataset"),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_part_is_named_and_the_old_page_stays(run, part):
    before = write_report(run).read_bytes()
    text, message = BROKEN[part]
    (run / part).write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert (run / "report/index.html").read_bytes() == before


def test_a_video_outside_of_its_folder_is_refused(run):
    index = run / "eval/videos/index.json"
    entries = json.loads(index.read_text())
    entries[0]["file"] = "../../../secret.mp4"
    index.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="is outside of"):
        write_report(run)


def test_a_training_log_that_was_resumed_counts_each_step_once(run):
    log = run / "train/log.jsonl"
    lines = log.read_text().splitlines()
    again = json.dumps(json.loads(lines[70]) | {"loss": 0.0625})
    log.write_text("\n".join([*lines, again]) + '\n{"step": 8')  # and its last line is torn
    html = write_report(run).read_text()
    assert html.count("<title>step 710:") == 3  # loss, learning rate, gradient norm
    assert "<title>step 710: 0.0625</title>" in html


def test_a_rewritten_page_drops_deleted_videos(run):
    index = write_report(run)
    gone = run / "eval/videos/original-door-open-3.mp4"
    (run / "report/notes.txt").write_text("mine")
    gone.unlink()
    assert "1 of the recorded videos has been deleted" in Page(write_report(run)).text("videos")
    assert not (index.parent / "videos" / gone.name).exists()
    assert (run / "report/notes.txt").read_text() == "mine"
    assert not [p for p in index.parent.rglob("*") if "partial" in p.name]


def test_the_folder_is_complete_where_links_are_impossible(run, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    page = Page(write_report(run))
    shutil.rmtree(run / "eval")
    assert all((run / "report" / v["src"].partition("#")[0]).stat().st_size > 1000 for v in page.all("video"))


def outcome(won):
    return "success" if won else "failure"


def original_and_swapped(succeeded, first, obeyed, n=20):
    """Return results of one task: n original and n swapped episodes with these numbers of reached goals."""
    base = replace(results()[0], task="drawer-open", instructed="drawer-open", condition="original")
    goals = ["drawer-open"] * first + ["drawer-close"] * obeyed + [None] * (n - first - obeyed)
    lines = [
        replace(base, seed=i, outcome=outcome(i < succeeded), reached="drawer-open" if i < succeeded else None)
        for i in range(n)
    ]
    return lines + [
        replace(
            base,
            condition="swapped",
            instructed="drawer-close",
            seed=i,
            outcome=outcome(g == "drawer-open"),
            reached=g,
        )
        for i, g in enumerate(goals)
    ]


@pytest.mark.parametrize(
    ("counts", "tone", "words"),
    [
        ((20, 0, 20), "good", "and it uses the instruction"),
        ((20, 20, 0), "bad", "but it ignores the instruction"),
        ((20, 9, 11), "open", "whether it uses the instruction remains open"),
        ((0, 0, 0), "open", "followed its instruction in 0 of 20 unseen episodes"),
        ((4, 0, 12), "open", "and it uses the instruction"),  # it uses the instruction, but rarely succeeds
    ],
)
def test_the_verdict_follows_the_counts(counts, tone, words):
    stated = state_verdict(summarize(original_and_swapped(*counts)))
    assert stated.tone == tone
    assert words in stated.text
    assert f"{counts[0]} of 20" in stated.text
    assert f"original goal in {counts[1]} of 20" in stated.text


def test_without_results_there_is_no_verdict():
    assert "has not been evaluated yet" in state_verdict(None).text


@pytest.mark.parametrize(("second", "tone", "text"), [
    (9, "good", "where chance is 50 %; above chance: d0, d12."),
    (0, "open", "where chance is 50 %; above chance: d0; not distinguished from it: d12."),
])  # fmt: skip
def test_the_verdict_on_a_suite_with_a_chance_level_names_what_is_above_it(second: int, tone: str, text: str) -> None:
    tasks = {"d0": ["d0-a", "d0-b"], "d12": ["d12-a", "d12-b"]}
    protocol = {"groups": tasks, "chance": 0.5, "pairs": list(tasks.values())}
    won = {"d0-a": 10, "d0-b": 10, "d12-a": 10, "d12-b": second}
    results = [
        replace(r, task=task, instructed=task, seed=seed, outcome="success" if seed < n else "failure")
        for r in original_and_swapped(1, 0, 0, 1)[:1]
        for task, n in won.items()
        for seed in range(10)
    ]
    stated = state_verdict(summarize([replace(r, protocol=protocol) for r in results]))
    assert stated.tone == tone
    assert stated.text.replace("\N{NO-BREAK SPACE}", " ").endswith(text)


def test_the_full_evaluation_is_a_second_page(run):
    index = write_report(run)
    assert "evaluation.html" in [a.get("href") for a in Page(index).all("a")]
    beside = Page(index.with_name("evaluation.html"))
    assert beside.text("tasks")
    for video in beside.all("video"):
        assert (index.parent / unquote(video["src"].partition("#")[0])).is_file()


def test_without_results_there_is_no_evaluation_page(run):
    shutil.rmtree(run / "eval")
    index = write_report(run)
    assert not index.with_name("evaluation.html").exists()
    assert "evaluation.html" not in index.read_text()


def alone(run, **recipe):
    """Turn the run into a trained one whose recipe names no simulator."""
    for part in ("eval", "dataset", "stages.jsonl"):
        path = run / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    data = {"sources": [{"path": "data/so101 <b>"}]}
    document = {"name": "mine", "benchmark": None, "data": data, "model": {"backbone": "nano"}, **recipe}
    (run / "checkpoint/config.yaml").write_text(yaml.safe_dump(document))
    group = {"name": "joints", "size": 2, "names": ["pan.pos", "grip.pos"]}
    robot = {
        "name": "so101",
        "cameras": ["front", 'a "b"'],
        "control_hz": 30.0,
        "proprio": {"groups": [group]},
        "action": {"groups": [{"name": "joints", "size": 12}]},
    }
    (run / "checkpoint/embodiments.json").write_text(json.dumps([robot]))
    return Page(write_report(run))


def commands(page):
    """Return all commands that a page names."""
    code = " ".join(re.findall(r"<code>(.*?)</code>", page.html, re.DOTALL))
    return re.findall(r"^anyvla (?:data )?[a-z]+", code.replace("from anyvla", ""), re.MULTILINE)


def test_a_run_without_a_simulator_shows_only_possible_commands(run):
    page = alone(run)
    assert page.open == []
    assert "has not been evaluated: its recipe names no simulator" in page.text("head")
    assert not {"tasks", "language", "videos"} & set(page.sections)
    text = page.text("usage")
    assert f"anyvla serve {run}" in text
    assert 'images={"front": ..., "a \\"b\\"": ...}' in text
    assert "# proprio: float32 (2,), in the units of the data: pan.pos, grip.pos" in text
    assert "# action: float32 (12,), in the units of the data" in text
    assert "30 actions a second" in text
    assert "anyvla data view 'data/so101 <b>' --episode 0" in text
    assert "anyvla data info 'data/so101 <b>'" in page.text("made")
    assert not {"anyvla quickstart", "anyvla data collect"} & set(commands(page))
    assert set(commands(page)) <= {
        f"anyvla {c}" for c in ("serve", "eval", "power", "train", "report", "data view", "data info")
    }
    assert "anyvla eval" not in page.text("made")


def test_a_run_on_own_data_with_a_benchmark_is_evaluated_there(run):
    page = alone(run, benchmark="libero/goal")
    assert "usage" not in page.sections
    assert f"anyvla eval {run}" in page.text("tasks")
    assert "anyvla data collect" not in page.text("made")


@pytest.mark.parametrize("data", [{}, None, {"sources": []}, {"preset": "bridge", "root": "oxe"}])
def test_a_run_without_a_simulator_and_with_incomplete_files(run, data):
    page = alone(run, data=data)
    assert "usage" in page.sections
    assert not {"anyvla data view", "anyvla data info", "anyvla data collect"} & set(commands(page))
    (run / "checkpoint/embodiments.json").unlink()
    assert "camera" in Page(write_report(run)).text("usage")
    (run / "checkpoint/embodiments.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a list of embodiments"):
        write_report(run)


def test_a_run_without_a_simulator_that_is_not_finished(run):
    alone(run)
    step = run / "train/step-00000400"
    (run / "checkpoint").rename(step)
    page = Page(write_report(run))
    assert "not trained to the end" in page.text("head")
    assert f"Resume with anyvla train {step}/config.yaml --out {run}" in page.text("usage")
    assert f"anyvla serve {step}" in page.text("usage")
    assert f'VLA.load("{step}")' in page.text("usage")
