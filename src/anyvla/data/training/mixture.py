"""Opens the data sets of a recipe (its `data` section) as one mixture.

A source may rename its cameras, select some of its episodes, and be converted to another rate or another convention of
rotations. Each robot has its own statistics. The shares of the samples follow from weights, or from a temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, FormatPart
from anyvla.data import fingerprints
from anyvla.data.episode import Episode, EpisodeDataset, conventions
from anyvla.data.formats.reader import list_reasons
from anyvla.data.open import open_dataset
from anyvla.data.robot_statistics import pool_statistics
from anyvla.data.training.presets import expand
from anyvla.data.training.validation import ValidationConfig, hold_out
from anyvla.data.transforms.converted import Converted
from anyvla.data.transforms.resampled import Resampled
from anyvla.data.transforms.subset import CameraSubset, Subset, choose
from anyvla.files.differences import check_same
from anyvla.files.documents import as_mapping, read_yaml
from anyvla.files.stage_paths import find_run, name_of_stage
from anyvla.limits import COUNT, GB, HZ, PROCESSES, SEED, VALUE, WEIGHT
from anyvla.migrations import migrate_recipe
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.space import Rotation
from anyvla.text import check_instruction, clean_instruction


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """One data set of a mixture."""

    # a folder or file, the id of a LeRobot data set on the hub, or stage:NAME, the demonstrations of a stage
    path: str
    format: FormatPart | None = None  # None: recognized by the files
    # For data that does not declare its conventions; or the name of a YAML file with it and other keys of the source.
    embodiment: Embodiment | None = None
    weight: float = Field(default=1.0, gt=0, le=VALUE)  # of its samples, relative to other sources
    cameras: Mapping[str, str] | None = None  # view -> camera of the data; None: all, under their own names
    rotation: Rotation | None = None  # convert rotations to this; None: as in the data
    frame: Literal["base", "tool"] | None = None  # of delta positions and rotations; None: as in the data
    hz: float | None = Field(default=None, gt=0, le=HZ)  # resample to this lower rate, by time; None: as in the data
    per_task: int | None = Field(default=None, ge=1, le=COUNT)  # few-shot: episodes of each task; None: all
    # of the number of episodes: 0.1 a tenth of each task; 5: five per_task
    scale: float = Field(default=1.0, gt=0, le=WEIGHT)
    subset_seed: int = Field(default=0, ge=0, le=SEED)  # selects the episodes
    leave_out: tuple[Annotated[int, Field(ge=0, le=COUNT)], ...] = ()  # episodes, by the numbers of anyvla data check
    instruction: str | None = None  # for episodes that have none
    # episodes without an instruction where `instruction` is not given; keep is for inspection, training refuses them
    unlabeled: Literal["refuse", "drop", "keep"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _with_file(cls, keys: Any) -> Any:
        """Add the keys of the file that `embodiment` names. The keys of the source win."""
        if not isinstance(keys, Mapping) or not isinstance(keys.get("embodiment"), str):
            return keys
        found = read_source(Path(keys["embodiment"]))
        if not isinstance(found.get("embodiment"), Mapping):
            raise ValueError(f"{keys['embodiment']} has no key embodiment")
        return {**found, **{key: value for key, value in keys.items() if key != "embodiment"}}

    def __post_init__(self) -> None:
        if self.scale > 1 and self.per_task is None:
            raise ValueError(
                f"scale {self.scale:g} asks for more than all episodes of {self.path}: give per_task too, the number "
                "of episodes that scale 1 means"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The data of a run."""

    sources: tuple[Source, ...] = ()  # without sources and preset: the demonstrations that the recipe collects
    preset: str | None = None  # a mixture by name: oxe_magic_soup, bridge, rt1, ...
    root: Path | None = None  # the folder with the data sets of the preset
    missing: Literal["refuse", "skip"] = "refuse"  # for data sets of the preset that are not in root
    views: tuple[str, ...] = ()  # the views to use, in this order; empty: all
    # None: the shares of the samples are the weights. T: weight x steps^(1/T); at 1, steps of sources of equal
    # weight are equally likely. The weights of presets are made for 1, so None means 1 for a preset.
    temperature: float | None = Field(default=None, ge=0.1, le=WEIGHT)
    cache_gb: float = Field(default=2.0, ge=0, le=GB)  # decoded frames kept in memory
    # processes that make batches; 0: a thread. The number does not change results
    workers: int = Field(default=0, ge=0, le=PROCESSES)
    worker_timeout_s: float = Field(default=300.0, gt=0, le=VALUE)  # after which training fails if no batch arrives
    validation: ValidationConfig | None = None  # the episodes to hold out; None: all are trained on

    def __post_init__(self) -> None:
        if (self.preset is None) != (self.root is None):
            raise ValueError("preset and root go together: the name of a mixture, and the folder of its data sets")
        if self.preset is not None and self.sources:
            raise ValueError("give either sources or a preset")

    @property
    def given(self) -> bool:
        """Whether the recipe names existing data, so that nothing is collected."""
        return bool(self.sources) or self.preset is not None


