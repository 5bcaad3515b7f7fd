"""Find the facts about a recipe's data that its plan needs, from the index alone: robots, lengths, sizes of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Int64

from anyvla.config import build
from anyvla.data.training.cutting import count_rows, count_windows, longest_row
from anyvla.data.training.mixture import Mixture, open_mixture
from anyvla.evaluation.suites import open_suite
from anyvla.histories.base import History
from anyvla.planning.step_profile import Inputs
from anyvla.policy import VLAConfig
from anyvla.recipe import Recipe, collect_command
from anyvla.report.explanation import INSTRUCTION, dummy_chunks, dummy_statistics
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.text import clean_instruction
from anyvla_sim.base import BenchmarkUnusable

CHUNKS = 256  # made-up chunks to fit a codec to
IMAGE = (224, 224)  # pixels, where neither the recipe nor the data says
READ = 10_000  # episodes of a data set whose instructions are compared
ORDINARY_ARM: dict[str, Any] = {  # the robot if the recipe names none: an arm as in CALVIN or LIBERO
    "name": "an arm with two cameras",
    "cameras": ["static", "wrist"],
    "control_hz": 10,
    "proprio": {
        "groups": [
            {"name": "position", "size": 3, "kind": "position"},
            {"name": "rotation", "size": 3, "kind": "rotation"},
            {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1},
        ]
    },
    "action": {
        "groups": [
            {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
            {"name": "rotation", "size": 3, "kind": "rotation", "mode": "delta"},
            {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1},
        ]
    },
}


@dataclass(frozen=True)
class DataFacts:
    """The facts about the data of a recipe."""

    embodiments: tuple[Embodiment, ...]
    image_size: tuple[int, int]  # of the views
    instruction: str  # the longest, because a batch is padded to it
    episodes: int | None  # None: the data is not here yet
    windows: int | None
    frames: int | None  # of all cameras
    notes: tuple[str, ...]  # assumptions
    row: int | None = None  # steps of the longest whole row; None: training has windows, or the data is not here yet


def find_data(recipe: Recipe, run: Path) -> DataFacts:
    """Return the facts about the recipe's data, which is at its sources or was collected into the run folder.

    Without data, the robot is the one that a source declares or that the benchmark has, else an ordinary arm; a note
    says so, and names the missing data.
    """
    collected = run / "dataset"
    if recipe.data.given or collected.is_dir():
        try:
            # A plan does not read the numbers that choose the held-out episodes.
            mixture = open_mixture(dataclasses.replace(recipe.data, validation=None), collected)
        except ValueError as error:
            return _without_data(recipe, f"the recipe's data cannot be opened ({error})")
        return _describe(recipe, mixture)
    return _without_data(recipe, f"there are no demonstrations at {collected} yet ({collect_command(recipe, run)})")


def _describe(recipe: Recipe, mixture: Mixture) -> DataFacts:
    notes: list[str] = []
    embodiments = tuple({d.embodiment.name: d.embodiment for d in mixture.datasets}.values())
    size = recipe.model.view.size
    if size is None:
        first = mixture.datasets[0]
        height, width = first[0].images[first.embodiment.cameras[0]].shape[1:3]  # from its header
        size = int(height), int(width)
    texts = {clean_instruction(d.task(i)) for d in mixture.datasets for i in range(min(len(d), READ))}
    longest = max(texts, key=len, default="")
    windows, row = _count_samples(recipe.model, [d.lengths for d in mixture.datasets], notes)
    if recipe.data.validation is not None:
        notes.append("the samples include those that data.validation will hold out")
    return DataFacts(
        embodiments=embodiments,
        image_size=size,
        instruction=longest or INSTRUCTION,
        episodes=sum(len(d) for d in mixture.datasets),
        windows=windows,
        frames=sum(int(d.lengths.sum()) * len(d.embodiment.cameras) for d in mixture.datasets),
        notes=tuple(notes),
        row=row,
    )


def _count_samples(
    model: VLAConfig, lengths: Sequence[Int64[np.ndarray, "E"]], notes: list[str]
) -> tuple[int, int | None]:
    """Return the number of windows or whole rows, and the steps of the longest row. Add notes about rows to `notes`."""
    history: History = model.history.build()
    if not history.carries_state:
        return sum(int(count_windows(own, history.window, model.execute).sum()) for own in lengths), None
    row = max(longest_row(own, model.execute) for own in lengths)
    notes.append(f"a sample is a whole episode: memory and time are those of the longest, of {row} steps")
    if row > history.window:
        notes.append(f"training would refuse it: model.history.steps allows {history.window}")
    return sum(int(count_rows(own, model.execute).sum()) for own in lengths), row


def _without_data(recipe: Recipe, reason: str) -> DataFacts:
    declared = [source.embodiment for source in recipe.data.sources if source.embodiment is not None]
    size = recipe.model.view.size or IMAGE
    if declared:
        robots, origin = tuple(declared), "its robot is the one that its source declares"
    else:
        robot, origin = _find_robot(recipe)
        robots = (robot,)
    robots = tuple(_select_views(robot, recipe.data.views) for robot in robots)
    note = f"{reason}: {origin}; for samples and steps of an epoch the data is needed"
    if recipe.model.view.size is None:
        note += f"; images are taken to be {size[0]}x{size[1]} (model.view.size sets them)"
    return DataFacts(robots, size, INSTRUCTION, None, None, None, (note,))


def _select_views(robot: Embodiment, views: Sequence[str]) -> Embodiment:
    """Return the robot with the views that training will use. Without the data, names of its own may be unknown."""
    own = [view for view in views if view in robot.cameras]
    return dataclasses.replace(robot, cameras=tuple(own or views)) if views else robot


def _find_robot(recipe: Recipe) -> tuple[Embodiment, str]:
    """Return the robot of the benchmark, or an ordinary arm, and where it comes from."""
    if recipe.benchmark is not None:
        try:
            return open_suite(
                recipe.benchmark, recipe.environment
            ).embodiment, f"its robot is that of {recipe.benchmark}"
        except BenchmarkUnusable as error:
            reason = f"the benchmark {recipe.benchmark} cannot be opened either ({error}), and "
    else:
        reason = ""
    robot = build(Embodiment, ORDINARY_ARM)
    return robot, f"{reason}an ordinary arm with two cameras and 7 action dims is taken (data.sources, embodiment)"


@contextmanager
def planned_inputs(config: VLAConfig, data: DataFacts, run: Path) -> Iterator[Inputs]:
    """Yield the inputs of the policy, with the codec of the run or one that is fitted to made-up chunks."""
    robots = tuple(Robot(embodiment, dummy_statistics(embodiment)) for embodiment in data.embodiments)
    with TemporaryDirectory() as folder:
        codec = run / "codec"
        if config.representation.target.kind == "tokens" and not codec.is_dir():
            codec = Path(folder) / "codec"
            fit_made_up_codec(config, SharedLayout(data.embodiments).embodiment, codec)
        yield Inputs(robots, data.image_size, data.instruction, codec, data.row)


def fit_made_up_codec(config: VLAConfig, robot: Embodiment, folder: Path) -> bool:
    """Write the codec of a representation of tokens. Return whether it had to be fitted to made-up chunks."""
    codec = config.representation.build(config.chunk, robot.action)
    fits = not codec.fitted
    if fits:
        codec.fit(dummy_chunks(CHUNKS, config.chunk, robot.action.size))
    codec.save(folder)
    return fits
