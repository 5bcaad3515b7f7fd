"""The situation that advice is for: the robot, its demonstrations, the control rate, and the needs of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.advice.rules import Fact
from anyvla.config import ConfigError, build, merge, read_options
from anyvla.data.training.mixture import DataConfig, open_mixture
from anyvla.data.undeclared import UndeclaredError
from anyvla.demonstrations.collect import CollectConfig
from anyvla.evaluation.suites import open_suite
from anyvla.limits import HZ
from anyvla.migrations import migrate_recipe
from anyvla.recipe import find, read
from anyvla.robot.embodiment import Embodiment

_ACTIONS = 60  # of a demonstration that is not recorded yet; assumed (63 on average in MT10)
_ON_HAND = ("wrist", "hand", "gripper")


@dataclass(frozen=True)
class Situation:
    """The robot and the data that the advised recipe is for."""

    embodiment: Embodiment
    demonstrations: int
    tasks: int
    actions: int  # of all demonstrations, at `hz`
    hz: float
    document: Mapping[str, Any]  # the keys of the recipe that name data, benchmark and evaluation
    notes: tuple[str, ...] = ()
    # Of a suite whose present picture does not tell what to do: the most actions that it allows of a chunk.
    most_executed: int | None = None

    def facts(self, *, gpu: bool, needs_memory: bool, disagreeing: bool) -> dict[str, Fact]:
        """Return the facts that the conditions of rules ask for."""
        cameras = self.embodiment.cameras
        return {
            "gpu": gpu,
            "needs_memory": needs_memory or self.most_executed is not None,
            "disagreeing": disagreeing,
            "demonstrations": self.demonstrations,
            "demonstrations_of_a_task": self.demonstrations / self.tasks,
            "hz": self.hz,
            "proprio": self.embodiment.proprio.size,
            "wrist": any(word in camera.lower() for camera in cameras for word in _ON_HAND),
        }


def of_dataset(path: str, embodiment: Path | None, demonstrations: int | None, hz: float | None) -> Situation:
    """Return the situation of a data set. Raises ConfigError if it declares no conventions or is slower than `hz`."""
    _check(demonstrations, hz)
    source: dict[str, Any] = {"path": path} | ({} if embodiment is None else {"embodiment": str(embodiment)})
    try:
        (dataset,) = open_mixture(build(DataConfig, {"sources": [source]}), Path()).datasets
    except UndeclaredError as error:
        raise ConfigError(f"{error}\nor on this command, as --embodiment robot.yaml") from None
    recorded = dataset.embodiment.control_hz
    if hz is not None and hz > recorded:
        raise ConfigError(
            f"--hz {hz:g}: {path} was recorded at {recorded:g} Hz, and its actions teach no faster control: record at "
            f"{hz:g} Hz, or let the robot's controller interpolate and give at most --hz {recorded:g}"
        )
    share = 1.0
    if hz is not None and hz < recorded:
        source["hz"], share = hz, hz / recorded
    there, steps = len(dataset), int(dataset.lengths.sum())
    if not there:
        raise ConfigError(f"{path} has no episodes: record some, or give --benchmark or --recipe")
    wanted = there if demonstrations is None else demonstrations
    notes = () if wanted == there else (f"{path} has {there} demonstrations; the advice is for {wanted}",)
    tasks = len({dataset.task(i) for i in range(there)})
    actions = max(1, round(steps * share * wanted / there))
    document = {"data": {"sources": [source]}}
    return Situation(dataset.embodiment, wanted, max(1, tasks), actions, hz or recorded, document, notes)


def of_benchmark(name: str, demonstrations: int | None, hz: float | None) -> Situation:
    """Return the situation of a benchmark whose experts will be recorded. `demonstrations`: of each task."""
    return _of_suite(name, {"benchmark": name, "collect": {}}, demonstrations, hz)


def of_recipe(name: str, demonstrations: int | None, hz: float | None) -> Situation:
    """Return the situation of a recipe: its benchmark or its only data set. Raises ConfigError for other recipes."""
    recipe = read(name)
    if recipe.stages:
        raise ConfigError(f"{name} has stages: give --recipe the name of one without, or --dataset or --benchmark")
    file = find(name)
    whole = migrate_recipe(read_options(file), str(file), by_hand=True)
    kept: dict[str, Any] = {
        key: whole[key] for key in ("benchmark", "environment", "collect", "evaluation") if key in whole
    }
    if recipe.collect is not None:
        return _of_suite(str(recipe.benchmark), kept, demonstrations, hz)
    if len(recipe.data.sources) != 1:
        raise ConfigError(f"{name} does not train on one data set: give one with --dataset")
    source = recipe.data.sources[0]
    if source.embodiment is not None:
        raise ConfigError(f"{name} declares its robot itself: give --dataset {source.path} --embodiment FILE")
    found = of_dataset(source.path, None, demonstrations, hz)
    return Situation(**{**vars(found), "document": merge(kept, found.document)})


def _of_suite(name: str, document: dict[str, Any], demonstrations: int | None, hz: float | None) -> Situation:
    _check(demonstrations, hz)
    opened = open_suite(name, document.get("environment"))
    fixed = opened.embodiment.control_hz
    if hz is not None and hz != fixed:
        raise ConfigError(f"--hz {hz:g}: {name} is controlled at {fixed:g} Hz: leave --hz out")
    if demonstrations is not None:
        document["collect"]["demonstrations"] = demonstrations
    collect = build(CollectConfig, document["collect"], where="collect")
    tasks = len(collect.select_tasks(opened.suite))
    count = collect.demonstrations * tasks
    number = f"{collect.demonstrations} demonstration{'' if collect.demonstrations == 1 else 's'}"
    note = f"{number} of each of {tasks} tasks will be collected; {_ACTIONS} actions each are assumed"
    notes = [note]
    if opened.suite.most_executed is not None:
        notes.append(f"{name} has tasks that the present picture does not tell: the policy needs a history")
    opened.benchmark.close()
    return Situation(
        opened.embodiment,
        count,
        tasks,
        count * _ACTIONS,
        fixed,
        document,
        tuple(notes),
        opened.suite.most_executed,
    )


def _check(demonstrations: int | None, hz: float | None) -> None:
    if demonstrations is not None and demonstrations < 1:
        raise ConfigError(f"--demonstrations {demonstrations}: at least 1 is needed")
    if hz is not None and not 0 < hz <= HZ:
        raise ConfigError(f"--hz {hz:g}: give a control rate above 0 and up to {HZ}")
