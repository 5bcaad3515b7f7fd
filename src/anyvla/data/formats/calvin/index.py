"""Reads the index files of a CALVIN split: the steps, the instruction and the scene of each episode.

Steps are numbers of files. `ep_start_end_ids.npy` and `scene_info.npy` include the last step. The language annotations
exclude it: the annotator writes (start, start + length), and CALVIN's own loader stops one before the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.formats.arrays.safe_pickle import load_objects
from anyvla.data.formats.json_records import read_json_text
from anyvla.files.documents import parse_json
from anyvla.files.inside import resolve_inside


@dataclass(frozen=True)
class Segment:
    """One episode: steps start .. end - 1."""

    start: int
    end: int
    scene: str = ""  # "A" .. "D"; "": unknown
    task: str = ""  # "open_drawer"
    instruction: str = ""
    fault: str = ""  # why it cannot be read

    @property
    def length(self) -> int:
        """The number of steps."""
        return self.end - self.start

    @property
    def name(self) -> str:
        """The name of the segment in messages."""
        return f"{self.start} ({self.task})"


def annotated_segments(split: Path, annotations: str) -> list[Segment]:
    """Return the segments that have an instruction. Raises ValueError if the annotations contradict each other."""
    path = next((p for p in (split / annotations / _ANNOTATIONS, split / _ANNOTATIONS) if p.is_file()), None)
    if path is None:
        raise ValueError(
            f"{split} has no {annotations}/{_ANNOTATIONS}; copy it again, or read the play data without instructions "
            "(segments: play)"
        )
    found = load_objects(resolve_inside(split, path.relative_to(split).as_posix()))
    try:
        words, tasks, places = found["language"]["ann"], found["language"]["task"], found["info"]["indx"]
        counts = len(words), len(tasks), len(places)
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"{path} does not hold language.ann, language.task and info.indx, as CALVIN writes it"
        ) from None
    if len(set(counts)) > 1:
        raise ValueError(f"{path}: {counts[0]} sentences, {counts[1]} tasks and {counts[2]} segments; expected equal")
    return _build_segments(f"{path}, annotation", places, zip(tasks, words, strict=True))


def play_segments(split: Path) -> list[Segment]:
    """Return the whole recordings, minutes long, without instructions."""
    path = split / "ep_start_end_ids.npy"
    ranges = load_objects(resolve_inside(split, path.name))
    if not isinstance(ranges, np.ndarray) or ranges.shape[1:] != (2,) or ranges.dtype.kind not in "iu":
        found = f"{ranges.dtype} of shape {ranges.shape}" if isinstance(ranges, np.ndarray) else "objects"
        raise ValueError(f"{path}: expected rows of a first and a last step, found {found}")
    return _build_segments(f"{path}, row", ranges, itertools.repeat(("", "")), last_included=True)


def select_scenes(segments: list[Segment], split: Path, wanted: tuple[str, ...]) -> list[Segment]:
    """Return the segments with their scene, restricted to the scenes in `wanted` if there are any."""
    path = split / "scene_info.npy"
    if not path.is_file():
        if wanted:
            raise ValueError(f"{split} has no scene_info.npy, so scenes {', '.join(wanted)} cannot be selected")
        return segments
    found = load_objects(resolve_inside(split, path.name))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected the first and the last step by scene name")
    ranges = {
        str(name).removeprefix("calvin_scene_"): _check_steps(pair, f"{path}, {name!r}") for name, pair in found.items()
    }
    absent = [w for w in wanted if w not in ranges]
    if absent:
        raise ValueError(f"{path} has no scene {absent[0]}; it has {', '.join(ranges)}")
    named = []
    for s in segments:
        scenes = (name for name, (first, last) in ranges.items() if first <= s.start <= last)
        named.append(replace(s, scene=next(scenes, "")))
    return [s for s in named if not wanted or s.scene in wanted]


def read_list(path: Path) -> set[tuple[int, int]]:
    """Return (first step, end) of the segments in a list: pairs in JSON, by task or not, or lines "number start end".

    RoboVLMs (arXiv 2412.14058) writes both: `10_shot_task_data.json` and `data_name_list.txt`.
    """
    try:
        text = read_json_text(path)
        if path.suffix == ".json":
            found: Any = parse_json(text, str(path))
            pairs = [p for group in found.values() for p in group] if isinstance(found, dict) else found
        else:
            pairs = [line.split()[-2:] for line in text.splitlines() if line.strip()]
        return {(int(start), int(end)) for start, end in pairs}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a list of segments: expected [[start, end], ...] as JSON ({error})") from None


_ANNOTATIONS = "auto_lang_ann.npy"
_MAX_STEPS = 10_000_000  # file names have seven digits


def _build_segments(
    where: str, places: Iterable[Any], texts: Iterable[tuple[Any, Any]], last_included: bool = False
) -> list[Segment]:
    """Return the segments at these places, with their task and instruction. Raises ValueError if all are damaged."""
    out = []
    for i, (place, (task, text)) in enumerate(zip(places, texts, strict=False)):
        try:
            start, last = _check_steps(place, f"{where} {i}")
            if start > last:
                raise ValueError(f"{where} {i}: steps {start} to {last} are not a segment")
            task, text = (_as_sentence(value, f"{where} {i}") for value in (task, text))
            end = last + 1 if last_included else last
            out.append(Segment(start, end, task=task, instruction=text))
        except ValueError as error:
            out.append(Segment(0, 1, fault=str(error)))
    if out and all(segment.fault for segment in out):
        raise ValueError(out[0].fault)
    return out


def _check_steps(pair: Any, where: str) -> tuple[int, int]:
    try:
        first, second = pair
        if int(first) != first or int(second) != second or not first >= 0 or not second < _MAX_STEPS:
            raise ValueError
        return int(first), int(second)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: expected a first and a last step, numbers of 0 to {_MAX_STEPS}") from None


def _as_sentence(text: Any, where: str) -> str:
    one = text if isinstance(text, str) or not isinstance(text, list | tuple | np.ndarray) else next(iter(text), "")
    if not isinstance(one, str):
        raise ValueError(f"{where}: expected text, found a {type(one).__name__}")
    return one.strip()
