"""`anyvla study run FOLDER_OR_FILE`: train and evaluate the missing cells of a study. The same command resumes it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.common import console
from anyvla.cli.stopping import graceful
from anyvla.config import ConfigError, parse_options
from anyvla.files.folder_lock import lock_folder
from anyvla.interrupted import Interrupted

if TYPE_CHECKING:
    from anyvla.cli.recipe_help import KeyParser
    from anyvla.study.executors.base import Executor
    from anyvla.study.file import StudyFile
    from anyvla.study.folder import StudyFolder
    from anyvla.study.jobs import Job
    from anyvla.study.overview import Overview


EXECUTORS = ("local", "ray", "slurm")
_QUEUED = 100  # jobs in SLURM's queue


def add_arguments(parser: KeyParser) -> None:
    """Add the options of the command."""
    parser.epilog = "Any key of the study can be set: --seeds '[0]' --set.training.steps 100"
    parser.add_argument(
        "file", metavar="FOLDER_OR_FILE", type=Path, help="the study: a YAML file, or the folder of one that was begun"
    )
    parser.add_argument("--out", type=Path, help="the study's folder (default: outputs/studies/<name>)")
    parser.add_argument("--dry-run", action="store_true", help="only show cells, jobs, hours and disk")
    parser.add_argument("--gpu", help="with --dry-run: plan the trainings for a GPU, as h100 (default: this machine's)")
    parser.add_argument(
        "--benchmark", action="store_true", help="with --dry-run: measure the speed of each kind of training here"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where jobs run (default: local)")
    parser.add_argument(
        "--processes", type=int, help="jobs at once (default: one for each core; SLURM: 100 in its queue)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads and simulators of each job (default: 1)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each job, with Ray and SLURM (default: 0)")
    parser.add_argument("--address", help="of an existing Ray cluster, or auto (default: start one here)")
    parser.add_argument("--slurm", type=str, help="options of submitit, as '{slurm_partition: gpu, slurm_qos: low}'")
    parser.add_argument("--only", nargs="+", default=(), metavar="CELL", help="only these cells, by name")
    parser.add_argument(
        "--known", type=Path, metavar="STORE", help="do not run cells again that are finished in this store"
    )
    parser.add_argument("--retry", action="store_true", help="also run jobs again that have failed")


def run(options: argparse.Namespace) -> int:
    """Run what is missing, and print an overview. The status is 1 if a cell failed."""
    from anyvla.study.file import read_study
    from anyvla.study.folder import FILE, StudyFolder
    from anyvla.study.overview import look
    from anyvla.study.record import set_outdated_aside
    from anyvla.study.recorded import read_known, write_recorded

    check_options(options)
    if options.file.is_dir():  # all that is needed is there, also after it was moved
        options.file, options.out = options.file / FILE, options.out or options.file
    study = read_study(options.file, options.overrides)
    folder = StudyFolder(options.out or Path("outputs") / "studies" / study.name)
    processes = options.processes or max(1, (os.cpu_count() or 1) // options.threads)
    known = None if options.known is None else read_known(options.known, study)
    if known is not None and study.stop is not None:
        raise ConfigError("--known: a study with `stop` decides by its own episodes: leave --known or stop out")
    overview = look(study, options.file, folder, retry=options.retry, only=options.only, known=known)
    if options.dry_run:
        overview, processes = plan(overview, folder, options), options.processes or (1 if options.gpu else processes)
        show(overview, processes, as_json=options.json)
        return 0
    show(overview, processes)
    needed, free = overview.gigabytes, folder.gigabytes_free()
    if needed > free:
        raise ConfigError(
            f"the study needs about {needed:.1f} GB more, and the disk of {folder.root} has {free:.1f} GB free: give "
            "an --out on another disk, or fewer cells"
        )
    folder.claim(study, options.file)
    with lock_folder(folder.root):
        if count := set_outdated_aside(overview.jobs_of, folder):
            console.print(f"the recipes of {count} finished cells have changed: their results are in {folder.outdated}")
        write_recorded(overview.recorded.values(), folder)
        executor = open_executor(options, folder, processes)
        finish(study, overview, folder, executor, options.threads, options.gpus, retry=options.retry)
    after = look(study, options.file, folder, only=options.only)
    show(after, processes, as_json=options.json)
    return 1 if after.states.get("failed") else 0


def plan(overview: Overview, folder: StudyFolder, options: argparse.Namespace) -> Overview:
    """Return the overview with plans of the missing trainings, if their speed is known or none has been measured.

    The time of finished trainings, else the planner's with `--gpu`, `--benchmark` or a GPU here, else a guess is taken.
    """
    import torch

    from anyvla.study.trainings import plan_trainings

    asked = options.gpu is not None or options.benchmark
    if not asked and (overview.measured["train"] or not torch.cuda.is_available()):
        return overview
    torch.set_num_threads(options.threads)
    plans = plan_trainings(overview.missing, folder, options.gpu, benchmark=options.benchmark)
    return dataclasses.replace(overview, plans=plans)


def check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for numbers below 1, and for options that the executor does not read."""
    for name, least in (("processes", 1), ("threads", 1), ("gpus", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value}: at least {least} is needed")
    for name in ("gpu", "benchmark"):
        if getattr(options, name) and not options.dry_run:
            raise ConfigError(f"--{name} plans the trainings: give --dry-run too")
    readers = {"address": ("ray",), "slurm": ("slurm",), "gpus": ("ray", "slurm")}
    for name, executors in readers.items():
        if getattr(options, name) and options.executor not in executors:
            raise ConfigError(f"--{name} is for --executor {' or '.join(executors)}, and this is {options.executor}")


def open_executor(options: argparse.Namespace, folder: StudyFolder, processes: int) -> Executor:
    """Return the executor that the options name. Raises ConfigError, and ImportError if its extra is missing."""
    if options.executor == "ray":
        from anyvla.study.executors.ray import RayExecutor

        return RayExecutor(options.address)
    if options.executor == "slurm":
        from anyvla.study.executors.slurm import SlurmExecutor

        [(_, given)] = parse_options([f"--slurm={options.slurm or '{}'}"])
        if not isinstance(given, dict):
            raise ConfigError("--slurm needs keys and values, as in '{slurm_partition: gpu}'")
        return SlurmExecutor(folder.root / "slurm", options.processes or _QUEUED, given)
    from anyvla.study.executors.local import LocalExecutor

    return LocalExecutor(processes)


def finish(
    study: StudyFile,
    overview: Overview,
    folder: StudyFolder,
    executor: Executor,
    threads: int = 1,
    gpus: int = 0,
    *,
    retry: bool = False,
) -> None:
    """Run the missing jobs, and write the line of each cell when it ends. Raises Interrupted."""
    from anyvla.cli.common import ProgressBar
    from anyvla.study.executors.base import Needs
    from anyvla.study.overview import join_jobs
    from anyvla.study.record import record
    from anyvla.study.schedule import Scheduler

    if retry:
        for name in overview.jobs:
            folder.forget_failure(name)
    open_cells = {cell.name: cell for cell in overview.cells if cell.name not in overview.recorded}

    def write_ended(ended: Collection[str] | None = None) -> Mapping[str, Job]:
        jobs_of = overview.jobs_of if overview.stopping is None else overview.stopping.ask()
        for name, cell in list(open_cells.items()):
            others = ended is not None and name in jobs_of and jobs_of[name].jobs.keys().isdisjoint(ended)
            if others and overview.stopping is None:  # which may end a cell when a job of another one ends
                continue
            if record(study, cell, jobs_of.get(name), folder, overview.lines.get(name)):
                del open_cells[name]
        bar(len(overview.cells) - len(open_cells), len(overview.cells))
        return overview.jobs if overview.stopping is None else join_jobs(jobs_of)

    def find_needs(job: Job) -> Needs:
        estimate = overview.estimates[job.kind]
        limit = study.budget.memory_gb or overview.machine_gb / 2
        return Needs(study.budget.minutes, limit, min(estimate.memory_gb, limit), threads, gpus)

    with ProgressBar("cells") as bar, graceful() as stop:
        jobs = write_ended()
        try:
            whole = Scheduler(jobs, folder, executor, find_needs, write_ended).run(stop)
        finally:
            executor.close()
    if not whole:
        raise Interrupted("stopped; run the same command to resume")


def show(overview: Overview, processes: int, as_json: bool = False) -> None:
    """Print what there is to do and what is done."""
    if as_json:
        print(json.dumps(overview.to_dict(processes), indent=1))
        return
    console.print(overview.to_text(processes), soft_wrap=True)
