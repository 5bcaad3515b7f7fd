"""Plan the trainings of a study before any has run: hours, memory and disk, by the planner of `anyvla plan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from anyvla.planning.gpus import parse_gpu
from anyvla.planning.inputs import find_data
from anyvla.planning.known_models import count_known
from anyvla.planning.plan import Plan, make_plan
from anyvla.recipe import Recipe
from anyvla.study.folder import StudyFolder
from anyvla.study.jobs import Job

_SAME_STEP = ("steps", "seed", "init_from", "log_every", "augment")  # keys of a training without effect on one step


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of one training."""

    hours: float | None = None  # None: not known
    memory_gb: float = 0.0  # at the peak, of the whole batch on one device
    fits: bool = True
    gigabytes: float = 0.0  # of the weights and the state of the optimizer
    origin: str = ""  # of the speed
    reason: str = ""  # why there are no hours


def plan_trainings(
    jobs: Iterable[Job], folder: StudyFolder, gpu: str | None, *, benchmark: bool = False
) -> dict[str, TrainingPlan]:
    """Return the plans of the jobs that train, by name. Trainings whose steps are alike are planned once.

    `gpu`: as of `make_plan`; `benchmark`: measure the speed here, some seconds for each kind of step. A backbone that
    cannot be built, because its configuration is not on this machine, leaves a plan without hours. Raises ConfigError
    for an unknown GPU.
    """
    if gpu is not None:
        parse_gpu(gpu)
    made: dict[str, Plan | str] = {}
    plans = {}
    for job in jobs:
        if job.kind != "train":
            continue
        key = _describe_step(job.recipe, folder.of(job.name))
        if key not in made:
            made[key] = _plan(job, folder, gpu, benchmark)
        plans[job.name] = _read(made[key], job.recipe)
    return plans


def least_gigabytes(job: Job) -> float:
    """Return the disk that a training needs at least: its weights, if their number is known without a plan."""
    return 4 * count_known(job.recipe) / 1e9 if job.kind == "train" else 0.0  # float32


def _describe_step(recipe: Recipe, run: Path) -> str:
    """Return everything that decides the operations and the memory of a step."""
    data, training = find_data(recipe, run), vars(recipe.training)
    inputs = (data.embodiments, data.image_size, data.instruction, data.row, data.frames)
    model, backbone = recipe.model, recipe.model.backbone
    if hasattr(backbone.config, "seed"):
        model = replace(model, backbone=replace(backbone, config=replace(backbone.config, seed=0)))
    return repr((inputs, recipe.data.workers, model, [training[n] for n in training if n not in _SAME_STEP]))


def _plan(job: Job, folder: StudyFolder, gpu: str | None, benchmark: bool) -> Plan | str:
    """Return the plan of a training, or the reason why there is none."""
    try:
        return make_plan(job.recipe, folder.of(job.name), gpu=gpu, benchmark=benchmark, remedies=0)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return " ".join(str(error).split())


def _read(plan: Plan | str, recipe: Recipe) -> TrainingPlan:
    if isinstance(plan, str):
        return TrainingPlan(reason=plan)
    own = replace(plan, training_steps=recipe.training.steps)
    parts = plan.memory.parts
    kept = sum(parts.get(name, 0.0) for name in ("weights", "optimizer", "average of the weights"))
    return TrainingPlan(
        hours=own.hours(),
        memory_gb=plan.memory.total / 1e9,
        fits=plan.fits,
        gigabytes=kept / 1e9,
        origin="" if plan.speed is None else plan.speed.origin,
        reason="" if plan.speed is not None else plan.notes[-1],
    )
