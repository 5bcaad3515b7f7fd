"""What the numbers of Open X-Embodiment data sets mean: the table `oxe.yaml`, and the few steps its entries name.

A data set says which key holds what shape, not what it means. An entry says it: which keys are cameras, which columns
make the action and the proprio, the gripper's polarity, the rate. The numbers stay those of the data (arXiv
2310.08864); what a step changes is said by its name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float32
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, build
from anyvla.limits import COUNT, HZ
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import convert
from anyvla.robot.space import ActionSpace, Group

Step = Literal["clip", "binary", "events", "difference", "euler"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ColumnGroup:
    """One group of a vector: consecutive columns of one key, and what is done with them first."""

    key: str  # below `steps`: "action", "action/world_vector", "observation/state"
    group: Group
    first: int = Field(default=0, ge=-COUNT, le=COUNT)  # its first column; negative: counted from the end
    steps: tuple[Step, ...] = ()  # in this order; see STEPS

    def __post_init__(self) -> None:
        if self.first < 0 and self.first + self.columns > 0:
            raise ValueError(f"{self.key}: {self.columns} columns from {self.first} on run over the end")
        if "euler" in self.steps and self.group.rotation != "euler":
            raise ValueError(f"{self.key}: the step euler makes a rotation: euler, not a group {self.group.name!r}")
        if "clip" in self.steps and self.group.low is None:
            raise ValueError(f"{self.key}: to clip it, group {self.group.name!r} needs low and high")

    @property
    def columns(self) -> int:
        """How many columns of the key it reads."""
        return 4 if "euler" in self.steps else self.group.size

    def read(self, values: np.ndarray) -> Float32[np.ndarray, "T G"]:
        """The group out of the key's values of a whole episode: (T, columns), (T,) for one number a step.

        Raises ValueError for values that have too few columns.
        """
        values = np.asarray(values, np.float32).reshape(len(values), math.prod(np.shape(values)[1:]))  # (T, columns)
        start = self.first if self.first >= 0 else values.shape[1] + self.first
        if start < 0 or start + self.columns > values.shape[1]:
            raise ValueError(
                f"{self.key} has {values.shape[1]} columns, the group {self.group.name!r} is {self.columns} from "
                f"{self.first} on: this is another version of the data set than the table describes"
            )
        values = values[:, start : start + self.columns]
        for step in self.steps:
            values = STEPS[step](values, self.group)
        return values


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OxeEntry:
    """One data set: where its cameras, action, proprio and instruction lie, and what they mean."""

    robot: str  # embodiment name: equal for data sets whose actions mean exactly the same
    cameras: Mapping[str, str]  # primary, secondary, wrist -> key of an RGB image below `steps`
    action: tuple[ColumnGroup, ...]
    proprio: tuple[ColumnGroup, ...] = ()
    instruction: tuple[str, ...]  # keys, each another wording; none: the data has no instruction
    instruction_coding: Literal["text", "integers"] = "text"  # integers: one a byte of UTF-8, padded with zeros
    control_hz: float = Field(gt=0, le=HZ)
    skip_first_step: bool = False
    drop_last_step: bool = False
    success: str | None = None  # key of an episode's flag, beside `steps`; the others are failures, not demonstrations
    swapped: tuple[str, ...] = ()  # cameras whose published images are BGR; see docs/data_oxe.md
    version: str | None = None  # the version to take, if others are broken or differ
    aliases: tuple[str, ...] = ()  # other names of the same data: of copies, of other people's tables
    notes: str = ""
    unverified: tuple[str, ...] = ()  # what no source was found for, or sources disagree on

    def __post_init__(self) -> None:
        if any("difference" in p.steps for p in self.action + self.proprio) and not self.drop_last_step:
            raise ValueError("a difference has no value at the last step: set drop_last_step")
        if unknown := set(self.swapped) - set(self.cameras):
            raise ValueError(f"swapped: there is no camera {', '.join(sorted(unknown))}")
        for parts in (self.action, self.proprio):
            ActionSpace(groups=tuple(p.group for p in parts))  # names differ

    @property
    def embodiment(self) -> Embodiment:
        """The robot as its episodes show it."""
        return Embodiment(
            name=self.robot,
            cameras=tuple(self.cameras),
            proprio=ActionSpace(groups=tuple(p.group for p in self.proprio)),
            action=ActionSpace(groups=tuple(p.group for p in self.action)),
            control_hz=self.control_hz,
        )

    @property
    def number_keys(self) -> tuple[str, ...]:
        """The keys that `numbers` needs, each once."""
        return tuple(dict.fromkeys(p.key for p in self.action + self.proprio))

    def kept_steps(self, length: int) -> slice:
        """The steps of an episode of the file that are steps of the `Episode`: of its images and its numbers."""
        start = int(self.skip_first_step)
        return slice(start, max(start, length - int(self.drop_last_step)))

    def proprio_and_actions(
        self, values: Mapping[str, np.ndarray], length: int
    ) -> tuple[Float32[np.ndarray, "K P"], Float32[np.ndarray, "K A"]]:
        """Proprio and actions of the kept steps, out of the values of `number_keys` over all `length` steps.

        Raises ValueError for a key that is missing, has another length, or too few columns.
        """
        return self._joined(self.proprio, values, length), self._joined(self.action, values, length)

    def _joined(
        self, parts: tuple[ColumnGroup, ...], values: Mapping[str, np.ndarray], length: int
    ) -> Float32[np.ndarray, "K D"]:
        kept = self.kept_steps(length)
        vectors = [np.zeros((kept.stop - kept.start, 0), np.float32)]
        for part in parts:
            if part.key not in values:
                raise ValueError(f"the key {part.key!r} is missing; the episode has {', '.join(values)}")
            if len(values[part.key]) != length:
                raise ValueError(f"{part.key} has {len(values[part.key])} steps, the episode {length}")
            # what is skipped at the start must not be seen by steps that look along the episode
            vectors.append(part.read(values[part.key][kept.start :])[: kept.stop - kept.start])
        return np.concatenate(vectors, axis=1)


def find_entry(name: str) -> OxeEntry | None:
    """The entry of a data set by its tensorflow-datasets name ("bridge_orig"); None if the table does not know it."""
    entries = load_entries()
    return entries.get(name) or next((e for e in entries.values() if name in e.aliases), None)


@functools.cache
def load_entries() -> Mapping[str, OxeEntry]:
    """All entries by name."""
    text = resources.files("anyvla.data.formats.rlds").joinpath("oxe.yaml").read_text(encoding="utf-8")
    entries: Mapping[str, Any] = yaml.safe_load(text)["datasets"]
    return {name: build(OxeEntry, entry, where=f"oxe.yaml, {name}") for name, entry in entries.items()}


def decode_integers(values: np.ndarray) -> str:
    """An instruction stored as integers, as Language-Table does: the bytes of UTF-8, zeros after the end.

    Raises ValueError for numbers that are no UTF-8.
    """
    try:
        return bytes(int(v) for v in values).rstrip(b"\0").decode("utf-8")
    except ValueError as error:
        raise ValueError(f"the instruction is not UTF-8, a byte in each integer: {error}") from None


def _clip(values: np.ndarray, group: Group) -> np.ndarray:
    return np.clip(values, group.low, group.high)


def _binary(values: np.ndarray, group: Group) -> np.ndarray:
    # on the way between the ends, a gripper is where it will arrive; where it never arrives, its last value stands
    out = values.copy()
    decided = (values > 0.95) | (values < 0.05)
    target = values[-1] if len(values) else None
    for t in reversed(range(len(values))):
        target = np.where(decided[t], (values[t] > 0.95).astype(np.float32), target)
        out[t] = target
    return out


def _events(values: np.ndarray, group: Group) -> np.ndarray:
    # before its first event the gripper was at the other end; without any event it was open
    change = np.where(values < -0.1, 1.0, np.where(values > 0.1, -1.0, 0.0)).astype(np.float32)
    out = np.empty_like(change)
    for column in range(change.shape[1]):
        happened = np.flatnonzero(change[:, column])
        now = -change[happened[0], column] if len(happened) else 1.0
        for t in range(len(change)):
            now = change[t, column] or now
            out[t, column] = (now + 1) / 2
    return out


def _difference(values: np.ndarray, group: Group) -> np.ndarray:
    out = np.zeros_like(values)  # the last has no next: the entry drops it
    out[:-1] = values[1:] - values[:-1]
    return out


def _euler(values: np.ndarray, group: Group) -> np.ndarray:
    return convert(values, "quaternion_xyzw", "euler").astype(np.float32)


# Named steps, on (T, G) values of a whole episode:
# clip        to the group's low and high
# binary      0 or 1: what lies between 0.05 and 0.95 becomes the end it is on the way to
# events      "close" > 0.1, "open" < -0.1, otherwise no change -> 1 open, 0 closed, held until the next event
# difference  x[t+1] - x[t]: a delta action made of reached states
# euler       4 columns, a quaternion x, y, z, w -> roll, pitch, yaw
STEPS: Mapping[str, Callable[[np.ndarray, Group], np.ndarray]] = {
    "clip": _clip,
    "binary": _binary,
    "events": _events,
    "difference": _difference,
    "euler": _euler,
}
