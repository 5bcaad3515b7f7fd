"""Finds a benchmark and a suite by a name as `metaworld/half-open` or `gym:CartPole-v1`, in whatever interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError, build
from anyvla.files.documents import DocumentError, read_yaml
from anyvla.registry import benchmarks, suggest
from anyvla.robot.embodiment import Embodiment
from anyvla_sim.base import Benchmark, Suite
from anyvla_sim.spec import Spec
from anyvla_sim.workers.remote import connect

FIRST_DEMONSTRATION_SEED = 1_000_000  # of start states of demonstrations; evaluations use seeds below it


@dataclass(frozen=True)
class OpenedSuite:
    """A suite that can be played."""

    spec: Spec  # what a worker needs to open it
    benchmark: Benchmark
    suite: Suite
    embodiment: Embodiment

    @property
    def name(self) -> str:
        """As `metaworld/half-open`."""
        return f"{self.benchmark.name}/{self.suite.name}"


def open_suite(name: str, settings: Mapping[str, Any] | None = None, python: str | None = None) -> OpenedSuite:
    """The suite `BENCHMARK/SUITE`, or `gym:ID`.

    `settings`: of the benchmark, as {"render": "native"}. `python`: the interpreter its simulator lives in; None: this
    one. Raises ConfigError with the nearest names, BenchmarkUnusable if the simulator is not installed there.
    """
    settings = dict(settings or {})
    if name.startswith("gym:"):
        name, settings["id"] = f"gym/{name[4:]}", name[4:]
    if isinstance(settings.get("mapping"), str):
        settings["mapping"] = _mapping(Path(settings["mapping"]))
    kind, _, wanted = name.partition("/")
    try:
        target = benchmarks.target(kind)
    except KeyError as error:
        raise ConfigError(error.args[0]) from None
    spec = Spec(target, settings, python)
    try:
        benchmark = connect(spec)
    except ValueError as error:
        raise ConfigError(f"benchmark {kind}: {error}") from None
    suites = list(benchmark.suites())
    if wanted not in suites:
        raise ConfigError(f"benchmark {kind} has no suite {wanted!r}: {suggest(wanted, suites)}")
    embodiment = build(Embodiment, benchmark.embodiment(wanted), where=f"{kind}/{wanted}")
    return OpenedSuite(spec, benchmark, benchmark.suite(wanted), embodiment)


def _mapping(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"there is no mapping {path}: a YAML file, docs/benchmark_gym.md shows one")
    try:
        return read_yaml(path)
    except DocumentError as error:
        raise ConfigError(str(error)) from None
