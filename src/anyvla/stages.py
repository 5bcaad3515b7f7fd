"""A chain of trainings in one recipe: `stages:`, for example pre-training, fine-tuning and a few demonstrations.

Each stage is a recipe of its own: the keys of the recipe, overridden by the keys of the stage. It starts from the
policy of the stage before, and has a run folder of its own, `RUN/stages/<name>`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyvla.config import ConfigError, build, merge, override_keys, parse_options, read_options
from anyvla.data.training.mixture import Source
from anyvla.files.stage_paths import STAGE, name_of_stage
from anyvla.migrations import migrate_recipe
from anyvla.recipe import Recipe, find
from anyvla.registry import suggest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Options = list[tuple[str, Any]]  # dotted keys and their values
ORIGIN = "init_from"  # the key of the section training that names the policy to start from


@dataclass(frozen=True)
class Stage:
    """One training of a chain, or the collection of demonstrations for later ones."""

    name: str
    recipe: Recipe
    trains: bool  # False: it only collects demonstrations for later stages

    @property
    def origin(self) -> str | None:
        """The earlier stage whose policy this one starts from; None if it starts from none of the chain."""
        given = self.recipe.training.init_from
        return None if given is None or not self.trains else name_of_stage(given)

    @property
    def borrowed(self) -> list[str]:
        """The stages whose demonstrations it trains on, by `path: stage:<name>`."""
        named = [name_of_stage(source.path) for source in self.recipe.data.sources] if self.trains else []
        return [name for name in named if name is not None]


def read_stages(name: str, overrides: Sequence[str] = ()) -> tuple[Stage, ...]:
    """Return the stages of a recipe by path or bundled name, in order; none if it has no stages.

    An option `--training.steps 100` is laid over every stage, `--stages.finetune.training.steps 100` over one. Raises
    ConfigError, with the name of the stage, for keys that do not fit and for stages that do not fit together.
    """
    path = find(name)
    return build_stages(read_options(path), parse_options(overrides), str(path))


def build_stages(document: Mapping[str, Any], values: Options, source: str) -> tuple[Stage, ...]:
    """Return the stages of a recipe that was read from `source`, with `values` laid over it, see `read_stages`."""
    for_chain, for_all, for_one = _sort_options(values)
    document = override_keys(document, for_chain)
    named = document.pop("stages", None) or {}
    _check_names(named, for_one, source)
    stages: list[Stage] = []
    for key, own in named.items():
        options, where = for_one.get(key, []), f"{source}, stage {key!r}"
        stages.append(_read_stage(key, document, own or {}, for_all, options, stages, where))
    return tuple(_share_demonstrations(stages))


def collects(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Return whether a stage collects demonstrations: for itself, or for a stage that names them."""
    own = stage.trains and not stage.recipe.data.given
    return stage.recipe.collect is not None and (own or any(stage.name in other.borrowed for other in stages))


def up_to(stages: Sequence[Stage], name: str | None) -> tuple[Stage, ...]:
    """Return the stages up to the one of that name; None: all. Raises ConfigError if there is none."""
    names = [stage.name for stage in stages]
    if name is None:
        return tuple(stages)
    if name not in names:
        known = suggest(name, names) if names else "the recipe has no stages"
        raise ConfigError(f"there is no stage {name!r}: {known}")
    return tuple(stages[: names.index(name) + 1])


def _sort_options(options: Options) -> tuple[Options, Options, dict[str, Options]]:
    """Return the options for the section stages as a whole, for every stage, and for single stages."""
    whole, for_all, for_one = list[tuple[str, Any]](), list[tuple[str, Any]](), dict[str, Options]()
    for key, value in options:
        section, _, below = key.partition(".")
        stage, _, inner = below.partition(".")
        if section != "stages":
            for_all.append((key, value))
        elif not inner:
            whole.append((key, value))
        else:
            for_one.setdefault(stage, []).append((inner, value))
    return whole, for_all, for_one


def _check_names(named: Any, for_one: Mapping[str, Any], where: str) -> None:
    if not isinstance(named, Mapping) or not all(isinstance(own, Mapping | None) for own in named.values()):
        raise ConfigError(f"{where}: 'stages' needs a name with keys for each stage, as in stages: {{pretrain: {{}}}}")
    for name in named:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} cannot name a stage and its folder: use letters, digits and - _ .")
    for name in for_one:
        if name not in named:
            known = suggest(name, list(named)) if named else "the recipe has none"
            raise ConfigError(f"--stages.{name}: there is no such stage: {known}")


def _read_stage(
    name: str,
    document: Mapping[str, Any],
    own: Mapping[str, Any],
    for_all: Options,
    for_one: Options,
    before: Sequence[Stage],
    where: str,
) -> Stage:
    if found := sorted({"name", "stages"} & set(own)):
        raise ConfigError(f"{where}: a stage has no key {found[0]!r}")
    trains = own.get("training", {}) is not None
    if not trains:  # to be checked as a recipe, it needs the section training of the others, and no data
        own = {key: value for key, value in own.items() if key != "training"}
        document = {key: value for key, value in document.items() if key != "data"}
    keys = override_keys(override_keys(merge(document, own), for_all), for_one)
    keys["name"] = f"{keys.get('name')}/{name}"
    trained = [stage.name for stage in before if stage.trains]
    if trained and isinstance(keys.get("training"), dict) and not _names_origin(override_keys(own, for_one)):
        keys["training"][ORIGIN] = STAGE + trained[-1]
    try:
        keys = migrate_recipe(keys, where, by_hand=True)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    stage = Stage(name, build(Recipe, keys, where=where), trains)
    _check_references(stage, before, where)
    return stage


def _names_origin(own: Mapping[str, Any]) -> bool:
    training = own.get("training")
    return isinstance(training, Mapping) and ORIGIN in training


def _check_references(stage: Stage, before: Sequence[Stage], where: str) -> None:
    """Refuse a reference to a stage that does not come before, or that has no policy or no demonstrations to give."""
    trained = [other.name for other in before if other.trains]
    if stage.origin is not None and stage.origin not in trained:
        known = suggest(stage.origin, trained) if trained else "no stage before it trains"
        raise ConfigError(f"{where}: training.{ORIGIN} names no earlier stage that trains ({stage.origin}): {known}")
    collecting = [other.name for other in (*before, stage) if other.recipe.collect is not None]
    for name in stage.borrowed:
        if name not in collecting:
            known = suggest(name, collecting) if collecting else "none does"
            raise ConfigError(f"{where}: data.sources names no stage so far that collects ({name}): {known}")


def _share_demonstrations(stages: Sequence[Stage]) -> list[Stage]:
    """Let a stage that would collect the same demonstrations as an earlier one use that data set."""
    out: list[Stage] = []
    for stage in stages:
        recipe = stage.recipe
        if stage.trains and not recipe.data.given:
            owners = [s for s in out if collects(s, stages) and _collecting(s.recipe) == _collecting(recipe)]
            if owners:
                data = dataclasses.replace(recipe.data, sources=(Source(path=STAGE + owners[0].name),))
                stage = dataclasses.replace(stage, recipe=dataclasses.replace(recipe, data=data))
        out.append(stage)
    return out


def _collecting(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.benchmark, recipe.environment, recipe.collect
