"""The jobs of a study: collecting, fitting codecs, training and evaluating, each named by a hash of its inputs.

The name of a job is a hash of every key that changes its result, and of the names of the jobs that it builds on. So
cells that share a part, such as demonstrations or a pre-trained policy, share its job; a rerun finds what is there; and
a changed key makes only the jobs anew that depend on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from anyvla.config import to_dict
from anyvla.files.stage_paths import name_of_stage
from anyvla.recipe import Recipe
from anyvla.stages import Stage, collects
from anyvla.study.cells import Cell
from anyvla.study.file import Benchmark
from anyvla.training.resume_rules import FREE, find_rule

Kind = Literal["collect", "codec", "train", "evaluate"]
_EPOCH = 1  # raise it when the same recipe means something else than before
# Keys that change no outcome of an episode, and the number of episodes, of which more are added to those that exist.
_NOT_PLAYED = ("processes", "slots", "hang_s", "memory_gb", "failure_videos", "episodes", "unrelated_episodes")


@dataclass(frozen=True)
class Job:
    """One part of one or several cells. It runs in a folder of its own, as one process."""

    name: str  # the kind and the hash
    kind: Kind
    recipe: Recipe
    needs: Mapping[str, str] = field(default_factory=dict)  # what of another job its folder links to -> that job
    origin: str | None = None  # the job of the policy that a training starts from
    policy: str | None = None  # the job of the policy that is evaluated
    sources: Mapping[int, str] = field(default_factory=dict)  # by number: the job of a source of its data

    @property
    def before(self) -> tuple[str, ...]:
        """The names of the jobs that must be done."""
        others = (*self.needs.values(), *self.sources.values(), self.origin, self.policy)
        return tuple(dict.fromkeys(name for name in others if name is not None))


@dataclass(frozen=True)
class CellJobs:
    """The jobs of one cell. Those that others share have the same names."""

    jobs: Mapping[str, Job]  # in an order in which they can run
    trainings: tuple[str, ...]  # the last one's policy is evaluated
    evaluations: tuple[str, ...]
    stopped: bool = False  # its evaluations end before all their episodes

    @property
    def keys(self) -> dict[str, str]:
        """Return the names of the jobs, as the store keeps them."""
        return {f"{job.kind}.{number}": name for number, (name, job) in enumerate(self.jobs.items())}


def list_jobs(cell: Cell, benchmarks: Iterable[Benchmark] = ()) -> CellJobs:
    """Return the jobs of a valid cell, with its evaluations on further benchmarks."""
    jobs: dict[str, Job] = {}
    collected: dict[str, str] = {}  # by stage
    trained: dict[str, str] = {}
    for stage in cell.stages:
        if collects(stage, cell.stages) or (len(cell.stages) == 1 and not stage.recipe.data.given):
            job = _collecting(stage.recipe)
            jobs[job.name] = job
            collected[stage.name] = job.name
        if stage.trains:
            for job in _training(stage, collected, trained):
                jobs[job.name] = job
            trained[stage.name] = job.name
    policy = trained[cell.stages[-1].name]
    evaluations = []
    for recipe in (cell.recipe, *(_on(cell.recipe, other) for other in benchmarks)):
        if recipe.benchmark is not None:
            job = _evaluating(recipe, policy)
            jobs[job.name] = job
            evaluations.append(job.name)
    needed = _needed(jobs, [policy, *evaluations])
    trainings = tuple(name for name in dict.fromkeys(trained.values()) if name in needed)  # stages may be the same
    return CellJobs({name: job for name, job in jobs.items() if name in needed}, trainings, tuple(evaluations))


def _needed(jobs: Mapping[str, Job], ends: Iterable[str]) -> set[str]:
    """Return the jobs that `ends` build on, and themselves; a stage may start anew and need none of those before."""
    needed: set[str] = set()
    waiting = list(ends)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += jobs[name].before
    return needed


def _collecting(recipe: Recipe) -> Job:
    keys = to_dict(recipe)
    collect = {key: value for key, value in keys["collect"].items() if key != "processes"}
    return Job(_name("collect", keys["benchmark"], keys["environment"], collect), "collect", recipe)


def _training(stage: Stage, collected: Mapping[str, str], trained: Mapping[str, str]) -> list[Job]:
    """Return the jobs that train a stage: its codec, if it needs one, and the training itself."""
    recipe = stage.recipe
    names = {number: name_of_stage(source.path) for number, source in enumerate(recipe.data.sources)}
    sources = {number: collected[name] for number, name in names.items() if name is not None}
    needs = {} if recipe.data.given else {"dataset": collected[stage.name]}
    data = [needs, {number: sources.get(number, recipe.data.sources[number].path) for number in names}]
    keys = to_dict(recipe)
    of_data = _what_matters({"data": keys["data"]})
    jobs = []
    if recipe.model.representation.target.kind == "tokens" and recipe.training.statistics == "data":
        model = keys["model"]
        parts = [model["representation"], model["chunk"], model["normalization"]]
        codec = Job(_name("codec", data, of_data, parts), "codec", recipe, dict(needs), sources=sources)
        jobs.append(codec)
        needs["codec"] = codec.name
    origin = None if stage.origin is None else trained[stage.origin]
    given = origin or recipe.training.init_from
    matter = _what_matters({"model": keys["model"], "training": keys["training"]})
    name = _name("train", data, needs, of_data, matter, given)
    return [*jobs, Job(name, "train", recipe, needs, origin, sources=sources)]


def _evaluating(recipe: Recipe, policy: str) -> Job:
    keys = to_dict(recipe)
    played = {key: value for key, value in keys["evaluation"].items() if key not in _NOT_PLAYED}
    name = _name("evaluate", policy, keys["benchmark"], keys["environment"], played)
    return Job(name, "evaluate", recipe, policy=policy)


def _on(recipe: Recipe, other: Benchmark) -> Recipe:
    """Return a recipe that evaluates on another benchmark."""
    from anyvla.config import build, merge
    from anyvla.evaluation.protocol import EvaluationConfig

    evaluation = build(EvaluationConfig, merge(to_dict(recipe.evaluation), other.evaluation), where=other.benchmark)
    return dataclasses.replace(
        recipe, benchmark=other.benchmark, environment=dict(other.environment), evaluation=evaluation
    )


def _what_matters(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys that change what a training learns, without paths and origins, which are hashed apart."""
    return {
        key: value
        for key, value in _flatten(keys)
        if ((rule := find_rule(key)) is None or rule.verdict != FREE) and key != "training.init_from"
    }


def _flatten(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield path, value
        return
    for key, inner in items:
        yield from _flatten(inner, f"{path}.{key}" if path else str(key))


def _name(kind: Kind, *parts: Any) -> str:
    text = json.dumps([_EPOCH, kind, parts], sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
