"""Write the report of a run: a folder with an index.html and videos, which a browser opens without a network.

Every number is computed from the files of the run (`run_folder.py`). The report names missing parts, with the command
that makes each. Videos are placed first and index.html last, so an interruption leaves the previous report intact.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyvla.evaluation.conditions import ORIGINAL
from anyvla.evaluation.hardware import describe_machine
from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.open_loop.summary import SUMMARY, read_summary
from anyvla.evaluation.statistics import ConditionSummary, Summary
from anyvla.files.documents import read_yaml
from anyvla.files.durable import replacing
from anyvla.report import plots
from anyvla.report.evaluation import write_evaluation_report
from anyvla.report.open_loop import state_open_loop_verdict
from anyvla.report.run_folder import Clip, RunFolder, read_run_folder
from anyvla.report.template import TEMPLATES, Verdict, environment, style, write_html
from anyvla.report.usage import list_sources, make_usage_guide

START_STATES = Path(__file__).with_name("start_states.yaml")
NOT_EVALUATED = "This policy is {} and has not been evaluated: its recipe names no simulator."
PACKAGES = ("anyvla", "torch", "transformers", "numpy", "av")  # their versions are shown in the report


def write_report(run: Path) -> Path:
    """Write `<run>/report/` from the files of a run and return the path of its index.html.

    Raises ValueError if the folder has no part of a run, or if one of its files is broken.
    """
    found = read_run_folder(Path(run))
    folder = found.root / "report"
    folder.mkdir(exist_ok=True)
    videos = {clip.path: f"videos/{clip.path.name}" for clip in found.clips if clip.path.is_file()}
    for source, name in videos.items():
        _link_or_copy(source, folder / name)
    if found.results:
        write_evaluation_report(found.root / "eval", folder / "evaluation.html")
    else:
        (folder / "evaluation.html").unlink(missing_ok=True)  # its results were deleted
    html = environment().get_template("run.html.j2").render(_make_context(found, videos))
    index = write_html(folder / "index.html", html)
    for old in set((folder / "videos").glob("*.mp4")) - {folder / name for name in videos.values()}:
        old.unlink()
    return index


def _make_context(run: RunFolder, videos: Mapping[Path, str]) -> dict[str, Any]:
    clips = [clip for clip in run.clips if clip.path in videos]
    pairs = _pair_clips(clips)
    paired = [clip for pair in pairs for clip in pair]
    rest = [clip for clip in clips if clip not in paired]
    guide = make_usage_guide(run)
    trained = "trained" if run.checkpoint == run.root / "checkpoint" else "not trained to the end"
    return {
        "run": run,
        "folder": shlex.quote(str(run.root)),
        "again": shlex.quote(f"{run.root}-again"),
        "recipe_file": shlex.quote(str(run.checkpoint / "config.yaml")) if run.recipe_text else "RECIPE",
        "name": str(run.recipe.get("name") or run.root.resolve().name),
        "css": style(),
        "script": Markup((TEMPLATES / "run.js").read_text(encoding="utf-8")),
        "verdict": state_verdict(run.summary) if guide is None else Verdict("open", NOT_EVALUATED.format(trained)),
        "guide": guide,
        "sources": list_sources(run.recipe),
        "collects": guide is None and not any((run.recipe.get("data") or {}).get(k) for k in ("sources", "preset")),
        "took": _find_training_minutes(run.log),
        "summary": run.summary,
        "instructions": {r.instructed: r.instruction for r in reversed(run.results)},
        "opposite": {r.task: r.instructed for r in run.results if r.condition == "swapped"},
        "start_states": read_yaml(START_STATES).get(run.summary.benchmark if run.summary else ""),
        "paired_starts": _count_paired_starts(run),
        "videos": videos,
        "pairs": pairs,
        "successes": [c for c in rest if c.obeyed and c.condition != "unrelated"],
        "failures": [c for c in rest if not c.obeyed and c.condition != "unrelated"],
        "unrelated": [c for c in rest if c.condition == "unrelated"],
        "lost": len(run.clips) - len(clips),
        "failed": sum(not r.obeyed for r in run.results if r.condition != "unrelated"),
        "curves": _draw_curves(run.log),
        "open_loop": _state_open_loop(run.root / "open-loop"),
        "versions": _collect_versions(run),
        "machine": describe_machine(),
    }


def state_verdict(summary: Summary | None) -> Verdict:
    """Summarize the results in one sentence.

    A policy uses its instruction if, given the opposite one, it reaches the instructed goal more often than the
    original one, and the two intervals do not overlap; it ignores the instruction in the reverse case. Otherwise the
    question stays open. The tone is "good" only if the policy also succeeds in more than half of the episodes.
    """
    if summary is None:
        return Verdict("open", "This policy has not been evaluated yet.")
    if summary.chance is not None and summary.original is not None:
        return _compare_with_chance(summary.conditions[ORIGINAL], summary.original.overall, summary.chance)
    if summary.original is None:
        does = "The policy has not been evaluated with the original instructions yet"
    else:
        does = _state_success(summary.conditions[ORIGINAL])
    if summary.swapped is None or summary.swapped_obeyed is None:
        return Verdict("open", f"{does}; whether it uses the instruction was not tested.")
    chains = summary.conditions["swapped"].chains
    first, obeyed = chains.in_a_row[0] if chains else summary.swapped.overall, summary.swapped_obeyed.overall
    counts = (
        f"given the opposite instruction from the same start states, it reached the original goal in {first.successes} "
        f"of {first.episodes}"
    )
    if obeyed.low > first.high:
        reliable = summary.original is not None and summary.original.overall.low > 0.5
        return Verdict("good" if reliable else "open", f"{does}, and it uses the instruction: {counts}.")
    if first.low > obeyed.high:
        return Verdict("bad", f"{does}, but it ignores the instruction: {counts}.")
    return Verdict("open", f"{does}; whether it uses the instruction remains open: {counts}.")


def _state_success(played: ConditionSummary) -> str:
    assert played.success is not None
    own = played.success.overall
    if played.chains is not None:
        length, most = played.chains.average_length, len(played.chains.in_a_row)
        return f"The robot solved {length.value:.2f} of {most} tasks in a row, on average over {own.episodes} chains"
    return (
        f"The robot followed its instruction in {own.successes} of {own.episodes} unseen episodes "
        f"({plots.format_percent(own.value)})"
    )


def _compare_with_chance(played: ConditionSummary, own: Interval, chance: float) -> Verdict:
    """Say which pairs of tasks the policy solves more often than chance, by their intervals."""
    above = [name for name, pair in played.pairs.items() if pair.rate.low > chance]
    below = [name for name in played.pairs if name not in above]
    rate, level = plots.format_percent(own.value), plots.format_percent(chance)
    text = f"The robot succeeded in {own.successes} of {own.episodes} unseen episodes ({rate}), where chance is {level}"
    text += f"; above chance: {', '.join(above) or 'none'}"
    text += f"; not distinguished from it: {', '.join(below)}." if below else "."
    return Verdict("good" if above and not below else "open", text)


@dataclass(frozen=True)
class PairedStarts:
    """Start states that were played under both instructions of a pair."""

    starts: int
    both_followed: int  # each instruction led to its own goal


def _count_paired_starts(run: RunFolder) -> PairedStarts | None:
    original = {(r.task, r.seed): r for r in run.results if r.condition == ORIGINAL}
    swapped = [r for r in run.results if r.condition == "swapped"]
    both = [(original[r.task, r.seed], r) for r in swapped if (r.task, r.seed) in original]
    if not both:
        return None
    return PairedStarts(len(both), sum(a.first_obeyed and b.first_obeyed for a, b in both))


def _pair_clips(clips: Sequence[Clip]) -> list[tuple[Clip, Clip]]:
    """Pair the videos of one start state and opposite instructions; pairs that followed both come first.

    A video is in at most one pair. Equal scene and seed mean equal start states, and the two tasks of a swapped episode
    share a scene.
    """
    pairs = [(c.task, c.instructed) for c in clips if c.condition == "swapped"]
    scenes = {task: frozenset(pair) for pair in pairs for task in pair}
    candidates = [
        (a, b)
        for i, a in enumerate(clips)
        for b in clips[i + 1 :]
        if a.seed == b.seed
        and a.instructed != b.instructed
        and a.task in scenes
        and scenes.get(b.task) == scenes[a.task]
        and {a.instructed, b.instructed} == scenes[a.task]
    ]
    candidates.sort(key=lambda pair: -sum(c.obeyed for c in pair))
    chosen: list[tuple[Clip, Clip]] = []
    for pair in candidates:
        if not any(c in used for used in chosen for c in pair):
            chosen.append(pair)
    return chosen


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file to `target`, or copy it where the file system has no links."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(exist_ok=True)
    with replacing(target, to_disk=False) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)


def _draw_curves(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Draw the columns of a training log that have values. Return captions and drawings."""
    held_out, trained = _column(log, "validation.loss"), _column(log, "loss")
    drawn = []
    if trained:
        names = ("training", "held out") if held_out else None
        steps, values = zip(*trained, strict=True)
        drawn.append(("Loss", plots.draw_curve(steps, values, "Loss", log=True, names=names, second=held_out)))
    success = "evaluation.success"
    rates = {
        int(line["step"]): Interval(line[success], line[f"{success}_low"], line[f"{success}_high"], 0)
        for line in log
        if success in line
    }
    if rates:
        title = "Success in training, with 95 % intervals"
        drawn.append((title, plots.draw_rate_curve(rates, "step", title)))
    errors = dict.fromkeys(n for line in log for n in line if n.startswith("validation.") and n != "validation.loss")
    titles = {name: _name_error(name) for name in errors}
    for key, title in (titles | {"lr": "Learning rate", "grad_norm": "Gradient norm"}).items():
        if points := _column(log, key):
            steps, values = zip(*points, strict=True)
            drawn.append((title, plots.draw_curve(steps, values, title, log=key == "grad_norm")))
    return drawn


