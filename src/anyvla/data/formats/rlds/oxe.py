"""Interprets the numbers of Open X-Embodiment data sets by the table `oxe.yaml`.

A data set names keys and shapes, not their meaning. An entry of the table adds it: the keys of the cameras, the columns
of the action and the proprio, the gripper's polarity, the rate. The numbers stay those of the data (arXiv 2310.08864),
except for the named steps of an entry.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float32, Int64
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
    """One group of a vector: consecutive columns of one key, and the steps applied to them."""

    key: str  # below `steps`: "action", "action/world_vector", "observation/state"
    group: Group
    first: int = Field(default=0, ge=-COUNT, le=COUNT)  # first column; negative: counted from the end
    steps: tuple[Step, ...] = ()  # in this order; see STEPS

    def __post_init__(self) -> None:
        if self.first < 0 and self.first + self.columns > 0:
            raise ValueError(f"{self.key}: {self.columns} columns from {self.first} on exceed the end")
        if "euler" in self.steps and self.group.rotation != "euler":
            raise ValueError(f"{self.key}: the step euler needs a group with rotation: euler, not {self.group.name!r}")
        if "clip" in self.steps and self.group.low is None:
            raise ValueError(f"{self.key}: the step clip needs low and high of group {self.group.name!r}")

    @property
    def columns(self) -> int:
        """The number of columns that are read."""
        return 4 if "euler" in self.steps else self.group.size

    def read(self, values: np.ndarray) -> Float32[np.ndarray, "T G"]:
        """Return the group from the key's values over a whole episode: (T, columns), or (T,) for one number per step.

        Raises ValueError for values with too few columns.
        """
        values = np.asarray(values, np.float32).reshape(len(values), math.prod(np.shape(values)[1:]))  # (T, columns)
        start = self.first if self.first >= 0 else values.shape[1] + self.first
        if start < 0 or start + self.columns > values.shape[1]:
            raise ValueError(
                f"{self.key} has {values.shape[1]} columns, the group {self.group.name!r} needs {self.columns} from "
                f"{self.first} on: the table describes another version of the data set"
            )
        values = values[:, start : start + self.columns]
        for step in self.steps:
            values = STEPS[step](values, self.group)
        return values


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OxeEntry:
    """One data set: the keys of its cameras, action, proprio and instruction, and their meaning."""

    robot: str  # embodiment name; data sets share it if their actions mean exactly the same
    cameras: Mapping[str, str]  # primary, secondary, wrist -> key of an RGB image below `steps`
    action: tuple[ColumnGroup, ...]
    proprio: tuple[ColumnGroup, ...] = ()
    instruction: tuple[str, ...]  # keys, one for each wording; empty: no instruction
    instruction_coding: Literal["text", "integers"] = "text"  # integers: bytes of UTF-8, padded with zeros
    control_hz: float = Field(gt=0, le=HZ)
    skip_first_step: bool = False
    drop_last_step: bool = False
    success: str | None = None  # key beside `steps` that flags success; episodes without it are left out
    swapped: tuple[str, ...] = ()  # cameras whose published images are BGR; see docs/data_oxe.md
    version: str | None = None  # the version to use if others are broken or differ
    aliases: tuple[str, ...] = ()  # other names of the same data, in copies or other tables
    notes: str = ""
    unverified: tuple[str, ...] = ()  # facts without a source, or on which sources disagree

    def __post_init__(self) -> None:
        if any("difference" in p.steps for p in self.action + self.proprio) and not self.drop_last_step:
            raise ValueError("the last step has no difference: set drop_last_step")
        if unknown := set(self.swapped) - set(self.cameras):
            raise ValueError(f"swapped: there is no camera {', '.join(sorted(unknown))}")
        for parts in (self.action, self.proprio):
            ActionSpace(groups=tuple(p.group for p in parts))  # raises for equal names

    @property
    def embodiment(self) -> Embodiment:
        """The robot as the episodes show it."""
        return Embodiment(
            name=self.robot,
            cameras=tuple(self.cameras),
            proprio=ActionSpace(groups=tuple(p.group for p in self.proprio)),
            action=ActionSpace(groups=tuple(p.group for p in self.action)),
            control_hz=self.control_hz,
        )

    @property
    def number_keys(self) -> tuple[str, ...]:
        """The keys that `proprio_and_actions` needs, each once."""
        return tuple(dict.fromkeys(p.key for p in self.action + self.proprio))

    def kept_steps(self, length: int) -> slice:
        """Return the steps of a recorded episode that become steps of the `Episode`."""
        start = int(self.skip_first_step)
        return slice(start, max(start, length - int(self.drop_last_step)))

    def count_kept(self, lengths: Int64[np.ndarray, "E"]) -> Int64[np.ndarray, "E"]:
        """Return the number of `kept_steps` of episodes of these lengths."""
        return np.maximum(lengths - self.skip_first_step - self.drop_last_step, 0)

    def proprio_and_actions(
        self, values: Mapping[str, np.ndarray], length: int
    ) -> tuple[Float32[np.ndarray, "K P"], Float32[np.ndarray, "K A"]]:
        """Return proprio and actions of the K kept steps, from the values of `number_keys` over all `length` steps.

        Raises ValueError for a key that is missing, has another length, or has too few columns.
        """
        kept, vectors = self.kept_steps(length), []
        for parts in (self.proprio, self.action):
            groups = [np.zeros((kept.stop - kept.start, 0), np.float32)]
            for part in parts:
                if part.key not in values:
                    raise ValueError(f"the key {part.key!r} is missing; the episode has {', '.join(values)}")
                if len(values[part.key]) != length:
                    raise ValueError(f"{part.key} has {len(values[part.key])} steps, the episode {length}")
                # steps that look along the episode must not see skipped values
                groups.append(part.read(values[part.key][kept.start :])[: kept.stop - kept.start])
            vectors.append(np.concatenate(groups, axis=1))
        return vectors[0], vectors[1]


def find_entry(name: str) -> OxeEntry | None:
    """Return the entry of a data set by its tensorflow-datasets name ("bridge_orig"), or None."""
    entries = load_entries()
    return entries.get(name) or next((e for e in entries.values() if name in e.aliases), None)


@functools.cache
def load_entries() -> Mapping[str, OxeEntry]:
    """Return all entries by name."""
    text = resources.files("anyvla.data.formats.rlds").joinpath("oxe.yaml").read_text(encoding="utf-8")
    entries: Mapping[str, Any] = yaml.safe_load(text)["datasets"]
    return {name: build(OxeEntry, entry, where=f"oxe.yaml, {name}") for name, entry in entries.items()}


def decode_integers(values: np.ndarray) -> str:
    """Return an instruction that is stored as integers, as in Language-Table: the bytes of UTF-8, padded with zeros.

    Raises ValueError for numbers that are not UTF-8.
    """
    try:
        return bytes(int(v) for v in values).rstrip(b"\0").decode("utf-8")
    except ValueError as error:
        raise ValueError(f"the instruction is not UTF-8, a byte in each integer: {error}") from None


def _binary(values: np.ndarray, group: Group) -> np.ndarray:
    # between its ends, a gripper counts as at the end it moves to; if it never arrives, its last value is kept
    out = values.copy()
    decided = (values > 0.95) | (values < 0.05)
    target = values[-1] if len(values) else None
    for t in reversed(range(len(values))):
        target = np.where(decided[t], (values[t] > 0.95).astype(np.float32), target)
        out[t] = target
    return out


def _events(values: np.ndarray, group: Group) -> np.ndarray:
    # before its first event, the gripper was at the other end; without events, it was open
    change = np.where(values < -0.1, 1.0, np.where(values > 0.1, -1.0, 0.0)).astype(np.float32)
    out = np.empty_like(change)
    for column in range(change.shape[1]):
        happened = np.flatnonzero(change[:, column])
        now = -change[happened[0], column] if len(happened) else 1.0
        for t in range(len(change)):
            now = change[t, column] or now
            out[t, column] = (now + 1) / 2
    return out


# The named steps; they take (T, G) values of a whole episode:
# clip        to the group's low and high
# binary      0 or 1; values between 0.05 and 0.95 become the end that the gripper moves to
# events      "close" > 0.1, "open" < -0.1, otherwise no change -> 1 open, 0 closed, until the next event
# difference  x[t+1] - x[t]: a delta action from reached states
# euler       4 columns, a quaternion x, y, z, w -> roll, pitch, yaw
STEPS: Mapping[str, Callable[[np.ndarray, Group], np.ndarray]] = {
    "clip": lambda values, group: np.clip(values, group.low, group.high),
    "binary": _binary,
    "events": _events,
    # the last step has no successor: the entry drops it
    "difference": lambda values, group: np.diff(values, axis=0, append=values[-1:]),
    "euler": lambda values, group: convert(values, "quaternion_xyzw", "euler").astype(np.float32),
}
