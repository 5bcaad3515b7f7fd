"""Write the page of an open-loop evaluation: `index.html`, from the summary, results and predictions beside it.

First the errors by group against baselines, then the error over a chunk, then episodes, the worst first, each with its
video beside the predicted and the recorded actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from anyvla.config import build
from anyvla.evaluation.open_loop.recordings import Recording
from anyvla.evaluation.open_loop.results import OpenLoopResult, read_open_loop_results, read_prediction
from anyvla.evaluation.open_loop.summary import GroupSummary, OpenLoopSummary, RobotSummary, read_summary
from anyvla.interrupted import Interrupted
from anyvla.report.episode import resample_frames
from anyvla.report.prediction_curves import draw_horizon, draw_prediction, draw_ratio
from anyvla.report.template import TEMPLATES, Verdict, environment, style, write_html
from anyvla.report.video import write_video
from anyvla.robot.space import ActionSpace, label_dims

MEASURES = {
    "distance": "distance to the recorded position",
    "angle": "angle to the recorded rotation",
    "accuracy": "opened or closed as recorded",
    "difference": "absolute difference, mean over dims",
}
SPLITS = {
    "validation": "recorded episodes that were held out of its training",
    "training": "episodes of its training data, so this does not show whether it generalizes",
    "given": "recorded episodes",
}
STANDINGS = {"better": "good", "worse": "bad", "unclear": "open", "equal": "none"}  # classes of the style sheet


@dataclass(frozen=True)
class EpisodeView:
    """An episode on the page."""

    result: OpenLoopResult
    score: float
    videos: Mapping[str, str]  # camera -> file, relative to the page
    curves: Sequence[tuple[str, Markup]]  # name of the dim, drawing
    seconds: float


def video_file(folder: Path, result: OpenLoopResult, camera: int) -> Path:
    """Return the path of the video of a camera, given by its number. It is the same for all policies."""
    return folder / "videos" / f"{result.data[:16]}-{result.episode}-{camera}.mp4"


def film_recordings(
    recordings: Sequence[Recording],
    results: Sequence[OpenLoopResult],
    summary: OpenLoopSummary,
    folder: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write the missing videos of the episodes that the page shows. Raises Interrupted when `stop()` is true."""
    pairs = {result.key: (recording, result) for recording, result in zip(recordings, results, strict=True)}
    shown = [pairs[episode.key] for episode in summary.worst_first[: summary.shown]]
    for done, (recording, result) in enumerate(shown):
        if stop():
            raise Interrupted(f"stopped after the videos of {done} of {len(shown)} episodes; run it again to resume")
        progress(done, len(shown))
        files = {camera: video_file(folder, result, i) for i, camera in enumerate(result.cameras)}
        missing = {camera: file for camera, file in files.items() if not file.is_file()}
        episode = recording.dataset[recording.index] if missing else None
        for camera, file in missing.items():
            assert episode is not None
            frames = resample_frames(episode.images[camera], episode.timestamps, result.control_hz)
            write_video(file, frames, result.control_hz)
    progress(len(shown), len(shown))


def write_open_loop_report(folder: Path) -> Path:
    """Write `folder/index.html` from the files beside it and return its path. Raises ValueError if one is broken."""
    summary, results = read_summary(folder), read_open_loop_results(folder)
    lost = [episode.key for episode in summary.worst_first if episode.key not in results]
    if lost:
        raise ValueError(f"{folder / 'results.jsonl'} lacks {len(lost)} episodes of the summary; replay them again")
    spaces = {robot.robot: build(ActionSpace, robot.space) for robot in summary.robots}
    ranked = [(results[episode.key], episode.score) for episode in summary.worst_first]
    first = ranked[0][0]
    context = {
        "summary": summary,
        "name": folder.resolve().parent.name,
        "css": style(),
        "script": Markup((TEMPLATES / "episode.js").read_text(encoding="utf-8")),
        "verdict": state_open_loop_verdict(summary),
        "split": SPLITS[summary.split],
        "measures": MEASURES,
        "standings": STANDINGS,
        "horizons": [(robot.robot, _draw_horizons(robot, summary)) for robot in summary.robots],
        "views": [
            _view_episode(folder, result, score, spaces[result.robot]) for result, score in ranked[: summary.shown]
        ],
        "ranked": ranked,
        "roots": sorted({(result.root, result.data) for result, _ in ranked}),
        "first": first,
        "format_error": format_error,
        "ratio_bar": _draw_ratio_bar,
    }
    return write_html(folder / "index.html", environment().get_template("open_loop.html.j2").render(context))


