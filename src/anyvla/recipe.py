"""A recipe: one YAML file describes one runnable experiment.

Each section is defined in the layer that reads it. This module combines them and finds recipes by name.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError, build, read_options
from anyvla.data.training.mixture import DataConfig
from anyvla.demonstrations.collect import CollectConfig
from anyvla.evaluation.protocol import EvaluationConfig
from anyvla.migrations import migrate_recipe
from anyvla.policy import VLAConfig
from anyvla.registry import suggest
from anyvla.training.config import TrainingConfig

_BUNDLED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """An experiment: its benchmark, data, model, training and evaluation."""

    name: str = Field(min_length=1)  # of the run: its folder is outputs/<name>
    benchmark: str | None = None  # "metaworld/half-open": where demonstrations are collected and policies evaluated
    environment: dict[str, Any] = Field(default_factory=dict)  # settings of the benchmark, as {render: native}
    collect: CollectConfig | None = None  # None: the data exists already
    data: DataConfig = DataConfig()
    model: VLAConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    # A chain of trainings, in order: keys of the recipe for each. training: null only collects demonstrations.
    stages: dict[str, dict[str, Any] | None] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.collect is None and not self.data.given and not self.stages:
            raise ValueError(
                "there is no data: give data.sources or data.preset, or a section collect to make demonstrations"
            )
        if self.collect is not None and self.benchmark is None:
            raise ValueError("collect needs a benchmark, as in benchmark: metaworld/half-open")


def collect_command(recipe: Recipe, run: Path) -> str:
    """Return the command that collects the demonstrations of a recipe, or of a stage of a chain, for a run folder."""
    chain, _, stage = recipe.name.rpartition("/")
    name, out = (chain, run.parent.parent) if chain else (stage, run)
    options = [f"--stage {stage}"] * bool(chain) + [f"--out {shlex.quote(str(out))}"]
    return " ".join(["anyvla data collect", name if name in bundled() else "RECIPE", *options])


def bundled() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _BUNDLED.glob("*.yaml"))


def presets() -> list[str]:
    """Return the bundled recipes of one stage with the structure of a paper. Others train the small backbone `nano`."""
    recipes = {name: read(name) for name in bundled()}
    return [name for name, recipe in recipes.items() if recipe.model.backbone.name != "nano" and not recipe.stages]


def chains() -> list[str]:
    """Return the bundled recipes with several stages."""
    return [name for name in bundled() if read(name).stages]


def find(name: str) -> Path:
    """Return the file of a recipe, given by its path or as the name of a bundled recipe. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix or path.parent != Path():
        raise ConfigError(f"there is no recipe file {name}")
    if name not in bundled():
        raise ConfigError(f"there is no recipe {name!r}, neither as a file nor bundled: {suggest(name, bundled())}")
    return _BUNDLED / f"{name}.yaml"


def read(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by path or bundled name, with `--section.key value` options laid over it. Raises ConfigError."""
    path = find(name)
    return build_recipe(read_options(path, overrides), str(path))


def build_recipe(document: Mapping[str, Any], source: str) -> Recipe:
    """Return the recipe of a document that was read from `source`, also of an older schema. Raises ConfigError."""
    try:
        document = migrate_recipe(dict(document), source, by_hand=True)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return build(Recipe, document, where=source)
