"""The folder of a study: its file with the base recipe, its store, and a folder for each job under `made`.

A job that ended has `done.json` in its folder, or `failed.json` with the reason. Jobs of cells that share a part have
one folder, and folders link to each other by relative paths, so that a study can be moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError, read_options, to_dict
from anyvla.evaluation.protocol import EvaluationConfig
from anyvla.files import durable
from anyvla.files.documents import DocumentError, read_object
from anyvla.recipe import Recipe, build_recipe
from anyvla.study.cells import find_base
from anyvla.study.file import StudyFile
from anyvla.study.jobs import Job

STORE, FILE, BASE, _MADE = "store.jsonl", "study.yaml", "base.yaml", "made"
_DONE, _FAILED, _JOB, LOG = "done.json", "failed.json", "job.json", "log.txt"


@dataclass(frozen=True)
class Done:
    """The resources that a finished job has used."""

    minutes: float
    memory_gb: float
    gigabytes: float  # on the disk
    episodes: int = 0  # per task that were asked for, of an evaluation; 0: as the suite says
    unrelated_episodes: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a job failed."""

    reason: str
    over_budget: bool = False


class StudyFolder:
    """The folder of a study: its file, its store and its jobs."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, root / STORE
        self.outdated = root / "outdated.jsonl"  # lines of cells whose recipe has changed since
        self.features = root / _MADE / "features"  # of frozen vision towers, which trainings share
        self._done: dict[str, tuple[tuple[int, int], Done]] = {}  # by job: the version of its file, and its contents

    def claim(self, study: StudyFile, source: Path) -> None:
        """Make the folder, and write the study's file (`source`) and its base recipe, so that the folder is enough.

        Raises ConfigError if the folder belongs to another study.
        """
        path = self.root / FILE
        if path.is_file():
            owner = read_object(path).get("name")
            if owner != study.name:
                raise ConfigError(
                    f"{self.root} is the folder of the study {owner!r}, not of {study.name!r}: give another --out"
                )
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise ConfigError(f"{self.root} is not empty and is no study's folder: give another --out")
        self.root.mkdir(parents=True, exist_ok=True)
        base = read_options(find_base(study, source))
        durable.write(self.root / BASE, json.dumps(base, indent=1, ensure_ascii=False))  # JSON is YAML too
        document = to_dict(study) | {"base": BASE}
        durable.write(path, json.dumps(document, indent=1, ensure_ascii=False))

    def of(self, name: str) -> Path:
        """Return the folder of a job."""
        return self.root / _MADE / name

    def prepare(self, job: Job) -> None:
        """Write the folder of a job that has not begun: its recipe, and links to the results of others."""
        folder = self.of(job.name)
        folder.mkdir(parents=True, exist_ok=True)
        for what, other in job.needs.items():
            link = folder / what
            target = self.of(other) / what
            if not link.is_symlink() and (what == "dataset" or target.exists()):  # some codecs need no fitting
                link.symlink_to(os.path.relpath(target, folder), target_is_directory=True)
        document = {
            "kind": job.kind,
            "recipe": to_dict(job.recipe),
            "origin": job.origin,
            "policy": job.policy,
            "sources": {str(number): other for number, other in job.sources.items()},
        }
        durable.write(folder / _JOB, json.dumps(document, ensure_ascii=False))

    def recipe_of(self, name: str) -> tuple[str, Recipe, Path | None]:
        """Return the kind and the recipe of a job, with the paths of this folder, and the run of its policy."""
        document = read_object(self.of(name) / _JOB)
        keys: dict[str, Any] = document["recipe"]
        for number, other in document["sources"].items():
            keys["data"]["sources"][int(number)]["path"] = str(self.of(other).absolute() / "dataset")
        if document["origin"] is not None:
            keys["training"]["init_from"] = str(self.of(document["origin"]).absolute())
        policy = document["policy"]
        recipe = build_recipe(keys, str(self.of(name) / _JOB))
        return document["kind"], recipe, None if policy is None else self.of(policy)

    def done(self, job: Job) -> Done | None:
        """Return the resources that a job has used; None if it is not done, also if more episodes are asked for now."""
        done = self._read_done(job.name)
        return done if done is None or job.kind != "evaluate" or _covers(done, job.recipe.evaluation) else None

    def episodes_of(self, name: str) -> int:
        """Return the episodes per task that an evaluation has played; 0 if it has not ended."""
        done = self._read_done(name)
        return 0 if done is None else done.episodes

    def _read_done(self, name: str) -> Done | None:
        """Return the contents of a job's `done.json`. It is read again only if it was replaced: studies look often."""
        path = self.of(name) / _DONE
        try:
            found = path.stat()
            version = found.st_ino, found.st_mtime_ns
            if self._done.get(name, (None,))[0] != version:
                self._done[name] = version, Done(**read_object(path))
            return self._done[name][1]
        except (OSError, DocumentError):
            return None

    def failure(self, name: str) -> Failure | None:
        """Return why a job failed; None if it did not."""
        with contextlib.suppress(DocumentError):
            return Failure(**read_object(self.of(name) / _FAILED))
        return None

    def set_done(self, name: str, done: Done) -> None:
        """Note that a job is done."""
        (self.of(name) / _FAILED).unlink(missing_ok=True)
        durable.write(self.of(name) / _DONE, json.dumps(dataclasses.asdict(done)))

    def set_failure(self, name: str, failure: Failure) -> None:
        """Note that a job failed."""
        self.of(name).mkdir(parents=True, exist_ok=True)
        durable.write(self.of(name) / _FAILED, json.dumps(dataclasses.asdict(failure), ensure_ascii=False))

    def forget_failure(self, name: str) -> None:
        """Let a job that failed run again."""
        (self.of(name) / _FAILED).unlink(missing_ok=True)

    def tail(self, name: str, lines: int = 5) -> str:
        """Return the last lines of a job's log."""
        try:
            text = (self.of(name) / LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def gigabytes_free(self) -> float:
        """Return the free space of the disk."""
        at = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        return shutil.disk_usage(at).free / 1e9


def _covers(done: Done, asked: EvaluationConfig) -> bool:
    pairs = ((done.episodes, asked.episodes or 0), (done.unrelated_episodes, asked.unrelated_episodes or 0))
    return all(played == wanted or 0 < wanted <= played for played, wanted in pairs)


def measure_folder(folder: Path) -> float:
    """Return the gigabytes of the files in a folder, without the targets of links."""
    found: Iterable[Path] = (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
    total = 0
    for path in found:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total / 1e9
