"""Open a suite by name, as `metaworld/half-open` or `gym:CartPole-v1`, in any Python interpreter."""

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

FIRST_DEMONSTRATION_SEED = 1_000_000  # demonstrations start from this seed on, evaluations use the seeds below


@dataclass(frozen=True)
class OpenedSuite:
    """A suite whose benchmark is connected."""

    spec: Spec  # how a worker opens the benchmark
    benchmark: Benchmark
    suite: Suite
    embodiment: Embodiment

    @property
    def name(self) -> str:
        """The name as in `metaworld/half-open`."""
        return f"{self.benchmark.name}/{self.suite.name}"


def open_suite(name: str, settings: Mapping[str, Any] | None = None, python: str | None = None) -> OpenedSuite:
    """Open the suite `BENCHMARK/SUITE`, or `gym:ID`.

    `settings`: of the benchmark, as {"render": "native"}. `python`: the interpreter that has the simulator; None: this
    one. Raises ConfigError with the nearest names, BenchmarkUnusable if that interpreter lacks the simulator.
    """
    spec, kind, wanted = name_suite(name, settings, python)
    try:
        benchmark = connect(spec)
    except ValueError as error:
        raise ConfigError(f"benchmark {kind}: {error}") from None
    suites = list(benchmark.suites())
    if wanted not in suites:
        raise ConfigError(f"benchmark {kind} has no suite {wanted!r}: {suggest(wanted, suites)}")
    embodiment = build(Embodiment, benchmark.embodiment(wanted), where=f"{kind}/{wanted}")
    return OpenedSuite(spec, benchmark, benchmark.suite(wanted), embodiment)


def name_suite(name: str, settings: Mapping[str, Any] | None, python: str | None) -> tuple[Spec, str, str]:
    """Return how to open the benchmark of a suite, its name, and that of the suite in it. Raises like `open_suite`."""
    settings = dict(settings or {})
    if name.startswith("gym:"):
        name, settings["id"] = f"gym/{name[4:]}", name[4:]
    if isinstance(settings.get("mapping"), str):
        settings["mapping"] = _read_mapping(Path(settings["mapping"]))
    kind, _, wanted = name.partition("/")
    try:
        return Spec(benchmarks.target(kind), settings, python), kind, wanted
    except KeyError as error:
        raise ConfigError(error.args[0]) from None


def _read_mapping(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"the mapping {path} does not exist; docs/benchmark_gym.md shows such a YAML file")
    try:
        return read_yaml(path)
    except DocumentError as error:
        raise ConfigError(str(error)) from None
