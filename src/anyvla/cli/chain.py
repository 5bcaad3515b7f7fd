"""Work through the stages of a chain: all of them are checked first, finished ones are skipped, begun ones resumed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.common import ProgressBar, console
from anyvla.config import ConfigError
from anyvla.files.folder_lock import lock_folder
from anyvla.files.stage_paths import stage_folder

if TYPE_CHECKING:
    from anyvla.recipe import Recipe
    from anyvla.robot.embodiment import Embodiment
    from anyvla.stages import Stage
    from anyvla.training.processes import Processes


@dataclass(frozen=True)
class Chain:
    """The stages of a recipe and their run folder."""

    name: str  # of the recipe on the command line
    run: Path
    stages: tuple[Stage, ...]
    asked: tuple[Stage, ...]  # up to the one of --stage

    def folder(self, stage: Stage) -> Path:
        """Return the run folder of a stage."""
        return stage_folder(self.run, stage.name)

    @property
    def last(self) -> Stage:
        """The last stage to train. Raises ConfigError if none of those asked for trains."""
        if not any(stage.trains for stage in self.asked):
            raise ConfigError(
                f"{self.name}: none of the stages {', '.join(s.name for s in self.asked)} trains a policy"
            )
        return [stage for stage in self.asked if stage.trains][-1]

    def collecting(self) -> list[Stage]:
        """Return the stages that collect demonstrations, for themselves or for a stage of the chain."""
        from anyvla.stages import collects

        return [stage for stage in self.asked if collects(stage, self.stages)]

    def with_own_codec(self) -> list[Stage]:
        """Return the stages that train, without those that keep statistics and codec of the stage they start from."""
        models = {stage.name: stage.recipe.model for stage in self.stages}

        def keeps(stage: Stage) -> bool:
            if stage.recipe.training.statistics != "keep" or stage.origin is None:
                return False
            old, new = (
                (m.representation, m.chunk, m.normalization.action) for m in (models[stage.origin], models[stage.name])
            )
            return old == new

        return [stage for stage in self.asked if stage.trains and not keeps(stage)]


def read_chain(options: argparse.Namespace, overrides: Sequence[str]) -> Chain | None:
    """Return the chain that the options name; None for a recipe in one stage. Raises ConfigError."""
    from anyvla.stages import read_stages, up_to

    stages = read_stages(options.recipe, overrides)
    asked = up_to(stages, options.stage)
    if not stages:
        return None
    run = options.out or Path("outputs") / stages[0].recipe.name.rpartition("/")[0]
    return Chain(options.recipe, run, stages, asked)


def train_chain(chain: Chain, train: Callable[[Recipe, Path], Path], processes: Processes | None = None) -> Path:
    """Train the stages that are not finished, in order, by `train`. Return the checkpoint of the last one.

    `processes`: those of this training, each of which calls this function. None: there is only this process.

    Raises ConfigError, before any stage begins, if one was begun with other settings, lacks its data, or
    cannot start from its policy.
    """
    from anyvla.checkpoint.of_chain import list_stages, publish, write_order
    from anyvla.checkpoint.of_run import FINAL
    from anyvla.training.processes import Processes

    processes, last = processes or Processes.single(), chain.last
    if (chain.run / FINAL).is_dir() and not (chain.run / FINAL).is_symlink() and not list_stages(chain.run):
        raise ConfigError(f"{chain.run} is the folder of another run, in one stage: choose another output folder")
    with processes.only_main(partial(lock_folder, chain.run)):
        pending = find_pending(chain, processes)
        for stage in pending:
            _check_origin(chain, stage, pending)
        with processes.main_first():
            robots = {stage.name: _check_data(chain, stage) for stage in pending}
        for stage in pending:
            _check_statistics(chain, stage, robots)
        if processes.is_main:
            write_order(chain.run, [stage.name for stage in chain.stages])
        for number, stage in enumerate(chain.asked, 1):
            if not stage.trains:
                continue
            console.rule(f"stage {number}/{len(chain.stages)} {stage.name}", align="left")
            if stage in pending:
                train(stage.recipe, chain.folder(stage))
            else:
                there = chain.folder(stage).is_dir()
                console.print("trained already" if there else "removed, and no longer needed", chain.folder(stage))
        final = chain.folder(last) / FINAL
        if processes.is_main and chain.asked == chain.stages and final.is_dir():
            publish(chain.run, last.name)
    return final


def find_pending(chain: Chain, processes: Processes) -> list[Stage]:
    """Return the stages to train or to resume, in order. Raises ConfigError, for example if one was changed.

    A stage whose run folder was removed is trained again only for a stage that starts from it and has not begun.
    """
    from anyvla.checkpoint.files import read_document
    from anyvla.checkpoint.of_run import FINAL
    from anyvla.training import checkpoint
    from anyvla.training.preflight import check_before_data

    begun = {s.name: checkpoint.latest(chain.folder(s)) for s in chain.stages if s.trains}
    pending = []
    for stage in [s for s in chain.asked if s.trains]:
        check_before_data(stage.recipe, chain.folder(stage), processes)
        later = _descendants(stage, chain.stages)
        begun_later = [other.name for other in later if begun[other.name] is not None]
        found = begun[stage.name]
        if found is None:
            if not begun_later or any(begun[s.name] is None for s in later if s.origin == stage.name):
                pending.append(stage)
            continue
        then, now = read_document(found).get("training", {}).get("steps"), stage.recipe.training.steps
        if found.name == FINAL and then == now:
            continue
        if found.name == FINAL and begun_later:
            folder = stage_folder(chain.run, begun_later[0])
            raise ConfigError(
                f"stage {stage.name} was trained for {then} steps and training.steps is {now}, but {begun_later[0]} "
                f"has begun from its policy: remove {folder} to train that anew, or choose another output folder"
            )
        pending.append(stage)
    return pending


def _descendants(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages that start from the policy of a stage, or from one of these."""
    found = [stage.name]
    out = []
    for other in stages:
        if other.origin in found:
            found.append(other.name)
            out.append(other)
    return out


