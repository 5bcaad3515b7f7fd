"""The page of a run: one folder with an index.html and its videos, which a browser opens without any network.

Every number is computed from the files of the run (`run.py`) when the page is written. What is missing is said on the
page, with the command that makes it. Assets are put in place first and the page last, so that an interruption leaves
the page that was there before.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyvla.evaluation.hardware import describe_machine
from anyvla.evaluation.statistics import Summary
from anyvla.files.durable import replacing
from anyvla.report import plots
from anyvla.report.evaluation import write_evaluation_report
from anyvla.report.run_folder import Clip, RunFolder, read_run_folder
from anyvla.report.template import TEMPLATES, environment, style, write_html
from anyvla.report.usage import list_sources, usage_guide

PACKAGES = ("anyvla", "torch", "transformers", "numpy", "av")  # named on the page with their versions

# Why the words are the only way to know the task, by benchmark.
START_STATES = {
    "metaworld/half-open": (
        "The drawer and the window start half open, at a place drawn from the same range for both instructions; goal "
        "markers are hidden, and the policy sees two cameras and its own hand, never the state of the objects."
    ),
}


def write_report(run: Path) -> Path:
    """Write `<run>/report/` from the files of a run and return its index.html.

    Raises ValueError if the folder holds nothing of a run, or if one of its files is broken.
    """
    found = read_run_folder(Path(run))
    folder = found.root / "report"
    folder.mkdir(exist_ok=True)
    videos = {clip.path: name for clip, name in _names(found.clips)}
    for source, name in videos.items():
        _place(source, folder / name)
    if found.results:
        write_evaluation_report(found.root / "eval", folder / "evaluation.html")
    else:
        (folder / "evaluation.html").unlink(missing_ok=True)  # of results that are gone
    page = environment().get_template("run.html.j2").render(_context(found, videos))
    index = write_html(folder / "index.html", page)
    for old in set((folder / "videos").glob("*.mp4")) - {folder / name for name in videos.values()}:
        old.unlink()
    return index


def _context(run: RunFolder, videos: Mapping[Path, str]) -> dict[str, Any]:
    clips = [clip for clip in run.clips if clip.path in videos]
    pairs = _pairs(clips)
    paired = [clip for pair in pairs for clip in pair]
    rest = [clip for clip in clips if clip not in paired]
    alone = usage_guide(run)
    return {
        "run": run,
        "folder": shlex.quote(str(run.root)),
        "again": shlex.quote(f"{run.root}-again"),
        "recipe_file": shlex.quote(str(run.checkpoint / "config.yaml")) if run.recipe_text else "RECIPE",
        "name": str(run.recipe.get("name") or run.root.resolve().name),
        "css": style(),
        "script": Markup((TEMPLATES / "run.js").read_text(encoding="utf-8")),
        "verdict": verdict(run.summary) if alone is None else alone_verdict(run),
        "alone": alone,
        "sources": list_sources(run.recipe),
        "collects": alone is None and not any((run.recipe.get("data") or {}).get(k) for k in ("sources", "preset")),
        "took": _minutes(run.log),
        "summary": run.summary,
        "words": _words(run),
        "opposite": {r.task: r.told for r in run.results if r.condition == "swapped"},
        "start_states": START_STATES.get(run.summary.benchmark if run.summary else ""),
        "both_ways": _both_ways(run),
        "videos": videos,
        "pairs": pairs,
        "successes": [c for c in rest if c.obeyed and c.condition != "unrelated"],
        "failures": [c for c in rest if not c.obeyed and c.condition != "unrelated"],
        "unrelated": [c for c in rest if c.condition == "unrelated"],
        "lost": len(run.clips) - len(clips),
        "failed": sum(r.reached != r.told for r in run.results if r.condition != "unrelated"),
        "curves": _curves(run.log),
        "versions": _versions(run),
        "machine": describe_machine(),
    }


@dataclass(frozen=True)
class Verdict:
    """The page's one sentence."""

    tone: str  # "good" | "open" | "bad": a class of the style sheet
    text: str


def alone_verdict(run: RunFolder) -> Verdict:
    """Return the sentence for a run that no simulator can evaluate."""
    trained = "trained" if run.checkpoint == run.root / "checkpoint" else "not trained to the end"
    return Verdict("open", f"This policy is {trained} and has not been evaluated: its recipe names no simulator.")