def state_open_loop_verdict(summary: OpenLoopSummary) -> Verdict:
    """Summarize the errors in one sentence.

    The tone is "good" if the policy is clearly better than the better baseline in every group in which they differ, on
    episodes that it was not trained on; "bad" if it is clearly better in none, and clearly worse in one at least.
    """
    several = len(summary.robots) > 1
    named = [
        (f"{group.group} of {robot.robot}" if several else group.group, group)
        for robot in summary.robots
        for group in robot.groups
    ]
    groups = [(name, group) for name, group in named if group.standing != "equal"]
    equal = [name for name, group in named if group.standing == "equal"]
    on = f"On {summary.episodes} {SPLITS[summary.split]}"
    if not groups:
        return Verdict("open", f"{on}: the policy and the better baseline make the same errors in every group.")
    better = [name for name, group in groups if group.standing == "better"]
    others = [name for name, group in groups if group.standing != "better"]
    numbers = "; ".join(f"{name} {_compare(group)}" for name, group in groups)
    if not better:
        tone = "bad" if any(group.standing == "worse" for _, group in groups) else "open"
        return Verdict(tone, f"{on}: the policy predicts no group clearly better than the baselines ({numbers}).")
    if others:
        text = f"clearly better than the baselines in {', '.join(better)}, but not in {', '.join(others)}"
        return Verdict("open", f"{on}: the policy is {text} ({numbers}).")
    tone = "open" if summary.split == "training" else "good"
    where = f"in {', '.join(better)}, and equal in {', '.join(equal)}" if equal else "in every group"
    return Verdict(tone, f"{on}: the policy is clearly better than the baselines {where} ({numbers}).")


def format_error(value: float, unit: str) -> str:
    """Format an error with three digits and its unit: "0.31 cm", "98.5 %"."""
    number = f"{value:.1f}" if unit == "%" else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{number} {unit}".rstrip()


def _compare(group: GroupSummary) -> str:
    return f"{format_error(group.error, group.unit)} against {format_error(getattr(group, group.baseline), group.unit)}"


def _draw_ratio_bar(group: GroupSummary) -> Markup:
    """Draw the error of a group relative to the better baseline's; nothing if that makes no error."""
    errors = group.error, getattr(group, group.baseline)
    own, other = (100 - error if group.measure == "accuracy" else error for error in errors)
    return draw_ratio(own / other, group.group) if other > 0 else Markup("")


def _draw_horizons(robot: RobotSummary, summary: OpenLoopSummary) -> list[tuple[str, Markup]]:
    drawn = []
    for group in robot.groups:
        lines = {
            "line": group.horizon,
            "mean": group.horizon_mean_action,
            "still": group.horizon_hold_still,
        }
        unit = f", {group.unit}" if group.unit else ""
        title = f"{group.group}: {group.measure}{unit}"
        drawn.append((title, draw_horizon(lines, summary.execute, group.unit, f"{robot.robot}, {group.group}")))
    return drawn


def _view_episode(folder: Path, result: OpenLoopResult, score: float, space: ActionSpace) -> EpisodeView:
    prediction, times = read_prediction(folder, result)
    files = {camera: video_file(folder, result, number) for number, camera in enumerate(result.cameras)}
    curves = []
    for group, dims in zip(space.groups, space.slices().values(), strict=True):
        unit = f", {group.unit}" if group.unit else ""
        for label, dim in zip(label_dims(group), range(dims.start, dims.stop), strict=True):
            name = f"{group.name} {label}{unit}" if group.size > 1 or group.names else f"{group.name}{unit}"
            chunks = prediction.chunks[..., dim]
            limits = (group.low, group.high) if group.kind == "gripper" else None
            recorded = prediction.actions[:, dim]
            curves.append((name, draw_prediction(times, recorded, prediction.starts, chunks, name, limits)))
    videos = {camera: f"videos/{file.name}" for camera, file in files.items() if file.is_file()}
    return EpisodeView(result, score, videos, curves, float(times[-1]))
