"""What a policy is trained on: the `data` section of a recipe, and its data sets opened as one mixture.

Each source may rename its cameras, take a part of its episodes, and be brought to another rate or another way of
writing rotations; its robot keeps its own statistics. Shares of the samples follow from weights, or a temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, FormatPart
from anyvla.data import fingerprints
from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.formats.unreadable import list_reasons
from anyvla.data.open import open_dataset
from anyvla.data.robot_statistics import pool_statistics
from anyvla.data.training.presets import expand
from anyvla.data.transforms.cameras import Cameras
from anyvla.data.transforms.converted import Converted
from anyvla.data.transforms.resampled import Resampled
from anyvla.data.transforms.subset import Subset, choose
from anyvla.files.documents import as_mapping, read_yaml
from anyvla.limits import COUNT, GB, HZ, PROCESSES, SEED, VALUE, WEIGHT
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.space import Rotation
from anyvla.text import check_instruction, clean_instruction


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """One data set of a mixture."""

    path: str  # a folder or file, or the id of a LeRobot data set on the hub
    format: FormatPart | None = None  # None: recognized by what lies there
    # For data that does not say what its numbers mean; or a YAML file with it, and with other keys of the source.
    embodiment: Embodiment | None = None
    weight: float = Field(default=1.0, gt=0, le=VALUE)  # of its samples beside those of other sources
    cameras: Mapping[str, str] | None = None  # view -> camera of the data; None: all, by their own names
    rotation: Rotation | None = None  # rewrite rotations so; None: as the data has them
    frame: Literal["base", "tool"] | None = None  # of delta positions and rotations; None: as the data has them
    hz: float | None = Field(default=None, gt=0, le=HZ)  # sub-sample to this rate, by time; None: the rate of the data
    per_task: int | None = Field(default=None, ge=1, le=COUNT)  # few-shot: episodes of each task; None: all
    # of the number of episodes: 0.1 a tenth of each task; 5: five per_task
    scale: float = Field(default=1.0, gt=0, le=WEIGHT)
    subset_seed: int = Field(default=0, ge=0, le=SEED)  # of which episodes these are
    leave_out: tuple[Annotated[int, Field(ge=0, le=COUNT)], ...] = ()  # episodes, as anyvla data check numbers them
    instruction: str | None = None  # for episodes that have none
    # What to do with them where there is none for them either; keep is for looking at data, training refuses them.
    unlabeled: Literal["refuse", "drop", "keep"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _with_file(cls, keys: Any) -> Any:
        """Put the keys of the file that `embodiment` names below the source's own."""
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

    sources: tuple[Source, ...] = ()  # none, and no preset: the demonstrations that the recipe itself collects
    preset: str | None = None  # a mixture by name: oxe_magic_soup, bridge, rt1, ...
    root: Path | None = None  # the folder in which the data sets of the preset lie
    missing: Literal["refuse", "skip"] = "refuse"  # what to do about data sets of the preset that do not lie there
    views: tuple[str, ...] = ()  # of those that a source has, in this order; none given: all of them
    # None: the shares of the samples are the weights. T: weight x windows^(1/T); at 1 all windows of equal weights are
    # equally likely. The weights of presets are made for 1, which is what None means for them.
    temperature: float | None = Field(default=None, ge=0.1, le=WEIGHT)
    cache_gb: float = Field(default=2.0, ge=0, le=GB)  # decoded frames kept in memory
    # processes that make batches; 0: a thread. They change no result
    workers: int = Field(default=0, ge=0, le=PROCESSES)
    worker_timeout_s: float = Field(default=300.0, gt=0, le=VALUE)  # the longest that they may give no batch

    def __post_init__(self) -> None:
        if (self.preset is None) != (self.root is None):
            raise ValueError("preset and root go together: the name of a mixture, and the folder its data sets lie in")
        if self.preset is not None and self.sources:
            raise ValueError("give either sources or a preset")

    @property
    def given(self) -> bool:
        """Whether there is data already, not to be collected by the recipe."""
        return bool(self.sources) or self.preset is not None