class Mixture:
    """Open data sets, their shares of the samples, and their robots. `validation` has the held-out episodes, if any."""

    def __init__(
        self,
        datasets: Sequence[EpisodeDataset],
        shares: Sequence[float],
        default_instructions: Sequence[str | None],
        trained: Mixture | None = None,
    ) -> None:
        """Take for each data set its share and the instruction of its episodes without one (None: all have one).

        `trained` is given for held-out episodes: the mixture of the training episodes, whose layout and statistics are
        used. Raises ValueError for two robots of one name, and for robots that cannot share one layout.
        """
        self.validation: Mixture | None = None
        self.datasets, self.shares = tuple(datasets), np.asarray(shares, np.float64) / np.sum(shares)
        self.default_instructions = tuple(
            None if text is None else check_instruction(text) for text in default_instructions
        )
        embodiments: dict[str, Embodiment] = {}
        for dataset in datasets:
            known = embodiments.setdefault(dataset.embodiment.name, dataset.embodiment)
            check_same(
                conventions(known),
                conventions(dataset.embodiment),
                f"two sources show a robot named {known.name!r} and disagree in {{}} (the second is {dataset.root}): "
                "robots that differ need different names in their embodiments",
                names=("in the first", "in the second"),
            )
        self.layout: SharedLayout = SharedLayout(list(embodiments.values())) if trained is None else trained.layout
        self._trained = trained
        self._robots: list[Robot] = []  # with statistics, once they were asked for
        self.robot_of = [self.layout.names.index(d.embodiment.name) for d in datasets]  # of each data set

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the only data set, or a hash of all fingerprints and shares."""
        if len(self.datasets) == 1:
            return self.datasets[0].fingerprint
        facts = [f"{d.fingerprint}:{share:.12g}" for d, share in zip(self.datasets, self.shares, strict=True)]
        return fingerprints.combine(*facts)

    def robots(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Robot]:
        """Return the robots with the statistics of all their training data, cached or computed at the first call.

        Raises ValueError for numbers that cannot be trained on. `progress(done, total)` counts episodes.
        """
        if self._trained is not None:
            return self._trained.robots(progress)
        if not self._robots:
            of_robots = [[d for d in self.datasets if d.embodiment.name == name] for name in self.layout.names]
            self._robots = [Robot(of[0].embodiment, pool_statistics(of, progress=progress)) for of in of_robots]
        return self._robots

    def instruction(self, source: int, episode: Episode, chance: int) -> str:
        """Return the instruction of a window of this episode: one of its instructions, chosen by a random number."""
        own = [text for text in episode.instructions if text]
        where = episode.provenance or self.datasets[source].root
        if own:
            try:
                return check_instruction(own[chance % len(own)])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        default = self.default_instructions[source]
        if default is None:
            raise ValueError(
                f"{where}: the episode has no instruction; give the source one (instruction: ...) or leave such "
                "episodes out (unlabeled: drop)"
            )
        return default


def open_mixture(
    config: DataConfig, collected: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Mixture:
    """Open the data of a run; `collected` is the folder of the recipe's own demonstrations.

    The mixture has the training episodes, and its attribute `validation` the held-out ones. Raises ValueError for a
    data set that cannot be opened or cannot be joined with the others, and for a split that leaves nothing.
    `progress(done, total)` counts the episodes whose hashes are computed to choose the held-out ones.
    """
    sources, temperature = config.sources, config.temperature
    if config.preset is not None and config.root is not None:
        members = expand(config.preset, config.root, config.missing)
        sources = tuple(Source(path=str(m.path), weight=m.weight, unlabeled="drop") for m in members)
        temperature = temperature or 1.0
    sources = tuple(_find_demonstrations(s, collected) for s in sources) or (Source(path=str(collected)),)
    episodes = [select_episodes(source) for source in sources]
    held_out: Sequence[EpisodeDataset | None] = ()
    if config.validation is not None:
        episodes, held_out = hold_out(episodes, config.validation, progress)
    datasets = [_convert(d, s, config.views) for d, s in zip(episodes, sources, strict=True)]
    frames = np.array([float(d.lengths.sum()) for d in datasets])
    shares = np.array([s.weight for s in sources])
    if temperature is not None:
        shares = shares * frames ** (1 / temperature)
    mixture = Mixture(datasets, shares.tolist(), [s.instruction for s in sources])
    if held_out:
        of = [i for i, dataset in enumerate(held_out) if dataset is not None]
        parts = [_convert(d, s, config.views) for d, s in zip(held_out, sources, strict=True) if d is not None]
        mixture.validation = Mixture(parts, shares[of].tolist(), [sources[i].instruction for i in of], mixture)
    return mixture


def read_source(path: Path) -> dict[str, Any]:
    """Return the keys of a source in a YAML file, under today's names. Raises a ValueError that names the file."""
    keys = as_mapping(read_yaml(path) or {}, str(path))
    return migrate_recipe({"data": {"sources": [keys]}}, str(path), by_hand=True)["data"]["sources"][0]


