"""Defines the error for data that does not declare an embodiment.

A reader that needs an embodiment raises `UndeclaredError`. The error has an embodiment without conventions that opens
the data for inspection; `anyvla.data.tools.proposal` makes a proposal from it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group


class UndeclaredError(ValueError):
    """The data set declares no embodiment.

    `plain` is an embodiment without conventions, and `options` are its keys of `format`. If `timed`, the data declares
    its rate; else the rate of `plain` is a guess.
    """

    def __init__(self, root: Path, plain: Embodiment, options: Mapping[str, Any], timed: bool = True) -> None:
        super().__init__(root, plain, options, timed)  # they must be its `args`, so that it can be pickled
        self.root, self.plain, self.options, self.timed = root, plain, options, timed

    def __str__(self) -> str:
        path = shlex.quote(str(self.root))
        source = json.dumps(str(self.root), ensure_ascii=False) if path != str(self.root) else path
        return (
            f"{self.root} does not declare the meaning of its numbers, so nothing can be trained on it. "
            f"Let anyvla propose a declaration:\n  anyvla data info {path} --write robot.yaml\n"
            "Answer the lines marked CHECK in that file. Then name it in a recipe, as in\n"
            f"  data: {{sources: [{{path: {source}, embodiment: robot.yaml}}]}}\n"
            "or on the commands of anyvla data, as --source robot.yaml"
        )


def plain_embodiment(
    name: str,
    cameras: Sequence[str],
    control_hz: float,
    proprio: Mapping[str, int | Sequence[str]],
    action: Mapping[str, int | Sequence[str]],
) -> Embodiment:
    """Return an embodiment without conventions: one group of kind `other` per column, given its size or its names."""

    def space(columns: Mapping[str, int | Sequence[str]]) -> ActionSpace:
        groups = []
        for key, dims in columns.items():
            size, names = (dims, ()) if isinstance(dims, int) else (len(dims), tuple(dims))
            groups += [Group(name=key, size=size, names=names)] if size else []
        return ActionSpace(groups=tuple(groups))

    return Embodiment(
        name=name, cameras=tuple(cameras), proprio=space(proprio), action=space(action), control_hz=control_hz
    )
