"""What a policy is trained on: data sets and their weights."""

from __future__ import annotations

from pathlib import Path

from pydantic.dataclasses import dataclass

from anyvla.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """One data set of a mixture."""

    path: Path
    weight: float = 1.0  # share of the samples, relative to the other sources

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"the weight of {self.path} must be above 0, got {self.weight}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixtureConfig:
    """The data sets of a run."""

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if len(self.sources) != 1:
            raise ValueError(f"one source is supported; give a single entry (got {len(self.sources)})")