def _check_origin(chain: Chain, stage: Stage, pending: Sequence[Stage]) -> None:
    """Raise ConfigError, with the name of the stage, if it cannot start from its policy, trained already or not."""
    from anyvla.checkpoint.of_run import FINAL
    from anyvla.training.warm_start.origin import Origin, check_usable
    from anyvla.training.warm_start.start import find_origin

    before = next((other for other in pending if other.name == stage.origin), None)
    try:
        if before is None:
            find_origin(stage.recipe, chain.folder(stage))
        else:
            origin = Origin(f"stage:{before.name}", chain.folder(before) / FINAL, before.recipe.model, ())
            check_usable(origin, stage.recipe.model)
    except ConfigError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from None


def _check_statistics(chain: Chain, stage: Stage, robots: Mapping[str, Sequence[Embodiment]]) -> None:
    """Raise ConfigError if a stage that has not begun cannot keep the statistics of the policy that it starts from.

    `robots`: those of the data of each pending stage.
    """
    from anyvla.checkpoint.files import read_robots
    from anyvla.training.warm_start.start import find_origin
    from anyvla.training.warm_start.statistics import check_same_robots

    if stage.recipe.training.statistics != "keep":
        return
    known: Sequence[Embodiment]
    if stage.origin is not None and stage.origin in robots:
        known, where = robots[stage.origin], f"stage {stage.origin}"
    elif (origin := find_origin(stage.recipe, chain.folder(stage))) is not None:
        known, where = [robot.embodiment for robot in read_robots(origin.folder)], str(origin.folder)
    else:  # it resumes
        return
    try:
        check_same_robots(robots[stage.name], known, where)
    except ConfigError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from None


def _check_data(chain: Chain, stage: Stage) -> list[Embodiment]:
    """Open the data of a stage, and return its robots.

    Raises ConfigError with the name of the stage, also for a missing codec.
    """
    from anyvla.data.training.mixture import open_mixture
    from anyvla.representations.codec_report import check_codec

    folder, recipe = chain.folder(stage), stage.recipe
    hint = f"anyvla data collect {chain.name} --stage {stage.name} --out {chain.run}"
    if not recipe.data.given and not (folder / "dataset").is_dir():
        raise ConfigError(f"stage {stage.name}: there are no demonstrations at {folder / 'dataset'} yet: {hint}")
    try:
        with ProgressBar(f"data of {stage.name}") as bar:
            mixture = open_mixture(recipe.data, folder / "dataset", bar)
        if recipe.training.statistics == "data":  # else the codec may be the checkpoint's
            space, scaling = mixture.layout.embodiment.action, recipe.model.normalization.action
            part = recipe.model.representation
            check_codec(folder / "codec", part, recipe.model.chunk, space, scaling, mixture.fingerprint)
        return list({dataset.embodiment.name: dataset.embodiment for dataset in mixture.datasets}.values())
    except ValueError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from None