def _name_error(column: str) -> str:
    """Return "Position (cm), held out" for the column `validation.position_cm`."""
    group, _, unit = column.removeprefix("validation.").rpartition("_")
    return f"{group.replace('_', ' ').capitalize()} ({unit}), held out"


def _column(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return the steps and values of a column where it has any."""
    return [(line["step"], line[key]) for line in log if isinstance(line.get(key), int | float)]


def _state_open_loop(folder: Path) -> Verdict | None:
    """Return the verdict of the open-loop evaluation of the run; None if there is none."""
    return state_open_loop_verdict(read_summary(folder)) if (folder / SUMMARY).is_file() else None


def _find_training_minutes(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the training time in minutes of the process that wrote the last line with a time."""
    seconds = [line["elapsed_s"] for line in log if isinstance(line.get("elapsed_s"), int | float)]
    return seconds[-1] / 60 if seconds else None


def _collect_versions(run: RunFolder) -> dict[str, str]:
    """Return the versions that the results record, then the ones of the packages that run here."""
    found: dict[str, dict[str, None]] = {}
    for result in run.results:
        simulator = {k: v for k, v in result.protocol.get("simulator", {}).items() if k not in result.versions}
        for name, version in {**result.versions, **simulator}.items():
            found.setdefault(name, {})[str(version)] = None
    versions = {name: ", ".join(values) for name, values in found.items()}
    here = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return versions | {name: version for name, version in here.items() if name not in versions}
