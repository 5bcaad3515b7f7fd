"""What a policy is trained on: the `data` section of a recipe, and its data set opened."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.data.episode import EpisodeDataset
from anyvla.data.formats.lerobot import LeRobotDataset


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """One data set of a mixture."""

    path: Path
    weight: float = Field(default=1.0, gt=0)  # share of the samples, relative to the other sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The data of a run."""

    sources: tuple[Source, ...] = ()  # none: the demonstrations that the recipe itself collects
    cache_gb: float = Field(default=2.0, ge=0)  # decoded frames kept in memory

    def __post_init__(self) -> None:
        if len(self.sources) > 1:
            raise ValueError(f"one source is supported; give a single entry (got {len(self.sources)})")


def open_mixture(config: DataConfig, collected: Path) -> EpisodeDataset:
    """The data set of a run; `collected` is the folder of the recipe's own demonstrations. Raises ValueError."""
    return LeRobotDataset(config.sources[0].path if config.sources else collected)