def verdict(summary: Summary | None) -> Verdict:
    """What the results say in one sentence.

    A policy listens if, told the opposite, it reaches the told goal more often than the first one, and the intervals of
    the two do not overlap; it ignores the words if it is the other way round. Anything between is left open. Listening
    alone is not good: the tone also asks that it does what it is told in more than half of the episodes.
    """
    if summary is None:
        return Verdict("open", "This policy has not been evaluated yet, so there is nothing to say about it.")
    if summary.told is None:
        does = "What it does when told its task has not been played yet"
    else:
        own = summary.told.overall
        does = f"Told what to do, the robot did it in {own.successes} of {own.episodes} unseen episodes"
        does += f" ({plots.percent(own.value)})"
    if summary.swapped is None or summary.swapped_obeyed is None:
        return Verdict("open", f"{does}; whether it listens to the words was not tried.")
    first, obeyed = summary.swapped.overall, summary.swapped_obeyed.overall
    counts = (
        f"told the opposite from the same start, it went for the first goal in {first.successes} of {first.episodes}"
    )
    if obeyed.low > first.high:
        able = summary.told is not None and summary.told.overall.low > 0.5
        return Verdict("good" if able else "open", f"{does}, and it listens: {counts}.")
    if first.low > obeyed.high:
        return Verdict("bad", f"{does}, but it does not listen: {counts}.")
    return Verdict("open", f"{does}; whether it listens stays open: {counts}.")


def _words(run: RunFolder) -> dict[str, str]:
    """Per task, the first of its instructions that was given."""
    words: dict[str, str] = {}
    for result in run.results:
        words.setdefault(result.told, result.instruction)
    return words


@dataclass(frozen=True)
class BothWays:
    """Start states that were played under both instructions of a pair."""

    starts: int
    told_apart: int  # each instruction led to its own goal


def _both_ways(run: RunFolder) -> BothWays | None:
    told = {(r.task, r.seed): r for r in run.results if r.condition == "told"}
    both = [(told[r.task, r.seed], r) for r in run.results if r.condition == "swapped" and (r.task, r.seed) in told]
    if not both:
        return None
    return BothWays(len(both), sum(a.reached == a.told and b.reached == b.told for a, b in both))


def _pairs(clips: Sequence[Clip]) -> list[tuple[Clip, Clip]]:
    """Clips of one start state and opposite words; first those where each reached its own goal.

    A clip is in one pair at most. Equal scene and seed mean equal start states, and the two tasks that a swapped
    episode names share a scene.
    """
    scenes = {task: frozenset((c.task, c.told)) for c in clips if c.condition == "swapped" for task in (c.task, c.told)}
    candidates = [
        (a, b)
        for i, a in enumerate(clips)
        for b in clips[i + 1 :]
        if a.seed == b.seed
        and a.told != b.told
        and a.task in scenes
        and scenes.get(b.task) == scenes[a.task]
        and {a.told, b.told} == scenes[a.task]
    ]
    candidates.sort(key=lambda pair: -sum(c.obeyed for c in pair))
    chosen: list[tuple[Clip, Clip]] = []
    for pair in candidates:
        if not any(c in used for used in chosen for c in pair):
            chosen.append(pair)
    return chosen


def _names(clips: Sequence[Clip]) -> Iterable[tuple[Clip, str]]:
    """The clips whose files exist, each with a name in the report's folder."""
    return ((clip, f"videos/{clip.path.name}") for clip in clips if clip.path.is_file())


def _place(source: Path, target: Path) -> None:
    """Have the file at `target` too: the same one where the file system can, else a copy."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(exist_ok=True)
    with replacing(target, to_disk=False) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)


def _curves(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Captions and drawings; a column that no line has is left out."""
    wanted = [("loss", "Loss", True), ("lr", "Learning rate", False), ("grad_norm", "Gradient norm", True)]
    drawn = []
    for key, title, logarithmic in wanted:
        lines = [line for line in log if isinstance(line.get(key), int | float)]
        if lines:
            drawn.append((title, plots.curve([x["step"] for x in lines], [x[key] for x in lines], title, logarithmic)))
    return drawn


def _minutes(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how long the process of the last log line trained."""
    seconds = log[-1].get("elapsed_s") if log else None
    return seconds / 60 if isinstance(seconds, int | float) else None


def _versions(run: RunFolder) -> dict[str, str]:
    """Of what the results depend on (as the result lines say), then of what runs here."""
    found: dict[str, dict[str, None]] = {}
    for result in run.results:
        simulator = {k: v for k, v in result.protocol.get("simulator", {}).items() if k not in result.versions}
        for name, version in {**result.versions, **simulator}.items():
            found.setdefault(name, {})[str(version)] = None
    versions = {name: ", ".join(values) for name, values in found.items()}
    here = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return versions | {name: version for name, version in here.items() if name not in versions}