class Mixture:
    """Data sets opened, how often each is drawn from, and the robots they show."""

    def __init__(self, datasets: Sequence[EpisodeDataset], shares: Sequence[float], told: Sequence[str | None]) -> None:
        """`told`: what each data set's episodes without an instruction are told; None: they all have one.

        Raises ValueError for two robots of one name, and for robots that cannot share one layout.
        """
        self.datasets, self.shares = tuple(datasets), np.asarray(shares, np.float64) / np.sum(shares)
        self._told = tuple(None if text is None else check_instruction(text) for text in told)
        embodiments: dict[str, Embodiment] = {}
        for dataset in datasets:
            known = embodiments.setdefault(dataset.embodiment.name, dataset.embodiment)
            _check_same(known, dataset)
        self.layout = SharedLayout(list(embodiments.values()))
        self.robot_of = [self.layout.names.index(d.embodiment.name) for d in datasets]  # of each data set

    @cached_property
    def fingerprint(self) -> str:
        """Of one data set its own; of several a hash of theirs and of their shares."""
        if len(self.datasets) == 1:
            return self.datasets[0].fingerprint
        facts = [f"{d.fingerprint}:{share:.12g}" for d, share in zip(self.datasets, self.shares, strict=True)]
        return fingerprints.combine(*facts)

    def robots(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Robot]:
        """The robots with the statistics of all their data; computed where they are not known yet.

        Raises ValueError for numbers that cannot be trained on. `progress(done, total)` counts episodes.
        """
        out = []
        for name in self.layout.names:
            own = [d for d in self.datasets if d.embodiment.name == name]
            out.append(Robot(own[0].embodiment, pool_statistics(own, progress=progress)))
        return out

    def instruction(self, source: int, episode: Episode, chance: int) -> str:
        """What a window of this episode is told: one of its instructions, by a random number."""
        said = [text for text in episode.instructions if text]
        where = episode.provenance or self.datasets[source].root
        if said:
            try:
                return check_instruction(said[chance % len(said)])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        told = self._told[source]
        if told is None:
            raise ValueError(
                f"{where}: the episode has no instruction; give the source one (instruction: ...) or leave such "
                "episodes out (unlabeled: drop)"
            )
        return told


def open_mixture(config: DataConfig, collected: Path) -> Mixture:
    """The data of a run; `collected` is the folder of the recipe's own demonstrations.

    Raises ValueError for a data set that cannot be opened or cannot be joined with the others.
    """
    sources, temperature = config.sources, config.temperature
    if config.preset is not None and config.root is not None:
        members = expand(config.preset, config.root, config.missing)
        sources = tuple(Source(path=str(m.path), weight=m.weight, unlabeled="drop") for m in members)
        temperature = temperature or 1.0
    sources = sources or (Source(path=str(collected)),)
    datasets = [_only(open_source(source), config.views) for source in sources]
    frames = np.array([float(d.lengths.sum()) for d in datasets])
    shares = np.array([s.weight for s in sources])
    if temperature is not None:
        shares = shares * frames ** (1 / temperature)
    return Mixture(datasets, shares.tolist(), [s.instruction for s in sources])


def _only(dataset: EpisodeDataset, views: tuple[str, ...]) -> EpisodeDataset:
    """A data set without its other views. Raises ValueError if it has none of these."""
    own = [view for view in views if view in dataset.embodiment.cameras]
    if views and not own:
        raise ValueError(
            f"{dataset.root} has none of the views {', '.join(views)}, but {', '.join(dataset.embodiment.cameras)}: "
            "name one of these in data.views, or give its source cameras: {view: camera}"
        )
    return Cameras(dataset, {view: view for view in own}) if views else dataset


def read_source(path: Path) -> dict[str, Any]:
    """Return the keys of a source that a YAML file holds. Raises ValueError that names the file."""
    return as_mapping(read_yaml(path) or {}, str(path))


def open_source(source: Source) -> EpisodeDataset:
    """The data set of a source, as its options want it. Raises ValueError."""
    dataset = _without(open_dataset(source.path, source.format, source.embodiment), source)
    if source.cameras is not None:
        dataset = Cameras(dataset, source.cameras)
    if source.instruction is None and source.unlabeled != "keep":
        dataset = _labeled(dataset, source)
    if source.per_task is not None or source.scale != 1:
        dataset = Subset(dataset, choose(dataset, source.per_task, source.scale, source.subset_seed))
    if source.rotation is not None or source.frame is not None:
        dataset = Converted(dataset, rotation=source.rotation, frame=source.frame)
    if source.hz is not None:
        dataset = Resampled(dataset, source.hz)
    return dataset


def _without(dataset: EpisodeDataset, source: Source) -> EpisodeDataset:
    """Return the data set without the episodes to leave out. Raises ValueError if others cannot be read."""
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


def _labeled(dataset: EpisodeDataset, source: Source) -> EpisodeDataset:
    """The episodes that have an instruction. Raises ValueError if some have none and they are not to be dropped."""
    labeled = [i for i in range(len(dataset)) if clean_instruction(dataset.task(i))]
    if len(labeled) == len(dataset):
        return dataset
    if source.unlabeled == "refuse" or not labeled:
        raise ValueError(
            f"{len(dataset) - len(labeled)} of {len(dataset)} episodes of {source.path} have no instruction: give the "
            "source one for them (instruction: ...), or leave them out (unlabeled: drop)"
        )
    return Subset(dataset, labeled)


def _check_same(known: Embodiment, dataset: EpisodeDataset) -> None:
    fields = ("cameras", "proprio", "action", "control_hz")
    differing = [f for f in fields if getattr(known, f) != getattr(dataset.embodiment, f)]
    if differing:
        raise ValueError(
            f"two sources show a robot named {known.name!r} and disagree in its {', '.join(differing)} (the second is "
            f"{dataset.root}): robots that differ need different names in their embodiments"
        )