def open_source(source: Source) -> EpisodeDataset:
    """Open the data set of a source and apply its options. Raises ValueError if one of them does not fit the data."""
    return _convert(select_episodes(source), source)


def select_episodes(source: Source) -> EpisodeDataset:
    """Return the chosen episodes of a source, with its cameras. Raises ValueError if an option does not fit."""
    dataset = _leave_out(open_dataset(source.path, source.format, source.embodiment), source)
    if source.cameras is not None:
        dataset = CameraSubset(dataset, source.cameras)
    if source.instruction is None and source.unlabeled != "keep":
        dataset = _select_labeled(dataset, source)
    if source.per_task is not None or source.scale != 1:
        dataset = Subset(dataset, choose(dataset, source.per_task, source.scale, source.subset_seed))
    return dataset


def _find_demonstrations(source: Source, collected: Path) -> Source:
    """Replace `stage:<name>` by the folder of its demonstrations; `collected` is that of the run's own ones."""
    if name_of_stage(source.path) is None:
        return source
    path = find_run(source.path, collected.parent) / collected.name
    if not path.is_dir():
        raise ValueError(f"{source.path}: there are no demonstrations at {path}; make them with anyvla data collect")
    return replace(source, path=str(path))


def _convert(dataset: EpisodeDataset, source: Source, views: tuple[str, ...] = ()) -> EpisodeDataset:
    """Return a data set in the conventions and at the rate of a source, with these of its views (empty: all).

    Raises ValueError if that is impossible, and if it has none of the views.
    """
    if source.rotation is not None or source.frame is not None:
        dataset = Converted(dataset, rotation=source.rotation, frame=source.frame)
    if source.hz is not None:
        dataset = Resampled(dataset, source.hz)
    own = [view for view in views if view in dataset.embodiment.cameras]
    if views and not own:
        raise ValueError(
            f"{dataset.root} has none of the views {', '.join(views)}, but {', '.join(dataset.embodiment.cameras)}: "
            "name one of these in data.views, or give its source cameras: {view: camera}"
        )
    return CameraSubset(dataset, {view: view for view in own}) if views else dataset


def _leave_out(dataset: EpisodeDataset, source: Source) -> EpisodeDataset:
    """Drop the episodes of `leave_out`. Raises ValueError if any other episode cannot be read."""
    out = set(source.leave_out)
    outside = sorted(i for i in out if not 0 <= i < len(dataset))
    if outside:
        raise ValueError(f"leave_out: {source.path} has {len(dataset)} episodes; there is no episode {outside[0]}")
    lost = {i: text for i, text in getattr(dataset, "unreadable", {}).items() if i not in out}
    if lost and source.unlabeled != "keep":
        raise ValueError(
            f"{len(lost)} of {len(dataset)} episodes of {source.path} cannot be read. {list_reasons(lost)}. Train "
            f"without them by leave_out: [{', '.join(map(str, sorted(out | set(lost))))}] in the source, or write a "
            "clean copy with anyvla data check --fix"
        )
    return Subset(dataset, [i for i in range(len(dataset)) if i not in out]) if out else dataset


def _select_labeled(dataset: EpisodeDataset, source: Source) -> EpisodeDataset:
    """Return the episodes that have an instruction. Raises ValueError if others exist and may not be dropped."""
    labeled = [i for i in range(len(dataset)) if clean_instruction(dataset.task(i))]
    if len(labeled) == len(dataset):
        return dataset
    if source.unlabeled == "refuse" or not labeled:
        raise ValueError(
            f"{len(dataset) - len(labeled)} of {len(dataset)} episodes of {source.path} have no instruction: give the "
            "source one for them (instruction: ...), or leave them out (unlabeled: drop)"
        )
    return Subset(dataset, labeled)
