"""Proposes an embodiment for data that declares none, from its names and its numbers, with reasons.

A proposal is a YAML file for `--source`. Each group has its reasons. Questions that names and numbers leave open are
marked CHECK, for a person to answer. `anyvla.data.tools.contradictions` finds answers that contradict the numbers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from anyvla.config import to_dict
from anyvla.data.episode import EpisodeDataset
from anyvla.data.tools import usual
from anyvla.data.tools.measured import MeasuredNumbers, VectorName, measure, read_or_none
from anyvla.data.tools.readings import Column, GroupReading, add_modes, add_range, read_column
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group


@dataclass(frozen=True)
class Proposal:
    """An embodiment, and the text of the file that proposes it."""

    embodiment: Embodiment
    options: Mapping[str, Any]  # keys of `format` that belong to it
    text: str

    @property
    def questions(self) -> list[str]:
        """Return the lines that a person must answer."""
        lines = (line.strip() for line in self.text.splitlines())
        return [line.removeprefix("# ") for line in lines if line.startswith("# CHECK")]


def propose(
    dataset: EpisodeDataset,
    options: Mapping[str, Any],
    *,
    timed: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Proposal:
    """Propose an embodiment for a data set that was opened with a plain one (`anyvla.data.undeclared`).

    `options` are the keys of `format` that it was opened with. `timed`: the data declares its rate. Reads all numbers
    and no frame; `progress(done, total)` counts episodes.
    """
    plain = dataset.embodiment
    measured = measure(dataset, progress)
    robot = usual.recognize_robot(plain.name, dataset.root.name)
    proprio = _read(plain.proprio, "proprio", measured, robot)
    actions = add_modes(_read(plain.action, "actions", measured, robot), proprio, measured)
    embodiment = replace(
        plain,
        proprio=ActionSpace(groups=tuple(r.group for r in proprio)),
        action=ActionSpace(groups=tuple(r.group for r in actions)),
    )
    text = "\n".join(_lines(dataset, embodiment, options, robot, timed, proprio, actions)) + "\n"
    return Proposal(embodiment, dict(options), text)


def _read(space: ActionSpace, part: VectorName, measured: MeasuredNumbers, robot: str | None) -> list[GroupReading]:
    columns = [
        Column(group.name, group.names, part, place, measured, robot, alone=len(space.groups) == 1)
        for group, place in zip(space.groups, space.slices().values(), strict=True)
    ]
    return _named_apart([add_range(read, measured, robot) for column in columns for read in read_column(column)])


def _named_apart(reads: Sequence[GroupReading]) -> list[GroupReading]:
    """Append numbers to the names of groups that share one."""
    out: list[GroupReading] = []
    for read in reads:
        taken = {r.group.name for r in out}
        names = itertools.chain([read.group.name], (f"{read.group.name}_{n}" for n in itertools.count(2)))
        out.append(replace(read, group=replace(read.group, name=next(n for n in names if n not in taken))))
    return out


def _lines(
    dataset: EpisodeDataset,
    robot: Embodiment,
    options: Mapping[str, Any],
    known: str | None,
    timed: bool,
    proprio: Sequence[GroupReading],
    actions: Sequence[GroupReading],
) -> Iterator[str]:
    yield f"# Proposed by anyvla from the names and the numbers of {_one_line(str(dataset.root))}, and not confirmed."
    yield "# Comments are the reasons for each group. Answer the lines marked CHECK, then remove the mark."
    yield "# docs/data_embodiments.md explains the keys; anyvla data check finds contradictions with the numbers."
    if options:
        yield f"format: {_flow(dict(options))}"
    yield "embodiment:"
    if known is not None:
        yield f"  # the robot is {known}, by its type or the name of the folder"
    yield f"  name: {json.dumps(robot.name, ensure_ascii=False)}"
    first = next((e for i in range(len(dataset)) if (e := read_or_none(dataset, i)) is not None), None)
    sizes = {c: "x".join(map(str, i.shape[1:3])) for c, i in first.images.items()} if first is not None else {}
    shown = ", ".join(f"{_one_line(c)} {size}" for c, size in sizes.items())
    yield f"  cameras: {_flow(list(robot.cameras))}" + (
        f"  # {shown}; leave out the ones you do not need" if shown else ""
    )
    if not timed:
        yield "  # CHECK control_hz: the data does not declare its number of steps per second"
    yield f"  control_hz: {robot.control_hz:g}"
    for name, reads in (("proprio", proprio), ("action", actions)):
        if not reads:
            yield f"  {name}: {{groups: []}}"
            continue
        yield f"  {name}:"
        yield "    groups:"
        for read in reads:
            why = [*read.why, *([read.by_size] if read.by_size else [])]
            yield f"      # {_one_line('; '.join(why))}"
            yield from (f"      # CHECK {_one_line(text)}" for text in read.check)
            yield f"      - {_flow(_short(read.group))}"


def _short(group: Group) -> dict[str, Any]:
    """Return the keys of a group that differ from their defaults."""
    plain = to_dict(Group(name="", size=1))
    kept = {key: value for key, value in to_dict(group).items() if key == "size" or value != plain.get(key)}
    if group.kind != "other":
        kept["mode"] = group.mode
    order = ("name", "size", "kind", "mode", "rotation", "unit", "frame", "low", "high", "open", "names")
    return {key: kept[key] for key in order if key in kept}


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text.strip().removesuffix("...").strip()


def _one_line(text: str) -> str:
    """Return text without line breaks, which would end a comment."""
    return " ".join(text.split())
